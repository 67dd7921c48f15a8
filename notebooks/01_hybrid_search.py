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
# # From a list of strings to an evaluated hybrid search
#
# It starts with three strings and one line, and ends with four ways to search some hundred real texts, measured on
# questions with known answers. Nothing is downloaded: the texts are docstrings of Python itself, and the model comes
# with its weights in a package.

# %%
import reperio

recipes = ["Roast the pumpkin until soft.", "Whisk egg whites to stiff peaks.", "Simmer the beans for an hour."]
hit = reperio.search("how long do beans simmer", recipes)[0]
assert hit.document.text == recipes[2]
hit

# %% [markdown]
# ## Texts
#
# A source yields documents: an id, a text, metadata, and where the text came from.

# %%
from collections import Counter

from IPython.display import Image

from reperio import Collection, Field, Query, evaluate
from reperio.connectors import PythonDocsSource
from reperio.fusion import Convex

MODULES = (
    "bisect calendar collections contextlib copy csv functools glob heapq itertools json queue random secrets "
    "shutil statistics tempfile textwrap urllib"
)
documents = list(PythonDocsSource(MODULES.split(), min_words=4).documents())
assert len(documents) > 300
print(f"{len(documents)} documents")
Counter(document.metadata["kind"] for document in documents)

# %%
merge = next(document for document in documents if document.id == "heapq.merge")
print(merge.provenance)
print(merge.text)

# %% [markdown]
# ## A collection
#
# One folder on disk. By default it has two signals: BM25, which sees words, and vectors of all-MiniLM-L6-v2, which
# see meaning. The model reads 256 tokens; texts that are longer are counted, and you are told.

# %%
collection = Collection.open("python-docs")
collection.upsert(documents)

# %% [markdown]
# An upsert is an exact diff: once more, and nothing is written or encoded.

# %%
again = collection.upsert(documents)
assert (again.added, again.updated, again.unchanged) == (0, 0, len(documents))
assert sum(again.encoded.values()) == 0

# %% [markdown]
# ## Search
#
# A hit keeps the score of every signal, on that signal's own scale; its own score is the two together.

# %%
QUESTION = "merge sorted iterables without loading them"
ranking = collection.search(QUESTION, k=5)
for hit in ranking:
    print(f"{hit.score:.3f}", *(f"{name} {score:.3f}" for name, score in hit.signals.items()), hit.document.id)
assert ranking[0].document.id == "heapq.merge"

# %% [markdown]
# A filter is applied inside the search: five hits are asked for and five are found.

# %%
methods = (Field("kind") == "method") & Field("module").in_(["collections", "queue"])
found = collection.search("take the oldest item away", k=5, where=methods)
assert len(found) == 5
assert all(methods.matches(hit.document.metadata) for hit in found)
found.ids

# %% [markdown]
# ## Why is it there?

# %%
explanation = collection.explain(QUESTION, "heapq.merge", where=Field("kind") == "function")
assert explanation.rank == 1
assert abs(sum(part.contribution for part in explanation.signals.values()) - explanation.score) < 1e-6
print(explanation)

# %% [markdown]
# ## How good is it?
#
# Twenty questions as a person would ask them, and the answers that are right: 2 is what was wanted, 1 would help.

# %%
JUDGED = {
    QUESTION: {"heapq.merge": 2},
    "where does a new number go in a list that is in order": {
        "bisect.bisect_left": 2, "bisect.bisect_right": 2, "bisect.insort_left": 1, "bisect.insort_right": 1,
    },
    "split an iterator into runs of equal items": {"itertools.groupby": 2},
    "remember the results of a slow function": {"functools.lru_cache": 2, "functools.cache": 2},
    "count how often each word occurs": {"collections.Counter": 2},
    "dictionary that makes a value for a missing key": {"collections.defaultdict": 2},
    "delete a folder with everything in it": {"shutil.rmtree": 2},
    "find where a program is installed": {"shutil.which": 2},
    "how much room is left on the disk": {"shutil.disk_usage": 2},
    "remove the indentation that all lines share": {"textwrap.dedent": 2},
    "break a long paragraph into lines": {"textwrap.wrap": 2, "textwrap.fill": 2, "textwrap.TextWrapper": 1},
    "a password that nobody can guess": {
        "secrets.token_urlsafe": 2, "secrets.token_hex": 2, "secrets.token_bytes": 2, "secrets": 1,
    },
    "middle value of the data": {"statistics.median": 2, "statistics.median_low": 1, "statistics.median_high": 1},
    "how strongly do two variables go together": {"statistics.correlation": 2, "statistics.covariance": 1},
    "a folder that vanishes when I am done": {"tempfile.TemporaryDirectory": 2},
    "catch what a function prints": {"contextlib.redirect_stdout": 2},
    "ignore an exception": {"contextlib.suppress": 2},
    "undo the percent signs in a web address": {"urllib.parse.unquote": 2},
    "which day of the week is a date": {"calendar.weekday": 2},
    "read JSON from a file": {"json.load": 2},
}  # fmt: skip
queries = [Query(str(i), text) for i, text in enumerate(JUDGED)]
answers = {query.id: JUDGED[query.text] for query in queries}
assert {name for right in answers.values() for name in right} <= {document.id for document in documents}

# %% [markdown]
# Four systems on the same questions; the last trusts meaning more than words. Means have 95 % intervals; differences
# from the first system have a paired test, corrected for how many are made. Twenty questions are few, and the intervals
# say so.

# %%
systems = {
    "bm25": collection.retriever(signals=["bm25"]),
    "dense": collection.retriever(signals=["dense"]),
    "hybrid": collection.retriever(),
    "hybrid 1:4": collection.retriever(fusion=Convex(weights={"bm25": 0.2, "dense": 0.8})),
}
report = evaluate(systems, queries, answers, measures=["nDCG@10", "RR@10", "R@10"])
scores = report.to_dict()
assert scores["hybrid"]["nDCG@10"] > scores["bm25"]["nDCG@10"]
report

# %%
figure = report.plot("systems.png")
assert len(figure.axes[0].containers) == len(systems)
Image("systems.png")

# %% [markdown]
# These questions shun the words of the texts, so words alone find little, and an even mean of both is worse than
# meaning alone. Where people type names and terms it may be the other way round. No weight is right for all:
# measure on questions of your own.

# %% [markdown]
# Where does each of them fail? A mean hides it; the values of each question are kept.

# %%
ndcg = report.values[:, report.measures.index("nDCG@10")]
for number, query in enumerate(report.queries):
    cells = "  ".join(f"{system} {ndcg[s, number]:.2f}" for s, system in enumerate(report.systems))
    print(f"{cells}  {queries[int(query)].text}")

# %% [markdown]
# ## It is still there
#
# Close the collection, open it again from disk: the same answer, and every byte checked.

# %%
collection.close()
with Collection.open("python-docs", mode="r") as reader:
    assert reader.search(QUESTION, k=5).ids == ranking.ids
    assert reader.verify().ok
    stats = reader.stats()
print(f"{stats.documents} documents, {(stats.store_bytes + stats.index_bytes) / 2**20:.1f} MiB")
