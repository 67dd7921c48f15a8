"""Embeddings kept by content: the same as before, never another's, whatever happens to the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, meter
from reperio.embeddings import to_bytes
from reperio.encoders import BM25Encoder, CachedEncoder, DenseSum, HashEncoder, HashWeights, HashWords
from reperio.encoders import cached as module
from reperio.errors import ConfigurationError, CorruptArtifact, EmptyText, NewerFormat, TruncationError
from reperio.indexes import BM25Index, FlatIndex
from reperio.models.language_model import LanguageModel
from reperio.signals import Signal
from reperio.testing.encoder import TEXTS, EncoderContract
from reperio.types import Encoded, Fingerprint

WORDS = [f"text {number} of many, about {['merge', 'sort', 'heap', 'queue'][number % 4]}" for number in range(300)]


class TestCachedEncoder(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self, tmp_path: Path) -> CachedEncoder[Any]:
        return CachedEncoder(HashEncoder(1024), tmp_path / "cache.db")


class Two(HashEncoder):
    """Roles that differ, texts that are cut, and a record of what was asked."""

    def __init__(self, dim: int = 64, *, name: str = "two") -> None:
        super().__init__(dim)
        self.name = name
        self.asked: list[str] = []

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint.make("dense", "two", self.dim, name=self.name)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Any]:
        found = self.encode_document(texts)
        return Encoded(-found.embeddings, found.token_counts + 100, found.truncated)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Any]:
        self.asked += texts
        bad = [position for position, text in enumerate(texts) if text == "untokenizable"]
        if bad:
            raise EmptyText(f"texts[{bad[0]}] is {texts[bad[0]]!r}: it has no token.", "Drop it.")
        found = super()._encode(texts)
        return Encoded(found.embeddings, found.token_counts, found.token_counts > 6)


@pytest.mark.parametrize("inner", [HashEncoder(), HashWeights(), HashWords(), BM25Encoder(), Two()])
def test_what_is_kept_is_what_was_made_to_the_bit(inner: Any, tmp_path: Path) -> None:
    cached = CachedEncoder(inner, tmp_path / "cache.db")
    for encode, plain in ((cached.encode_query, inner.encode_query), (cached.encode_document, inner.encode_document)):
        wanted = plain(TEXTS)
        for _ in range(2):
            found = encode(TEXTS)
            assert to_bytes(found.embeddings) == to_bytes(wanted.embeddings)
            assert found.token_counts.tolist() == wanted.token_counts.tolist()
            assert found.truncated.tolist() == wanted.truncated.tolist()


def test_no_text_is_encoded_twice_in_one_batch_or_another_process(tmp_path: Path) -> None:
    inner = Two()
    with meter.measure() as counts:
        CachedEncoder(inner, tmp_path / "cache.db").encode_document(["a b", "c d", "a b"])
        again = CachedEncoder(inner, tmp_path / "cache.db").encode_document(["c d", "e f"])
    assert inner.asked == ["a b", "c d", "e f"]
    assert (counts["cache_hits"], counts["cache_misses"]) == (1, 3)
    assert np.array_equal(again.embeddings, Two().encode_document(["c d", "e f"]).embeddings)


def test_another_encoder_finds_nothing_of_this_one(tmp_path: Path) -> None:
    first, second = Two(name="first"), Two(name="second")
    for inner in (first, second):
        CachedEncoder(inner, tmp_path / "cache.db").encode_document(WORDS[:3])
    assert second.asked == WORDS[:3]


def test_what_one_encoder_cut_and_kept_is_told_by_one_that_warns_and_refused_by_one_that_refuses(
    tmp_path: Path, plain_llama: Path
) -> None:
    def cached(on_truncation: Any, *, parts: int = 1) -> CachedEncoder[Any]:
        one = model.encoder(max_tokens=8, on_truncation=on_truncation)
        parted = {str(number): one for number in range(parts)}
        return CachedEncoder(one if parts == 1 else DenseSum(parted), tmp_path / "cache.db")

    model = LanguageModel(plain_llama)
    for parts in (1, 2):  # a setting of the encoder's own, and of what it is made of
        with pytest.warns(UserWarning, match="1 of 2 texts were cut to 8 tokens"):
            wanted = cached("warn", parts=parts).encode_document(["short", TEXTS[0]])
        with pytest.raises(TruncationError, match=r"texts\[1\] has \d+ tokens"):
            cached("error", parts=parts).encode_document(["short", TEXTS[0]])
        with (
            pytest.warns(UserWarning, match="2 of 3 texts were cut, and are kept so") as told,
            meter.measure() as counts,
        ):
            found = cached("warn", parts=parts).encode_document([TEXTS[0], "short", TEXTS[0]])
        assert told[0].filename == __file__
        assert (counts["cache_hits"], counts["cache_misses"], counts["truncated"]) == (3, 0, 2)
        np.testing.assert_array_equal(found.embeddings, wanted.embeddings[[1, 0, 1]])


def test_what_an_encoder_cut_that_does_not_say_whether_it_warns_is_encoded_again(tmp_path: Path) -> None:
    inner = Two()
    cached = CachedEncoder(inner, tmp_path / "cache.db")
    for _ in range(2):
        assert cached.encode_document(["a b", TEXTS[0]]).truncated.tolist() == [False, True]
    assert inner.asked == ["a b", TEXTS[0], TEXTS[0]]


def test_an_error_names_the_position_in_the_whole_batch(tmp_path: Path) -> None:
    cached = CachedEncoder(Two(), tmp_path / "cache.db")
    cached.encode_document(["one", "two"])
    with pytest.raises(EmptyText, match=r"texts\[3\] is 'untokenizable'"):
        cached.encode_document(["one", "new", "two", "untokenizable"])


COLUMNS = st.sampled_from(["value", "tokens", "cut", "seal"])


@given(column=COLUMNS, to=st.one_of(st.binary(max_size=300), st.integers(-5, 9), st.just("text")))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_altered_row_is_seen_and_encoded_again(tmp_path: Path, column: str, to: object) -> None:
    inner = Two()
    cached = CachedEncoder(inner, tmp_path / "cache.db")
    wanted = cached.encode_document(["a b", "c d"])
    with sqlite3.connect(tmp_path / "cache.db") as database:
        key, before = database.execute(f"SELECT key, {column} FROM rows ORDER BY key").fetchone()
        database.execute(f"UPDATE rows SET {column} = ? WHERE key = ?", (to, key))
    database.close()
    with meter.measure() as counts:
        found = cached.encode_document(["a b", "c d"])
    cached.close()
    changed = before != to
    assert counts["cache_damaged"] == counts["cache_misses"] == changed
    assert np.array_equal(found.embeddings, wanted.embeddings)
    assert found.token_counts.tolist() == wanted.token_counts.tolist()
    assert found.truncated.tolist() == wanted.truncated.tolist()


def test_it_stays_below_its_bound_and_what_was_used_last_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOUCH", 0.0)
    bound = module.SMALLEST
    inner = Two(1024)  # 4 KiB a row
    cached = CachedEncoder(inner, tmp_path / "cache.db", max_bytes=bound)
    for at in range(0, 300, 25):
        cached.encode_document(WORDS[at : at + 25])
        cached.encode_document(WORDS[:5])
    cached.close()
    assert bound / 2 < (tmp_path / "cache.db").stat().st_size < bound + 200_000
    inner.asked.clear()
    cached.encode_document(WORDS[:5])
    assert inner.asked == []
    cached.encode_document(WORDS[30:60])
    assert len(inner.asked) == 30


WRITER = """
import sys
from reperio.encoders import CachedEncoder, HashEncoder
cached = CachedEncoder(HashEncoder(64), sys.argv[1])
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    cached.encode_document([f"text {number % 2000}" for number in range(turn * 7, turn * 7 + 40)])
"""


def test_processes_share_it_and_one_that_is_killed_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    start: Callable[[int], Any] = lambda turns: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", WRITER, str(path), str(turns)], stdout=subprocess.PIPE
    )
    killed, others = start(10**6), [start(60), start(60)]
    for process in (killed, *others):
        process.stdout.readline()
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert [process.wait() for process in others] == [0, 0]
    for process in (killed, *others):
        process.stdout.close()
    texts = [f"text {number}" for number in range(450)]
    with meter.measure() as counts:
        found = CachedEncoder(HashEncoder(64), path).encode_document(texts)
    assert np.array_equal(found.embeddings, HashEncoder(64).encode_document(texts).embeddings)
    assert counts["cache_hits"] == 450
    assert counts["cache_damaged"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_a_connection_of_its_own(tmp_path: Path) -> None:
    cached = CachedEncoder(HashEncoder(64), tmp_path / "cache.db")
    cached.encode_document(["before"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that threads do not live on in a child
        child = os.fork()
    if child == 0:
        with meter.measure() as counts:
            cached.encode_document(["before", "in the child"])
        os._exit(10 * counts["cache_hits"] + counts["cache_misses"])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11
    with meter.measure() as counts:
        cached.encode_document(["before", "in the child"])
    assert counts["cache_hits"] == 2


def test_a_spoilt_file_is_told_once_and_encoding_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    cached = CachedEncoder(HashEncoder(), path)
    cached.encode_document(WORDS)
    cached.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match="The cache of embeddings fails.*delete it") as told:
        found = [cached.encode_document(WORDS[:50]) for _ in range(2)]
    assert len(told) == 1
    assert told[0].filename == __file__
    assert np.array_equal(found[1].embeddings, HashEncoder().encode_document(WORDS[:50]).embeddings)


def test_what_is_no_cache_of_this_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at. " * 40)
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE mine (x)")
    newer = CachedEncoder(HashEncoder(), tmp_path / "newer")
    newer.encode_document(["a"])
    newer.close()
    with sqlite3.connect(tmp_path / "newer") as again:
        again.execute(f"PRAGMA user_version = {module.FORMAT + 1}")
    for open_one in (database, again):
        open_one.close()
    before = (tmp_path / "text").read_bytes()
    for name, error in (("text", CorruptArtifact), ("other", CorruptArtifact), ("newer", NewerFormat)):
        with pytest.raises(error):
            CachedEncoder(HashEncoder(), tmp_path / name).encode_document(["a"])
    assert (tmp_path / "text").read_bytes() == before


def test_a_bound_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes is 1000"):
        CachedEncoder(HashEncoder(), tmp_path / "cache.db", max_bytes=1000)


def test_a_collection_does_not_care_that_it_was_cached(tmp_path: Path) -> None:
    def signals(cache: bool) -> dict[str, Signal[Any]]:
        encoders: list[Any] = [HashEncoder(64), BM25Encoder()]
        dense, words = (CachedEncoder(e, tmp_path / "cache.db") if cache else e for e in encoders)
        return {"dense": Signal(dense, FlatIndex()), "bm25": Signal(words, BM25Index())}

    documents = [Document(str(i), text) for i, text in enumerate(WORDS[:20])]
    with Collection.open(tmp_path / "notes", signals=signals(cache=True)) as collection:
        collection.upsert(documents)
        assert collection.explain("heap", "2").signals["bm25"].terms[0].term == "heap"
        found = collection.search("merge heap").ids
    with Collection.open(tmp_path / "notes", signals=signals(cache=False)) as collection:
        assert collection.search("merge heap").ids == found
