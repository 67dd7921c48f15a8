# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choose an index by measuring it
#
# Every index that is quicker than looking at all rows misses some. How many, on these rows, is a measurement, not a
# guess. Here are some thousand docstrings as vectors that need no model, an exact index as the yardstick, a graph that
# is tuned to a recall, vectors in a byte a dimension, and the switch from one to the other in a collection.

# %%
from time import perf_counter

import numpy as np
from matplotlib.figure import Figure

from reperio import Collection, Field, Signal
from reperio.connectors import PythonDocsSource
from reperio.encoders import HashEncoder
from reperio.indexes import FaissIndex, FlatIndex, QuantizedIndex

MODULES = "argparse ast asyncio collections concurrent ctypes curses datetime decimal email enum fractions http "
MODULES += "importlib inspect ipaddress logging multiprocessing os pathlib random socket sqlite3 statistics string "
MODULES += "subprocess tarfile tempfile threading tkinter typing unittest urllib uuid xml zipfile"
documents = list(PythonDocsSource(MODULES.split(), min_words=4).documents())
encoder = HashEncoder(96)
vectors = encoder.encode_document([document.text for document in documents]).embeddings
rows, questions = vectors[: len(vectors) * 9 // 10], vectors[len(vectors) * 9 // 10 :]
print(f"{len(rows)} rows, {len(questions)} questions, {rows.shape[1]} dimensions")

# %% [markdown]
# ## The yardstick
#
# `FlatIndex` compares every row. Whatever else is tried has to find what it finds.

# %%
keys = np.arange(len(rows))
exact = FlatIndex()
exact.add(keys, rows)
wanted = exact.search(questions, 10)


def recall(found):
    """Share of the ten true neighbours that were found."""
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted.ids, found.ids, strict=True)]))


# %% [markdown]
# ## A graph, tuned to a recall
#
# With `recall=` the index holds back some rows as questions while it is filled, measures, and keeps the cheapest
# setting that reaches the recall. What it measured is there to be read.

# %%
graph = FaissIndex("HNSW16", recall=0.95)
graph.add(keys, rows)
print(graph.tuning)

# %%
points = sorted(graph.tuning.points, key=lambda point: point.recall)
figure = Figure(figsize=(5.6, 3.2), layout="constrained")
axes = figure.subplots()
axes.plot([p.milliseconds * 1e3 for p in points], [p.recall for p in points], "o", color="#0072B2", ms=5)
chosen = graph.tuning.chosen
axes.plot(chosen.milliseconds * 1e3, chosen.recall, "o", color="#D55E00", ms=9, label=f"chosen: {chosen.options}")
axes.axhline(graph.tuning.target, color="#999999", lw=1, ls="--")
axes.set_xlabel("microseconds a question")
axes.set_ylabel("recall@10")
axes.legend(frameon=False, loc="lower right")
axes.spines[["top", "right"]].set_visible(False)
figure

# %% [markdown]
# It was tuned on rows that were held back; the questions here are others.

# %%
found = graph.search(questions, 10)
print(f"recall@10 {recall(found):.3f}, asked for {graph.recall}")
assert recall(found) > 0.9

# %% [markdown]
# ## A quarter of the memory
#
# `QuantizedIndex` says what a byte for each dimension costs before it takes the first row so.

# %%
small = QuantizedIndex("int8", train_size=len(rows) // 2)
small.add(keys, rows)
print(small.report)
assert small.report.compression == 4

# %% [markdown]
# ## The same in a collection
#
# Documents and vectors stay in the store; an index is derived from them. `reindex` fills another beside the one in use
# and switches, `rollback` switches back. Nothing is encoded again.

# %%
collection = Collection.open("docs", signals={"dense": Signal(encoder, FaissIndex("Flat"))})
collection.upsert(documents)
question = documents[0].text
before = collection.search(question, 10)
collection.checkpoint()

start = perf_counter()
collection.reindex("dense", FaissIndex("HNSW16", recall=0.95))
print(f"{perf_counter() - start:.2f} s to fill and switch")
after = collection.search(question, 10)
print(f"{len({*before.ids} & {*after.ids})} of 10 hits are the same")
assert after.ids[0] == before.ids[0]

# %% [markdown]
# A filter is met inside the search: as many hits as match come back, however few those are.

# %%
kinds = Field("kind") == "class"
matching = collection.count(kinds)
ranking = collection.search(question, 5, where=kinds)
assert len(ranking) == min(5, matching)
[(hit.document.id, hit.document.metadata["kind"]) for hit in ranking]

# %%
collection.rollback("dense")
assert collection.search(question, 10).ids == before.ids
collection.close()
