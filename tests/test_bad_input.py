"""Bad input gets a clear error that names what and how to fix it, and nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    DiskFull,
    DuplicateId,
    EmptyText,
    FilterError,
    InvalidInput,
    NewerFormat,
    NotFound,
    ReadOnly,
    ReperioError,
    ShapeError,
    StorageError,
    WriterBusy,
)
from reperio.fusion import Convex
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.flat import FlatIndex
from reperio.types import Encoded

KEPT = [Document("a", "a walrus on the ice", {"year": 2020}), Document("b", "a seal in the sea", {"year": 2021})]


def signals() -> dict[str, Signal[Any]]:
    return {"dense": Signal(HashEncoder(32), FlatIndex("cosine"))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(KEPT)
    return tmp_path / "c"


def intact(path: Path) -> bool:
    with Collection.open(path, mode="r") as c:
        return list(c.documents()) == KEPT and c.verify().ok and c.search("walrus", 1).ids == ["a"]


BAD_DOCUMENTS: list[tuple[list[Any], type[ReperioError], str]] = [
    ([Document("x", "")], EmptyText, "'x' has no text"),
    ([Document("x", " \n\t")], EmptyText, "'x'"),
    ([Document("x", "1"), Document("y", "2"), Document("x", "3")], DuplicateId, "document 5 and as document 7"),
    ([Document(7, "text")], InvalidInput, r"7, is a int.*str\(key\)"),  # type: ignore[arg-type]
    ([Document("", "text")], InvalidInput, "document 5 is ''"),
    ([Document("a\0b", "text")], InvalidInput, "no NUL"),
    ([Document("x", "t", {"n": "a\0b"})], InvalidInput, "'n' holds a NUL"),
    ([Document("x", None)], InvalidInput, "NoneType"),  # type: ignore[arg-type]
    ([Document("x", b"bytes")], InvalidInput, "bytes"),  # type: ignore[arg-type]
    (["a text"], InvalidInput, "not a Document"),
    ([Document("x", "t", {"n": float("nan")})], InvalidInput, "'n' is nan"),
    ([Document("x", "t", {"n": 2**63})], InvalidInput, "64 bits"),
    ([Document("x", "t", {"n": b"b"})], InvalidInput, "'n' is a bytes"),  # type: ignore[dict-item]
    ([Document("x", "t", {"n": {1: 2}})], InvalidInput, "key 1 is not a string"),  # type: ignore[dict-item]
    ([Document("x", "half \ud800")], InvalidInput, "position 5"),
]


@pytest.mark.parametrize(("bad", "error", "words"), BAD_DOCUMENTS, ids=[b[2] for b in BAD_DOCUMENTS])
def test_a_bad_document_is_refused_before_anything_is_written(
    path: Path, bad: list[Any], error: type[ReperioError], words: str
) -> None:
    good = [Document(f"g{i}", f"good {i}") for i in range(5)]
    with Collection.open(path) as c, pytest.raises(error, match=words):
        c.upsert([*good, *bad], batch_size=2)
    assert intact(path)


def test_a_stream_keeps_the_batches_before_the_bad_one(path: Path) -> None:
    def stream() -> Iterator[Document]:
        yield from (Document(f"g{i}", f"good {i}") for i in range(10))
        yield Document("g3", "the third again")

    with Collection.open(path) as c:
        with pytest.raises(DuplicateId, match="'g3' occurs twice"):
            c.upsert(stream(), batch_size=4)
        assert c.count() == 2 + 8
        assert c.get("g3") == Document("g3", "good 3")


def test_an_empty_batch_is_no_error(path: Path) -> None:
    with Collection.open(path) as c:
        assert c.upsert([]).added == 0
        assert c.delete([]) == 0
        assert c.search([], 3) == []
    assert intact(path)


def test_a_bare_string_is_no_batch(path: Path) -> None:
    with Collection.open(path) as c:
        with pytest.raises(InvalidInput, match="bare string"):
            c.upsert("abc")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="bare string"):
            c.delete("a")
        with pytest.raises(InvalidInput, match=r"upsert\(\[document\]\)"):
            c.upsert(Document("x", "text"))  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=r"fusion is 'rrf'"):
            c.search("walrus", fusion="rrf")  # type: ignore[call-overload]
    assert intact(path)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.full((2, 4), np.nan), "row 0, holds NaN"),
        (np.array([[0, 0, 0, 1.0], [0, np.inf, 0, 0]]), "row 1, holds NaN or infinity"),
        (np.zeros((2, 5)), "5 dimensions, expected 4"),
        (np.zeros((3, 4)), "3 vectors were given to 'dense' for 2 documents"),
        (np.zeros(8), "shape"),
        (np.array([["a"] * 4] * 2), "dtype"),
    ],
)
def test_bad_vectors_are_refused_before_anything_is_written(tmp_path: Path, vectors: Any, words: str) -> None:
    given = {"dense": Signal(GivenVectors(4), FlatIndex("ip"))}
    with Collection.open(tmp_path / "c", signals=given) as c:
        with pytest.raises(InvalidInput, match=words):
            c.upsert(KEPT, embeddings={"dense": vectors})
        assert c.count() == 0
        c.upsert(KEPT, embeddings={"dense": np.eye(4, dtype=np.float32)[:2]})
        with pytest.raises(ShapeError):
            c.search(
                ["?", "?"], embeddings={"dense": vectors[:2] if vectors.ndim == 2 and len(vectors) == 2 else vectors}
            )
        with pytest.raises(InvalidInput, match="No signal 'denser'"):
            c.upsert(KEPT, embeddings={"denser": np.eye(4, dtype=np.float32)[:2]})
        with pytest.raises(InvalidInput, match="iterator"):
            c.upsert(iter(KEPT), embeddings={"dense": np.eye(4, dtype=np.float32)[:2]})
        with pytest.raises(ReperioError, match="embeddings="):
            c.search("walrus")


def test_an_id_that_is_not_a_string_is_refused_everywhere(path: Path) -> None:
    with Collection.open(path) as c:
        calls: list[Callable[[], object]] = [
            lambda: c.delete([7]),  # type: ignore[list-item]
            lambda: c.get(7),  # type: ignore[arg-type]
            lambda: c.explain("walrus", 7),  # type: ignore[arg-type]
        ]
        for call in calls:
            with pytest.raises(InvalidInput, match=r"id, 7, is a int.*str\(key\)"):
                call()
    assert intact(path)


def test_k_must_be_positive_and_may_exceed_the_collection(path: Path) -> None:
    with Collection.open(path, mode="r") as c:
        for k in (0, -3, True, 2.5):
            with pytest.raises(InvalidInput, match="k is"):
                c.search("walrus", k)  # type: ignore[arg-type]
        for k in (1000, 10**11, 2**70):
            assert len(c.search("walrus", k)) == 2


def test_a_bad_query_is_refused(path: Path) -> None:
    with Collection.open(path, mode="r") as c:
        with pytest.raises(EmptyText, match="Query 1"):
            c.search(["walrus", "  "])
        with pytest.raises(InvalidInput, match="Query 0 is a int"):
            c.search([3])  # type: ignore[list-item]
        with pytest.raises(FilterError, match=r"'yaer'.*Known fields: year"):
            c.search("walrus", where=Field("yaer") == 2020)
        with pytest.raises(FilterError, match="'2020' is a string, the field holds numbers"):
            c.search("walrus", where=Field("year") == "2020")
        with pytest.raises(ConfigurationError, match=r"no signal 'bm52'.*There are: dense"):
            c.search("walrus", signals=["bm52"])
        with pytest.raises(InvalidInput, match="at least one name"):
            c.search("walrus", signals=[])
        with pytest.raises(InvalidInput, match="where is a str"):
            c.search("walrus", where="year > 2020")  # type: ignore[call-overload]
        with pytest.raises(FilterError, match="beyond 64 bits"):
            c.search("walrus", where=Field("year") < 2**70)
        with pytest.raises(ConfigurationError, match="no signal 'densee'"):
            c.search("walrus", fusion=Convex(weights={"densee": 1}))
        with pytest.raises(ConfigurationError, match="nprobe"):
            c.search("walrus", options={"dense": {"nprobe": 3}})


def test_a_collection_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="mode='rw' to create"):
        Collection.open(tmp_path / "nothing", mode="r")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ConfigurationError, match="mode is 'w'"):
        Collection.open(tmp_path / "nothing", mode="w")  # type: ignore[arg-type]


def test_a_second_writer_is_refused_and_told_who_writes(path: Path) -> None:
    with Collection.open(path) as c:
        with pytest.raises(WriterBusy, match=f"process {os.getpid()}"):
            Collection.open(path)
        code = f"from reperio import Collection; Collection.open({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "WriterBusy" in other.stderr
        assert c.upsert([Document("c", "more")]).added == 1
        c.delete(["c"])
    Collection.open(path).close()


def test_a_reader_cannot_write(path: Path) -> None:
    with Collection.open(path, mode="r") as c:
        calls: list[Callable[[], object]] = [
            lambda: c.upsert(KEPT),
            lambda: c.delete(["a"]),
            c.checkpoint,
            c.compact,
            lambda: c.reindex("dense", FlatIndex()),
            lambda: c.rollback("dense"),
        ]
        for call in calls:
            with pytest.raises(ReadOnly, match="mode='rw'"):
                call()


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "manifest", "current"])
def test_a_damaged_checkpoint_costs_a_rebuild_and_no_data(path: Path, damage: str) -> None:
    folder = path / "indexes" / "dense"
    generation = folder / json.loads((folder / "CURRENT").read_text())["generation"]
    victim = max((p for p in generation.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif damage == "altered":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "missing":
        victim.unlink()
    elif damage == "manifest":
        (generation / "manifest.json").write_text("{")
    else:
        (folder / "CURRENT").write_text("{")
    with Collection.open(path, mode="r") as c:
        assert c.search("walrus", 1).ids == ["a"]
        assert c.verify().ok == (damage == "current")
    with Collection.open(path) as c:  # a writer mends it
        c.search("walrus")
    assert intact(path)


def test_a_damaged_database_is_named(path: Path) -> None:
    store = path / "store.sqlite"
    data = store.read_bytes()
    store.write_bytes(b"not a database at all" + data[21:])
    with pytest.raises(CorruptArtifact, match=r"store\.sqlite"):
        Collection.open(path, mode="r")
    store.write_bytes(data)
    assert intact(path)


def test_bytes_altered_inside_the_database_are_found_by_verify(path: Path) -> None:
    with Collection.open(path) as c:
        c.upsert([Document(str(i), f"filler {i} " * 50) for i in range(200)])
    connection = sqlite3.connect(path / "store.sqlite")
    connection.execute("DELETE FROM embeddings WHERE key = (SELECT min(key) FROM embeddings)")
    connection.commit()
    with Collection.open(path, mode="r") as c:
        assert "no stored embedding" in "\n".join(c.verify().problems)
    connection.execute("UPDATE embeddings SET value = x'00' WHERE key = (SELECT max(key) FROM embeddings)")
    connection.commit()
    connection.close()
    with Collection.open(path, mode="r") as c:
        assert "an embedding of row 202 was altered" in "\n".join(c.verify().problems)


def test_a_text_altered_inside_the_database_is_found_by_verify(path: Path) -> None:
    connection = sqlite3.connect(path / "store.sqlite")
    connection.execute("UPDATE documents SET text = 'a walrus on the moon' WHERE id = 'a'")
    connection.commit()
    connection.close()
    with Collection.open(path, mode="r") as c:
        assert "document 'a' was altered" in "\n".join(c.verify().problems)


def test_a_closed_collection_says_that_it_is_closed(path: Path) -> None:
    with Collection.open(path, mode="r") as c:
        late = c.search("walrus", 1)
    for call in (lambda: list(late), c.count, lambda: c.search("walrus")):
        with pytest.raises(StorageError, match="is closed"):
            call()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(StorageError, match="in the way"):
        Collection.open(tmp_path / "c")


def test_an_index_that_cannot_take_the_encoder_is_refused_when_the_collection_is_made(tmp_path: Path) -> None:
    wrong: dict[str, Signal[Any]] = {"dense": Signal(HashEncoder(32), BM25Index())}  # type: ignore[arg-type]
    with pytest.raises(ReperioError):
        Collection.open(tmp_path / "c", signals=wrong)


def test_an_encoder_that_gives_nan_is_caught_before_the_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collection.open(path) as c:
        with monkeypatch.context() as patch:

            def broken(self: HashEncoder, texts: Sequence[str], /) -> Encoded[Any]:
                vectors = np.full((len(texts), 32), np.nan, np.float32)
                return Encoded(vectors, np.zeros(len(texts), np.int64), np.zeros(len(texts), np.bool_))

            patch.setattr(HashEncoder, "encode_document", broken)
            with pytest.raises(ShapeError, match="holds NaN"):
                c.upsert([Document("new", "text")])
        assert c.get("new") is None
    assert intact(path)


def test_a_newer_format_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path / "store.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for mode in ("r", "rw"):
        with pytest.raises(NewerFormat, match=r"format 99.*Upgrade"):
            Collection.open(path, mode=mode)  # type: ignore[arg-type]


def test_another_database_is_not_a_collection(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    connection = sqlite3.connect(tmp_path / "c" / "store.sqlite")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(CorruptArtifact, match="not a collection"):
        Collection.open(tmp_path / "c")


def in_child(work: Callable[[], None], *, user: int | None = None) -> str:
    """Run in a forked child, unprivileged where we are root; gives what it wrote."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            if user is not None and os.getuid() == 0:
                os.setgid(user)
                os.setuid(user)
            work()
            os.write(write, b"fine")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


NOBODY = 65534


def test_a_read_only_disk_can_be_read_and_says_so_when_written(path: Path) -> None:
    parents = [path, *path.rglob("*")]
    for parent in path.parents:  # the temporary folders, which only their owner may enter
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    for p in parents:
        p.chmod(0o555 if p.is_dir() else 0o444)
    try:
        assert "ReadOnly" in in_child(lambda: Collection.open(path).close(), user=NOBODY)

        def read() -> None:
            with Collection.open(path, mode="r") as c:
                assert c.search("walrus", 1).ids == ["a"]
                assert c.verify().ok

        assert in_child(read, user=NOBODY) == "fine"
    finally:
        for p in parents:
            p.chmod(0o755 if p.is_dir() else 0o644)
    assert intact(path)


def test_a_full_disk_in_the_middle_of_a_commit_loses_nothing(path: Path) -> None:
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Collection.open(path) as c:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            c.upsert([Document(f"x{i}", f"filler {i} " * 200) for i in range(2000)], batch_size=50, progress=False)

    said = in_child(fill)
    assert said.startswith("DiskFull"), said
    assert "Free some space" in said
    with Collection.open(path) as c:
        kept = c.count()
        assert kept >= 2
        assert (kept - 2) % 50 == 0  # whole batches, as acknowledged
        assert c.verify().ok
        c.delete([f"x{i}" for i in range(2000)])
        c.compact()
    assert intact(path)


def test_a_full_disk_during_a_checkpoint_loses_nothing(path: Path) -> None:
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Collection.open(path) as c:
            c.upsert([Document(f"x{i}", f"filler {i}") for i in range(500)], progress=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            c.checkpoint()

    assert in_child(fill).startswith("DiskFull")
    with Collection.open(path) as c:
        assert c.count() == 502
        assert c.verify().ok
        assert not list((path / "indexes").rglob("*.tmp"))
        c.delete([f"x{i}" for i in range(500)])
    assert intact(path)


def test_the_database_itself_says_when_it_is_full(path: Path) -> None:
    with Collection.open(path) as c:
        c._store._connection.execute("PRAGMA max_page_count = 30")
        with pytest.raises(DiskFull):
            c.upsert([Document(f"x{i}", f"filler {i} " * 500) for i in range(200)], batch_size=200)
        assert c.count() == 2
        assert c.get("a") == KEPT[0]
    assert intact(path)
