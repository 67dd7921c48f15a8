"""Asking one encoder's collection with another, and what is told of it before."""

from __future__ import annotations

import inspect
import os
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document
from reperio.encoders import (
    BM25Encoder,
    BridgedEncoder,
    HashEncoder,
    ProjectedEncoder,
    Projection,
    RecallLoss,
    RelativeEncoder,
    expected_loss,
)
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    FingerprintMismatch,
    InvalidInput,
    StorageError,
    UnsupportedOperation,
)
from reperio.indexes import FlatIndex
from reperio.signals import Signal
from reperio.testing.encoder import EncoderContract
from reperio.types import Encoded, Fingerprint

NONE = RecallLoss(0.9, 0.9, 0.0, 0.0, 10, 100)
ANCHORS = [f"{word} {other}" for word in ("merge", "sort", "heap", "queue") for other in string.ascii_letters[:12]]
ANCHORS += ["東京タワー", "кошка", "def merge", "short", "a single output"]


@pytest.fixture(scope="module")
def passages() -> list[str]:
    """Lines of the standard library's documentation, of twelve words or more."""
    members = [m for module in (os, shutil, string, inspect) for _, m in inspect.getmembers(module, callable)]
    lines = {" ".join(part.split()) for m in members for part in (inspect.getdoc(m) or "").split("\n\n")}
    return sorted(line for line in lines if len(line.split()) >= 12)[:300]


class Turned(HashEncoder):
    """Hashed words in a space of other axes: what an encoder trained again from the same data would be, at best."""

    def __init__(self, dim: int = 128, *, seed: int = 0, scale: float = 1.0, noise: float = 0.0) -> None:
        super().__init__(dim)
        rng = np.random.default_rng(seed)
        self.turn = scale * np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        self.noise = noise
        self.seed = seed

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint.make("dense", "turned", self.dim, seed=self.seed, turn=float(self.turn[0, 0]))

    def _encode(self, texts: Sequence[str]) -> Encoded[Any]:
        found = super()._encode(texts)
        seeds = [sum(text.encode()) for text in texts]
        odd = np.array([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]).reshape(-1, self.dim)
        vectors = (found.embeddings @ self.turn + self.noise * odd).astype(np.float32)
        return Encoded(vectors, found.token_counts, found.truncated)


@pytest.fixture(scope="module")
def projection(passages: list[str]) -> Projection:
    return Projection.fit(Turned(), HashEncoder(128), passages)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, passages: list[str]) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "projection"
    Projection.fit(HashEncoder(256), HashEncoder(96), passages).save(path)
    return path


class TestProjectedEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self, folder: Path) -> ProjectedEncoder:
        return ProjectedEncoder(HashEncoder(256), folder)


class TestBridgedEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self, folder: Path) -> BridgedEncoder:
        return BridgedEncoder(ProjectedEncoder(HashEncoder(256), folder), HashEncoder(96), NONE)


class TestRelativeEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self) -> RelativeEncoder:
        return RelativeEncoder(HashEncoder(1024), ANCHORS)


class TestRelativeEncoderNotWhitened(EncoderContract):
    @pytest.fixture
    def encoder(self) -> RelativeEncoder:
        return RelativeEncoder(HashEncoder(1024), ANCHORS, whitened=False)


def test_a_rotation_is_found_again_and_costs_nothing(projection: Projection, passages: list[str]) -> None:
    ours = ProjectedEncoder(Turned(), projection).encode_query(passages[:50]).embeddings
    theirs = HashEncoder(128).encode_query(passages[:50]).embeddings
    assert (ours * theirs).sum(axis=1).min() > 0.999
    assert projection.loss.before > 0.5
    assert projection.loss.share == pytest.approx(0, abs=0.01)


def test_what_is_expected_is_what_comes_on_texts_that_were_not_learnt(passages: list[str]) -> None:
    learnt, others = passages[::2], passages[1::2]
    new, old = Turned(noise=0.1), HashEncoder(128)
    projection = Projection.fit(new, old, learnt, k=1)
    found = expected_loss(ProjectedEncoder(new, projection), old, others, k=1)
    assert 0.05 < found.share < 0.9  # neither nothing nor all is lost
    assert found.low < projection.loss.high
    assert projection.loss.low < found.high


def test_an_encoder_of_noise_is_refused_before_it_is_used(passages: list[str]) -> None:
    new, old = Turned(noise=9.0), HashEncoder(128)
    projection = Projection.fit(new, old, passages)
    assert projection.loss.low > 0.5
    with pytest.raises(ConfigurationError, match=r"of recall lost \(.* more than max_loss=0\.1"):
        BridgedEncoder(ProjectedEncoder(new, projection), old, projection.loss)
    assert BridgedEncoder(ProjectedEncoder(new, projection), old, projection.loss, max_loss=1.0).loss.k == 10


def test_a_loss_of_judged_questions_is_what_a_loop_counts(passages: list[str]) -> None:
    rng = np.random.default_rng(3)
    asked = {
        f"{text[:40]} {i}": rng.choice(len(passages), 3, replace=False).tolist() for i, text in enumerate(passages)
    }
    old, new = HashEncoder(64), HashEncoder(64)
    found = expected_loss(new, old, passages, asked=asked, k=25)
    rows, total = old.encode_document(passages).embeddings, 0.0
    for question, wanted in asked.items():
        (vector,) = old.encode_query([question]).embeddings
        best = sorted(range(len(rows)), key=lambda i: -float(rows[i] @ vector))[:25]
        total += len(set(best) & set(wanted)) / 3
    assert found.before == pytest.approx(total / len(asked), abs=0.02)  # equal scores may be in another order
    assert (found.share, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"a": [0]}, "There are 1 questions"),
        ({"a": [500]}, r"'a' is answered by the texts \[500\]"),
        ({"a": []}, "'a'"),
    ],
)
def test_questions_that_tell_nothing_are_refused(passages: list[str], asked: Any, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        expected_loss(HashEncoder(8), HashEncoder(8), passages, asked=asked)


def test_what_cannot_be_fitted_or_bridged_is_refused(passages: list[str], projection: Projection) -> None:
    with pytest.raises(InvalidInput, match="30 different texts"):
        Projection.fit(Turned(), HashEncoder(128), passages[:30] * 5)
    with pytest.raises(ConfigurationError, match="old encoder is sparse"):
        Projection.fit(Turned(), BM25Encoder(), passages)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="k is -1"):
        Projection.fit(Turned(), HashEncoder(128), passages, k=-1)
    with pytest.raises(FingerprintMismatch, match="not learnt for turned"):
        ProjectedEncoder(Turned(seed=1), projection).encode_query(["merge"])
    with pytest.raises(UnsupportedOperation, match="Save it"):
        _ = ProjectedEncoder(Turned(), projection).spec
    with pytest.raises(ConfigurationError, match="256 dimensions, documents dense of 128"):
        _ = BridgedEncoder(HashEncoder(256), HashEncoder(128), NONE).fingerprint
    for anchors, named in ((["one"], "1 anchors"), (["one", "two", "one"], "twice")):
        with pytest.raises(ConfigurationError, match=named):
            RelativeEncoder(HashEncoder(), anchors)


def test_a_saved_projection_is_whole_or_refused(tmp_path: Path, folder: Path) -> None:
    again = Projection.open(folder)
    assert again.loss.questions > 0
    with pytest.raises(StorageError, match="exists already"):
        again.save(folder)
    for name in ("matrix.npy", "manifest.json"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        raw = bytearray((copy / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (copy / name).write_bytes(raw)
        with pytest.raises(CorruptArtifact):
            ProjectedEncoder(HashEncoder(256), copy)


def test_a_collection_opens_with_a_bridge_and_what_is_added_stays_of_one_encoder(
    tmp_path: Path, passages: list[str], projection: Projection
) -> None:
    old, new = HashEncoder(128), Turned()
    documents = [Document(str(i), text) for i, text in enumerate(passages[:60])]
    path, plain = tmp_path / "notes", {"dense": Signal(old, FlatIndex())}
    with Collection.open(path, signals=plain) as collection:
        collection.upsert(documents[:40])
    for wrong in (new, ProjectedEncoder(new, projection)):
        with pytest.raises(FingerprintMismatch, match="written by another encoder"):
            Collection.open(path, signals={"dense": Signal(wrong, FlatIndex())})
    bridge = BridgedEncoder(ProjectedEncoder(new, projection), old, projection.loss)
    with Collection.open(path, signals={"dense": Signal(bridge, FlatIndex())}) as collection:
        collection.upsert(documents[40:])
        hits = [collection.search(document.text)[0] for document in documents]
        assert sum(hit.document.id == document.id for hit, document in zip(hits, documents, strict=True)) > 55
        assert min(hit.score for hit in hits) > 0.99
        assert collection.verify().ok
    with Collection.open(path, mode="r", signals=plain) as collection:
        wanted = old.encode_document([documents[50].text]).embeddings
        hit = collection.search(documents[50].text, embeddings={"dense": wanted})[0]
        assert (hit.document.id, hit.score) == ("50", pytest.approx(1, abs=1e-6))


def test_a_model_that_changed_is_seen_through_a_bridge_too(tmp_path: Path, projection: Projection) -> None:
    class Changing(HashEncoder):
        factor = 1.0

        def encode_document(self, texts: Sequence[str], /) -> Encoded[Any]:
            found = super().encode_document(texts)
            return Encoded(found.embeddings * np.float32(self.factor), found.token_counts, found.truncated)

    old = Changing(128)
    Collection.open(tmp_path / "notes", signals={"dense": Signal(old, FlatIndex())}).close()
    bridge = {"dense": Signal(BridgedEncoder(ProjectedEncoder(Turned(), projection), old, NONE), FlatIndex())}
    Collection.open(tmp_path / "notes", signals=bridge).close()
    old.factor = 1.01
    with pytest.raises(FingerprintMismatch, match="another embedding for the canary text"):
        Collection.open(tmp_path / "notes", signals=bridge)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), whitened=st.booleans())
@settings(max_examples=30, deadline=None)
def test_neither_a_rotation_nor_a_scaling_changes_relative_vectors(seed: int, scale: float, whitened: bool) -> None:
    texts = ["merge the queue", "a heap of words", "sort g by h"]
    plain = RelativeEncoder(HashEncoder(64), ANCHORS, whitened=whitened)
    turned = RelativeEncoder(Turned(64, seed=seed, scale=scale), ANCHORS, whitened=whitened)
    a, b = (encoder.encode_document(texts).embeddings for encoder in (plain, turned))
    np.testing.assert_allclose(a, b, atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)


def test_two_encoders_share_an_index_with_nothing_learnt(tmp_path: Path, passages: list[str]) -> None:
    anchors, documents = passages[:100], [Document(str(i), text) for i, text in enumerate(passages[100:180])]
    first, second = (RelativeEncoder(encoder, anchors) for encoder in (HashEncoder(128), Turned(scale=7.0, seed=5)))
    loss = expected_loss(second, first, passages[100:])
    assert abs(loss.share) < 0.02
    with Collection.open(tmp_path / "notes", signals={"dense": Signal(first, FlatIndex())}) as collection:
        collection.upsert(documents)
    bridge = BridgedEncoder(second, first, loss)
    with Collection.open(tmp_path / "notes", mode="r", signals={"dense": Signal(bridge, FlatIndex())}) as collection:
        assert [collection.search(document.text).ids[0] for document in documents] == [d.id for d in documents]
