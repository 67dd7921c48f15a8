"""A collection that was moved is the same, to the byte, and finds the same."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from reperio import Collection, Document, Field, Signal, migrate
from reperio.embeddings import MultiVector, to_bytes
from reperio.encoders import BM25Encoder, GivenVectors, HashEncoder
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    DiskFull,
    NotFound,
    ReperioError,
    WriterBusy,
)
from reperio.indexes import BM25Index, FaissIndex, FlatIndex, MilvusIndex, MultiVectorIndex, PgvectorIndex, QdrantIndex
from reperio.protocols import Spec
from reperio.stores.sqlite import SQLiteStore
from reperio.testing.moving import some, trials
from reperio.types import Encoded, Fingerprint

TOPICS = ["document about topic3", "version topic9 d44"]


class Gone(HashEncoder):
    """An encoder that no other process has, and that cuts every third text."""

    @property
    def spec(self) -> Spec:
        return {"type": "Gone"}

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Any]:
        plain = super().encode_document(texts)
        return Encoded(plain.embeddings, plain.token_counts, np.array([len(t) % 3 == 0 for t in texts]))


def signals(index: Any = None, **more: Signal[Any]) -> dict[str, Signal[Any]]:
    dense = Signal(Gone(32), FaissIndex() if index is None else index)
    return {"bm25": Signal(BM25Encoder(), BM25Index(), stored=False), "dense": dense, **more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """200 documents; ten were replaced, and ten deleted."""
    with Collection.open(tmp_path / "source", signals=signals()) as collection:
        collection.upsert(some(200), batch_size=64, progress=False)
        collection.upsert([Document(f"d{i}", f"document {i} quite another") for i in range(10)], progress=False)
        collection.delete([f"d{i}" for i in range(20, 30)])
    return tmp_path / "source"


def stored(folder: Path) -> dict[str, Any]:
    """All that a store holds, past the code that moves it."""
    store = SQLiteStore(folder / "store.sqlite", mode="r")
    rows = store.matching(None)
    vectors = {name: store.vectors(number, rows) for name, (number, _) in store.signals().items()}
    documents = zip(rows.tolist(), store.fetch(rows), strict=True)
    out = {d.id: (d, {name: held.get(row) for name, held in vectors.items()}) for row, d in documents}
    configs = {n: {k: v for k, v in c.items() if k not in ("index", "origin")} for n, (_, c) in store.signals().items()}
    store.close()
    return {"documents": out, "order": list(out), "configs": configs}


def test_everything_is_moved_to_the_byte_with_no_encoder(source: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    report = migrate(source, tmp_path / "target", batch_size=32, progress=False)
    assert report.ok
    assert (report.documents, report.added, report.unchanged, report.removed) == (190, 190, 0, 0)
    assert report.digests[0] == report.digests[1]
    assert stored(tmp_path / "target") == stored(source)
    assert report.signals["dense"].embeddings == 190
    assert (
        report.signals["dense"].truncated
        == sum(len(d.text) % 3 == 0 for d, _ in stored(source)["documents"].values())
        > 9
    )
    for moved in report.signals.values():
        assert moved.agreement is not None
        assert moved.agreement.exact
        assert (moved.agreement.source, moved.agreement.target) == (1, 1)
    with Collection.open(source, mode="r") as a, Collection.open(tmp_path / "target", signals=signals()) as b:
        for k, where in ((5, None), (200, None), (9, Field("n") < 10)):
            for x, y in zip(
                a.search(TOPICS, k, where=where, signals=["bm25"]),
                b.search(TOPICS, k, where=where, signals=["bm25"]),
                strict=True,
            ):
                assert x.ids == y.ids
                np.testing.assert_allclose(x.scores, y.scores, rtol=1e-5)
        assert (
            b.upsert(some(200)[100:], progress=False).encoded == {}
        )  # token counts came too: nothing is encoded again
    assert {p: p.read_bytes() for p in before} == before


def test_a_target_that_is_whole_is_compared_and_never_changed(source: Path, tmp_path: Path) -> None:
    migrate(source, tmp_path / "target", progress=False)
    again = migrate(source, tmp_path / "target", progress=False)
    assert again.ok
    assert (again.added, again.unchanged) == (0, 190)
    with pytest.raises(ConfigurationError, match=r"another index.*reindex"):
        migrate(source, tmp_path / "target", indexes={"dense": "HNSW16"}, progress=False)
    held = stored(tmp_path / "target")
    with Collection.open(source, signals=signals()) as collection:
        collection.upsert([Document("d1", "document 1 changed")], progress=False)
    with pytest.raises(ConfigurationError, match=r"target.*are not those of.*document 'd1'.*delete it"):
        migrate(source, tmp_path / "target", progress=False)
    with Collection.open(source, signals=signals()) as collection:
        collection.delete(["d2"])
    with pytest.raises(ConfigurationError, match=r"holds 190 documents that are not those of"):
        migrate(source, tmp_path / "target", progress=False)
    assert stored(tmp_path / "target") == held


@pytest.mark.parametrize("engine", ["milvus", "qdrant"])
def test_vectors_go_to_another_engine_and_back(source: Path, tmp_path: Path, engine: str) -> None:
    if engine == "milvus":
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
        index: Any = MilvusIndex(str(tmp_path / "rows.db"), index_type="FLAT")
    else:
        pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
        index = QdrantIndex(":memory:")
    there = migrate(source, tmp_path / "there", indexes={"dense": index}, progress=False)
    back = migrate(tmp_path / "there", tmp_path / "back", indexes={"dense": FaissIndex()}, progress=False)
    for report, kinds in ((there, ("FaissIndex", type(index).__name__)), (back, (type(index).__name__, "FaissIndex"))):
        assert report.ok
        moved = report.signals["dense"]
        assert (moved.source["type"], moved.target["type"]) == kinds
        assert moved.agreement is not None
        assert (moved.agreement.exact, moved.agreement.source, moved.agreement.target) == (True, 1, 1)
    assert stored(tmp_path / "back") == stored(tmp_path / "there") == stored(source)
    with Collection.open(tmp_path / "there", signals=signals(index)) as collection:
        assert collection.verify().problems == ()
        collection._signals["dense"].derived.index.drop()
    if engine == "milvus":
        index.close()


def test_sparse_and_several_vectors_a_document_are_moved_too(tmp_path: Path) -> None:
    class Several:
        fingerprint = Fingerprint.make("multi-vector", "several", 8)
        spec: ClassVar[dict[str, str]] = {"type": "Several"}

        def encode_document(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
            rows = [np.random.default_rng(len(t)).normal(size=(1 + len(t) % 3, 8)) for t in texts]
            offsets = np.cumsum([0, *map(len, rows)])
            made = MultiVector(np.concatenate(rows).astype(np.float32), offsets)
            return Encoded(made, np.diff(offsets), np.zeros(len(rows), np.bool_))

        encode_query = encode_document

    given = {
        "sparse": Signal(BM25Encoder(), BM25Index()),
        "several": Signal(Several(), MultiVectorIndex()),
        "given": Signal(GivenVectors(4), FlatIndex("l2")),
    }
    with Collection.open(tmp_path / "a", signals=given) as c:
        vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        c.upsert(some(50), embeddings={"given": vectors}, progress=False)
    report = migrate(tmp_path / "a", tmp_path / "b", indexes={"given": "HNSW16"}, progress=False)
    assert report.ok
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert stored(tmp_path / "b")["documents"]["d7"][1]["given"].value == to_bytes(vectors[7:8])[0]
    assert report.signals["given"].target["metric"] == "l2"
    assert all(moved.agreement is not None and moved.agreement.target == 1 for moved in report.signals.values())
    less = migrate(tmp_path / "a", tmp_path / "c", without=["several", "sparse"], progress=False)
    assert list(less.signals) == ["given"]
    assert {d: v["given"] for d, (_, v) in stored(tmp_path / "c")["documents"].items()} == {
        d: v["given"] for d, (_, v) in stored(tmp_path / "a")["documents"].items()
    }


def test_an_empty_collection_is_moved(tmp_path: Path) -> None:
    Collection.open(tmp_path / "a", signals=signals()).close()
    report = migrate(tmp_path / "a", tmp_path / "b", indexes={"dense": "HNSW16"}, progress=False)
    assert report.ok
    assert report.signals["dense"].agreement is None
    with Collection.open(tmp_path / "b", signals=signals(FaissIndex("HNSW16"))) as c:
        assert c.upsert(some(3), progress=False).added == 3


# A writer at the source


def test_the_copy_is_of_one_commit_whatever_is_written_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = stored(source)
    with Collection.open(source, signals=signals()) as writer:

        def meddle(batch: int) -> None:
            writer.upsert([Document(f"d{100 + batch}", f"document {batch} written meanwhile")], progress=False)
            writer.delete([f"d{150 + batch}"])
            writer.checkpoint()

        _at_each_batch(monkeypatch, meddle)
        report = migrate(source, tmp_path / "target", batch_size=32, progress=False)
        assert report.ok
        assert writer.seq > report.seq
    assert stored(tmp_path / "target") == wanted


def test_a_migration_that_is_taken_up_leaves_nothing_that_the_source_has_no_more(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(batch: int) -> None:
        if batch == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        _at_each_batch(patched, stop)
        with pytest.raises(KeyboardInterrupt):
            migrate(source, tmp_path / "target", batch_size=32, progress=False)
    assert not (tmp_path / "target").exists()
    with Collection.open(source, signals=signals()) as collection:
        collection.delete(["d40", "d41"])
        collection.upsert(
            [Document("d42", "document 42 anew"), Document("new", "document 999 quite new")], progress=False
        )
    report = migrate(source, tmp_path / "target", batch_size=32, indexes={"dense": "HNSW16"}, progress=False)
    assert report.ok
    assert (report.unchanged, report.added, report.removed) == (4 * 32 - 3, 189 - (4 * 32 - 3), 2)
    assert stored(tmp_path / "target") == stored(source)
    assert [p.name for p in tmp_path.iterdir() if "migrating" in p.name] == []
    with Collection.open(tmp_path / "target", signals=signals(FaissIndex("HNSW16"))) as collection:
        assert collection.stats().replaced == 0


def _at_each_batch(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    from reperio.copying import Copy

    take, batches = Copy.take, [0]

    def counted(self: Copy, entries: Any) -> None:
        call(batches[0])
        batches[0] += 1
        take(self, entries)

    monkeypatch.setattr(Copy, "take", counted)


# What does not agree


def test_an_index_that_finds_too_little_is_told_and_not_put_in_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Collection.open(tmp_path / "a", signals={"dense": Signal(GivenVectors(24), FaissIndex())}) as c:
        vectors = rng.normal(size=(3000, 24)).astype(np.float32)
        c.upsert(some(3000), embeddings={"dense": vectors}, progress=False, batch_size=3000)
    coarse = FaissIndex("IVF64,Flat", train_size=2500, options={"nprobe": 1})
    report = migrate(tmp_path / "a", tmp_path / "b", indexes={"dense": coarse}, batch_size=3000, progress=False)
    assert not report.ok
    assert "dense: FaissIndex must find 90.0%, and finds" in report.problems[0]
    assert not (tmp_path / "b").exists()
    assert report.unfinished is not None
    found = report.signals["dense"].agreement
    assert found is not None
    assert found.source == 1
    assert found.target is not None
    assert found.target < 0.9
    # The recall is that of a loop.
    with Collection.open(tmp_path / "a", signals={"dense": Signal(GivenVectors(24), FaissIndex())}) as c:
        c.reindex("dense", FaissIndex("IVF64,Flat", train_size=2500, options={"nprobe": 1}))
        asked = vectors[np.unique(np.linspace(0, 2999, 32).astype(int))]
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        best = np.argsort(-(asked @ unit.T), axis=1)[:, :10]
        got = c.search(["?"] * 32, 10, embeddings={"dense": asked})
        hits = [len({f"d{i}" for i in b} & set(r.ids)) for b, r in zip(best.tolist(), got, strict=True)]
        assert found.target == pytest.approx(sum(hits) / 320, abs=0.02)
        c.rollback("dense")
    again = migrate(tmp_path / "a", tmp_path / "b", indexes={"dense": coarse}, recall=0.1, progress=False)
    assert again.ok
    assert again.unchanged == 3000
    back = migrate(tmp_path / "b", tmp_path / "c", progress=False)  # no worse than what it comes from
    assert back.ok


def test_rows_under_the_wrong_ids_are_found_out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = FlatIndex.add

    def crossed(self: FlatIndex, ids: Any, embeddings: Any, /) -> None:
        # The exact scan adds row by batch too: only the index with all of them is wrong.
        add(self, ids, embeddings if len(ids) < 190 else embeddings[::-1])

    monkeypatch.setattr(FlatIndex, "add", crossed)
    report = migrate(source, tmp_path / "target", indexes={"dense": FlatIndex()}, batch_size=32, progress=False)
    assert not report.ok
    assert "dense: the target scores document 'd" in report.problems[0]
    assert not (tmp_path / "target").exists()


def test_a_copy_that_is_not_the_same_is_told_with_the_document(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = SQLiteStore.vectors

    def bent(self: SQLiteStore, signal: int, rows: Any, /) -> Any:
        found = vectors(self, signal, rows)
        if "migrating" in str(self.path):
            for row, vector in found.items():
                if row == 33:
                    found[row] = type(vector)(bytes(len(vector.value)), vector.tokens, vector.truncated)
        return found

    monkeypatch.setattr(SQLiteStore, "vectors", bent)
    report = migrate(source, tmp_path / "target", progress=False)
    assert report.problems[0].startswith("the digests differ: document 'd")
    assert not (tmp_path / "target").exists()


# Faults


def test_a_killed_migration_goes_on_and_leaves_the_source_as_it_was(tmp_path: Path) -> None:
    seen = list(trials(tmp_path / "here", 4, lambda n: str(tmp_path / f"target{n}"), seed=3, documents=300))
    assert [trial.problems for trial in seen] == [()] * 4
    assert any(trial.died and trial.unchanged for trial in seen)


@pytest.mark.parametrize("room", [300_000, 12_000], ids=["in the copy", "at the start"])
def test_a_full_disk_leaves_the_source_and_what_was_copied(source: Path, tmp_path: Path, room: int) -> None:
    before = (source / "store.sqlite").read_bytes()
    code = f"from reperio import migrate; migrate({str(source)!r}, {str(tmp_path / 'target')!r}, batch_size=8)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DiskFull" in done.stderr.splitlines()[-1], done.stderr
    assert "Free some space" in done.stderr
    assert (source / "store.sqlite").read_bytes() == before
    assert not (tmp_path / "target").exists()
    report = migrate(source, tmp_path / "target", progress=False)
    assert report.ok
    assert (report.unchanged > 0) == (room > 100_000)
    assert stored(tmp_path / "target") == stored(source)


def test_a_full_disk_in_a_checkpoint_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FaissIndex, path: Path, /) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(FaissIndex, "save", full)
        with pytest.raises(DiskFull, match="Free some space"):
            migrate(source, tmp_path / "target", progress=False)
    report = migrate(source, tmp_path / "target", progress=False)
    assert (report.ok, report.unchanged) == (True, 190)


def test_a_damaged_document_of_the_source_is_named(source: Path, tmp_path: Path) -> None:
    store = SQLiteStore(source / "store.sqlite")
    store._connection.execute("UPDATE documents SET text = 'bent' WHERE id = 'd50'")
    store.close()
    with pytest.raises(CorruptArtifact, match=r"'d50'.*reperio verify"):
        migrate(source, tmp_path / "target", progress=False)
    assert not (tmp_path / "target").exists()


def test_a_source_whose_server_is_gone_is_moved_by_what_is_stored(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    index = QdrantIndex(":memory:")
    with Collection.open(tmp_path / "a", signals=signals(index)) as c:
        c.upsert(some(60), progress=False)
        c.checkpoint()
        c._signals["dense"].derived.index.drop()
    report = migrate(tmp_path / "a", tmp_path / "b", indexes={"dense": FaissIndex()}, progress=False)
    assert report.ok
    found = report.signals["dense"].agreement
    assert found is not None
    assert (found.reference, found.source, found.target) == ("exact scan", None, 1)


# Bad input


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"indexes": {"dens": "Flat"}}, r"no signal 'dens'.*bm25, dense"),
        ({"without": ["dens"]}, r"no signal 'dens'"),
        ({"without": "dense"}, r"bare string 'dense'"),
        ({"without": ["dense", "bm25"]}, r"No signal is left"),
        ({"without": ["dense"], "indexes": {"dense": "Flat"}}, r"'dense'.*left behind"),
        ({"indexes": {"dense": BM25Index()}}, r"'dense', BM25Index, cannot hold its dense embeddings"),
        ({"indexes": {"bm25": "Flat"}}, r"'bm25', FaissIndex, cannot hold its sparse embeddings"),
        ({"indexes": {"dense": "Flatt"}}, r"Flatt"),
        ({"indexes": {"dense": FaissIndex(metric="l2")}}, r"'l2', the source's by 'cosine'.*metric='cosine'"),
        ({"indexes": {"dense": "HashEncoder"}}, r"is a HashEncoder"),
        ({"indexes": {"dense": {"type": "FaissIndex", "factori": "Flat"}}}, r"factori"),
        ({"indexes": {"dense": {"factory": "Flat"}}}, r"names no component"),
        ({"indexes": {"dense": 7}}, r"is a int.*Give an index"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"recall": 1.5}, r"recall is 1.5"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        migrate(source, tmp_path / "target", progress=False, **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_index_of_the_source_s_database_needs_another_in_a_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"PgvectorIndex without a url.*the target is a folder.*FaissIndex"):
        migrate(source, tmp_path / "target", indexes={"dense": PgvectorIndex()}, progress=False)
    filled = FaissIndex()
    filled.add(np.array([1]), np.ones((1, 32), np.float32))
    with pytest.raises(ConfigurationError, match="holds 1 rows already"):
        migrate(source, tmp_path / "target", indexes={"dense": filled}, progress=False)


def test_a_source_or_a_target_that_is_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no collection at .*nowhere.*Check the source"):
        migrate(tmp_path / "nowhere", tmp_path / "target", progress=False)
    (tmp_path / "link").symlink_to(source)
    for target in (source, source / "inside", tmp_path / "link", f"{source}/../source"):
        with pytest.raises(ConfigurationError, match="is the source"):
            migrate(source, target, progress=False)
    shutil.copytree(source, tmp_path / "twin")
    with pytest.raises(ConfigurationError, match="or a copy of it"):
        migrate(source, tmp_path / "twin", progress=False)
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="no collection"):
        migrate(source, tmp_path / "stuff", progress=False)
    (tmp_path / "file").write_text("dear")
    with pytest.raises(ReperioError, match="file"):
        migrate(source, tmp_path / "file", progress=False)
    with Collection.open(tmp_path / "other", signals=signals()) as other:
        other.upsert(some(190), progress=False)
    with pytest.raises(ConfigurationError, match=r"other.*are not those of"):
        migrate(source, tmp_path / "other", progress=False)
    (tmp_path / "empty").mkdir()
    assert migrate(source, tmp_path / "empty", progress=False).ok


@pytest.mark.parametrize("there", [True, False], ids=["to an empty folder", "to nothing yet"])
def test_a_link_leads_to_where_the_target_is_to_be(source: Path, tmp_path: Path, there: bool) -> None:
    link, real = tmp_path / "link", tmp_path / "elsewhere" / "real"
    (real if there else real.parent).mkdir(parents=True)
    link.symlink_to(real)
    assert migrate(source, link).problems == ()
    assert link.is_symlink()
    assert [path.name for path in real.parent.iterdir()] == ["real"]
    with Collection.open(link, mode="r") as collection:
        assert collection.count() == 190
    report = migrate(source, link)
    assert (report.problems, report.added) == ((), 0)


def test_a_place_where_nothing_can_be_put_is_refused_before_anything_is_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").mkdir()

    def is_mount(path: Path) -> bool:
        return path.name == "mounted"

    monkeypatch.setattr(Path, "is_mount", is_mount)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, problem in [("mounted", "file system is mounted"), ("loop", "no collection")]:
        with pytest.raises(ConfigurationError, match=problem):
            migrate(source, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "mounted", source.name]


def test_one_migration_at_a_time_goes_to_a_target(source: Path, tmp_path: Path) -> None:
    with Collection.open(tmp_path / ".target.migrating", signals=signals()) as held:
        with pytest.raises(WriterBusy, match=r"process \d+"):
            migrate(source, tmp_path / "target", progress=False)
        held.upsert(some(3), progress=False)
    with pytest.raises(ConfigurationError, match=r"was not finished.*Finish that one"):
        migrate(source, tmp_path / "target", progress=False)
