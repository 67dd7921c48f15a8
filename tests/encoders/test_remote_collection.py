"""A collection whose embeddings come from a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from reperio import Collection, Document, Signal
from reperio.encoders import HashEncoder, HashWeights, RemoteEncoder, RemoteSparseEncoder
from reperio.encoders.remote_limits import Limits
from reperio.errors import FingerprintMismatch, InvalidResponse, ServerUnavailable
from reperio.indexes import FlatIndex, InvertedIndex
from reperio.protocols import Encoder
from reperio.testing.endpoint import EmbeddingsApp, Reply, Request, serving

DOCUMENTS = [Document(f"d{i}", f"note {i} on merging sorted lists") for i in range(60)]


@pytest.fixture
def app() -> EmbeddingsApp:
    return EmbeddingsApp(HashEncoder(4096), model="hashed")


@pytest.fixture
def url(app: EmbeddingsApp) -> Iterator[str]:
    with serving(app) as where:
        yield where


def test_a_collection_is_filled_searched_and_opened_again(url: str, tmp_path: Path) -> None:
    signals = {"dense": Signal(RemoteEncoder(f"{url}/v1", "hashed"), FlatIndex())}
    with Collection.open(tmp_path / "c", signals=signals) as notes:
        notes.upsert(DOCUMENTS)
        before = notes.search("note 17", 3)
        ids, scores = before.ids, before.scores
        assert ids[0] == "d17"
        notes.delete(["d17"])
        notes.upsert([Document("d3", "another text")])
    with Collection.open(tmp_path / "c") as notes:  # the encoder is built from what was written down
        assert notes.search("note 17", 60).ids.count("d17") == 0
        assert notes.search("another text", 1).ids == ["d3"]
        assert notes.verify().problems == ()
    local = {"dense": Signal(HashEncoder(4096), FlatIndex())}
    with Collection.open(tmp_path / "local", signals=local) as notes:
        notes.upsert(DOCUMENTS)
        same = notes.search("note 17", 3)
        assert same.ids == ids
        np.testing.assert_array_equal(same.scores, scores)


def test_a_collection_of_learned_sparse_rows_works_too(tmp_path: Path) -> None:
    with serving(EmbeddingsApp(HashWeights(512))) as url:
        signals = {"sparse": Signal(RemoteSparseEncoder(url, dim=512), InvertedIndex())}
        with Collection.open(tmp_path / "c", signals=signals) as notes:
            notes.upsert(DOCUMENTS)
            assert notes.search("note 17", 1).ids == ["d17"]
        with Collection.open(tmp_path / "c") as notes:
            assert notes.search("note 18", 1).ids == ["d18"]


def test_a_server_that_moves_is_found_by_its_new_address(app: EmbeddingsApp, url: str, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals={"dense": _signal(f"{url}/v1")}) as notes:
        notes.upsert(DOCUMENTS)
    with (
        serving(app) as elsewhere,
        Collection.open(tmp_path / "c", signals={"dense": _signal(f"{elsewhere}/v1")}) as notes,
    ):
        assert notes.search("note 17", 1).ids == ["d17"]


def _signal(url: str, **settings: Any) -> Signal[Any]:
    return Signal(RemoteEncoder(url, "hashed", limits=Limits(retries=0, batch_texts=16), **settings), FlatIndex())


def _shifted(row: Any) -> Any:
    return np.roll(row, 1)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [(_shifted, False), (lambda row: row * np.float32(1.1), False), (lambda row: row + np.float32(1e-5), True)],
)
def test_a_model_that_was_changed_under_its_name_is_seen_when_the_collection_is_opened(
    url: str, app: EmbeddingsApp, tmp_path: Path, change: Callable[[Any], Any], allowed: bool
) -> None:
    class Changed(HashEncoder):
        def encode_document(self, texts: Any, /) -> Any:
            encoded = super().encode_document(texts)
            return type(encoded)(
                np.array(list(map(change, encoded.embeddings))), encoded.token_counts, encoded.truncated
            )

    with Collection.open(tmp_path / "c", signals={"dense": _signal(f"{url}/v1")}) as notes:
        notes.upsert(DOCUMENTS)
    other = EmbeddingsApp(Changed(4096), model="hashed")

    async def swapped(request: Request) -> Reply | None:
        return other.answer(request)

    app.before = swapped
    if allowed:
        Collection.open(tmp_path / "c").close()
    else:
        with pytest.raises(FingerprintMismatch, match="another embedding for the canary text"):
            Collection.open(tmp_path / "c")


@pytest.mark.parametrize("noise", [1e-5, 0.2])
def test_noise_in_sparse_weights_is_no_other_model(tmp_path: Path, noise: float) -> None:
    class Noisy(HashWeights):
        def encode_document(self, texts: Any, /) -> Any:
            encoded = super().encode_document(texts)
            encoded.embeddings.weights[:] += np.float32(noise)
            return encoded

    before: Encoder[Any] = HashWeights(512)
    app = EmbeddingsApp(before, model="hashed")
    with serving(app) as url:
        signals = {"sparse": Signal(RemoteSparseEncoder(url, dim=512), InvertedIndex())}
        Collection.open(tmp_path / "c", signals=signals).close()
        noisy = EmbeddingsApp(Noisy(512), model="hashed")
        noisy.revision = app.revision

        async def swapped(request: Request) -> Reply | None:
            return noisy.answer(request)

        app.before = swapped
        if noise < 1e-3:
            Collection.open(tmp_path / "c").close()
        else:
            with pytest.raises(FingerprintMismatch, match="another embedding for the canary text"):
                Collection.open(tmp_path / "c")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Reply(503, {"error": "no memory"}), ServerUnavailable),
        (Reply(200, {"model": "hashed", "data": []}), InvalidResponse),
        (httpx.ReadError("gone"), ServerUnavailable),
    ],
)
def test_a_server_that_fails_halfway_leaves_the_collection_as_it_was(
    app: EmbeddingsApp, tmp_path: Path, fault: Reply | Exception, error: type[Exception]
) -> None:
    async def failing(request: Request) -> Reply | None:
        if "note 50 on merging sorted lists" not in request.body["input"]:
            return None
        if isinstance(fault, Exception):
            raise fault
        return fault

    signal = _signal("http://server/v1")
    signal.encoder.transport = httpx.ASGITransport(app)  # type: ignore[attr-defined]
    with Collection.open(tmp_path / "c", signals={"dense": signal}) as notes:
        notes.upsert(DOCUMENTS[:10])
        app.before = failing
        with pytest.raises(error, match=r"texts\["):
            notes.upsert(DOCUMENTS)
        app.before = None
        assert notes.verify().problems == ()
        assert len(notes) == 10
        notes.upsert(DOCUMENTS)
        assert len(notes) == 60
        assert notes.search("note 50", 1).ids == ["d50"]
