"""Write the golden files of this format: ``python -m tests.golden.make`` in the project's folder.

Once for each format version. What is there already is kept: a release must open what an earlier one wrote, so a file
that no longer opens is a fault of the code, not of the file.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from reperio.artifacts import FORMAT
from reperio.collection import Collection
from reperio.protocols import Index, Spec, Trainable
from reperio.registry import build
from reperio.testing.kinds import KINDS, encoder, label, signals
from reperio.types import Document

HERE = Path(__file__).parent / f"format-{FORMAT}"
ROWS = 104
QUERIES = ("notes about topic3 and word12", "word40 in chapter 5", "topic1 word1")
COLLECTION = "collection"
LIBRARIES = {
    **dict.fromkeys(("FaissIndex", "BinaryIndex", "TransformedIndex"), "faiss-cpu"),
    "HnswlibIndex": "hnswlib",
    "UsearchIndex": "usearch",
    "SeismicIndex": "pyseismic-lsr",
}
"""Whose files a golden file holds: another major version of theirs may not read it."""

EVERY = {label(spec): (signal, spec) for signal, specs in KINDS.items() for spec in specs}


def texts() -> list[str]:
    """What the rows are made of."""
    return [f"notes {i} about topic{i % 7} and word{i} in chapter {i % 11}" for i in range(ROWS)]


def archive(name: str) -> Path:
    """Where the golden file of a kind lies: its folder, packed."""
    return HERE / (name.replace(" ", "-").replace(",", "-") + ".tar.xz")


def _pack(folder: Path, name: str) -> None:
    packed = archive(name)
    shutil.make_archive(str(packed).removesuffix(".tar.xz"), "xztar", folder)


def filled(signal: str, spec: Spec) -> Index[Any]:
    """An index that has learnt, taken rows in twice, and lost some."""
    index: Index[Any] = build(spec)
    rows = encoder(signal).encode_document(texts()).embeddings
    if isinstance(index, Trainable) and index.training_size:
        index.train(rows)
    index.add(np.arange(ROWS), rows)
    index.add(np.arange(100, 105), encoder(signal).encode_document(texts()[:5]).embeddings)
    index.remove(np.array([2, 50]))
    return index


def answers(index: Index[Any], signal: str) -> list[list[tuple[int, float]]]:
    """Rows and scores of the queries."""
    found = index.search(encoder(signal).encode_query(QUERIES).embeddings, 5)
    pairs = zip(found.ids.tolist(), found.scores.tolist(), strict=True)
    return [[(row, score) for row, score in zip(*pair, strict=True) if row >= 0] for pair in pairs]


def documents() -> list[Document]:
    """What the collection holds, but for one deleted."""
    return [Document(f"doc-{i}", text, {"chapter": i % 11, "even": i % 2 == 0}) for i, text in enumerate(texts())]


def ranked(collection: Collection) -> list[list[tuple[str, float]]]:
    """Documents and scores of the queries, by all signals."""
    return [[(hit.document.id, hit.score) for hit in ranking] for ranking in collection.search(QUERIES, 5)]


def _write(name: str, folder: Path) -> list[Any]:
    """Make one and give its answers."""
    if name != COLLECTION:
        signal, spec = EVERY[name]
        index = filled(signal, spec)
        index.save(folder)
        return answers(index, signal)
    chosen = {key: value for key, value in signals().items() if key in ("bm25", "dense")}
    with Collection.open(folder, signals=chosen) as collection:
        collection.upsert(documents(), progress=False)
        collection.delete(["doc-3"])
        told = ranked(collection)
    for passing in ("writer.lock", "writer.pid"):
        (folder / passing).unlink(missing_ok=True)
    return told


def main() -> None:
    """Write what is not there yet."""
    HERE.mkdir(exist_ok=True)
    expected = HERE / "expected.json"
    told: dict[str, Any] = json.loads(expected.read_text()) if expected.exists() else {"answers": {}, "written_by": {}}
    for name in (*EVERY, COLLECTION):
        if archive(name).exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "golden"
            told["answers"][name] = _write(name, folder)
            library = next((LIBRARIES[kind] for kind in LIBRARIES if name.startswith(kind)), None)
            told["written_by"][name] = {library: version(library)} if library else {}
            _pack(folder, name)
    expected.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
