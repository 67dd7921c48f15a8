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
# # One model, several kinds of embedding
#
# A language model is loaded once. Its states become one vector a text, one a chunk, one a word, or words that the text
# might also have had. Here it is MiniLM, which comes with a package; any model of transformers takes its place.

# %%
from matplotlib.figure import Figure

from reperio import LanguageModel
from reperio.connectors import PythonDocsSource
from reperio.encoders import ChunkEncoder, ClosedFormEncoder, DecoderEncoder, MultiVectorEncoder, StemStates

documents = list(
    PythonDocsSource(["heapq", "bisect", "random", "statistics", "textwrap", "shutil"], min_words=8).documents()
)
texts = [document.text for document in documents]
model = LanguageModel("all-MiniLM-L6-v2")
print(f"{len(texts)} docstrings; {model.dim} dimensions, {model.view().depth} layers")

# %% [markdown]
# ## How the model is seen
#
# A view is proved when it is made: does the first token see the last one, does padding change anything, can rows be
# packed without padding?

# %%
view = model.view()
print(view.probe)
print("packed" if view.packs else view.probe.why_padded)

# %% [markdown]
# ## One vector a text
#
# What is not given is taken from the checkpoint: pooling, prompts, length, normalisation.

# %%
dense = DecoderEncoder(model, on_truncation="chunk")
vectors = dense.encode_document(texts).embeddings
question = "draw some items by chance, without putting them back"
scores = vectors @ dense.encode_query([question]).embeddings[0]
print(dense.layout.pooling.spec, dense.layout.max_tokens)
for i in (-scores).argsort()[:3]:
    print(f"{scores[i]:.2f}  {documents[i].id}")

# %% [markdown]
# ## One vector a chunk, one a word
#
# The same weights; nothing is loaded again. Late interaction shows which words of a text answer the question.

# %%
chunked = ChunkEncoder(model, chunk_tokens=32)
longest = max(texts, key=len)
print(f"{len(chunked.encode_document([longest]).embeddings.vectors)} chunks of {len(longest)} characters")

words = MultiVectorEncoder(model)
asked, answered = (words.encode_query([question]), words.encode_document([texts[int(scores.argmax())]]))
similar = asked.embeddings.vectors @ answered.embeddings.vectors.T
figure = Figure(figsize=(7, 2.5), layout="constrained")
axes = figure.subplots()
axes.imshow(similar, aspect="auto", cmap="magma")
axes.set(xlabel="vectors of the text", ylabel="vectors of the question", title="what looks like what")
figure

# %% [markdown]
# ## Words that a text might also have had
#
# For each stem there is one mean of the states that its tokens had in other texts. A text's tokens then speak for stems
# whose states are like theirs, in closed form: no training, and no model for queries.

# %%
states = StemStates(model).add(texts)
expansion = ClosedFormEncoder(states)
for document in documents[:3]:
    print(document.id, [word for word, _ in expansion.expansions(document.text, top=8)])
