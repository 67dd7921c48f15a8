"""Texts that a job encoded, as it left them: a folder for each piece.

Shapes: n rows, m keys asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from reperio.artifacts import read_folder
from reperio.distributed.columns import batches, from_columns
from reperio.distributed.plan import PARTS, Plan
from reperio.embeddings import Embeddings, Ids
from reperio.errors import NotFound, UnsupportedOperation
from reperio.extras import load
from reperio.types import Fingerprint

KIND = "encoded-texts"
FILE = "rows.parquet"


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows, one after the other.

    Attributes
    ----------
    keys
        Row keys, ``(n,)``, int64: the first document has 0, the last one less than there are.
    ids
        The documents'.
    embeddings
        One row for each.
    """

    keys: Ids
    ids: list[str]
    embeddings: Embeddings


class EncodedTexts:
    """Embeddings that `encode` made: read block by block, found by key; Ray is not needed.

    Each piece is a folder with a checksummed manifest and ``rows.parquet``: ``key``, ``id``, ``text_hash`` (blake2b of
    the text, 16 bytes), ``tokens``, ``truncated``, and the embedding in ``vector``, or in ``columns`` and ``weights``
    where it is sparse, or in ``vectors`` where a text has several.

    Parameters
    ----------
    folder
        Where `encode` wrote.

    Raises
    ------
    NotFound
        If nothing was begun there, or a piece is not done yet.
    CorruptArtifact
        If the plan or a piece was altered.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.plan = Plan.read(self.folder)
        for number in range(len(self.plan.pieces)):
            if not self.part(number).is_dir():
                problem = f"{self.folder} is not whole: piece {number} of {len(self.plan.pieces)} is not there."
                raise NotFound(problem, "Run encode again: it goes on where it stopped.")
        self._read = lru_cache(maxsize=16)(self._names)

    @classmethod
    def open(cls, folder: Path | str, /) -> Self:
        """The same as the constructor."""
        return cls(folder)

    def __len__(self) -> int:
        """Documents."""
        return self.plan.documents

    def __repr__(self) -> str:
        return f"EncodedTexts({str(self.folder)!r}, documents={len(self)}, pieces={len(self.plan.pieces)})"

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder."""
        return self.plan.fingerprint

    def part(self, number: int) -> Path:
        """Folder of a piece."""
        return self.folder / PARTS / self.plan.name(number)

    def blocks(self, pieces: Sequence[int] | None = None) -> Iterator[Block]:
        """All rows, or those of some pieces, in the order of their keys; at most 4096 in memory.

        Raises
        ------
        CorruptArtifact
            If a file was altered: every byte of a piece is checked before its first row is given.
        UnsupportedOperation
            If the vectors went to a server, and no copy was kept.
        """
        for number in range(len(self.plan.pieces)) if pieces is None else pieces:
            for batch in self.batches(number):
                keys = batch.column("key").to_numpy()
                yield Block(keys, batch.column("id").to_pylist(), from_columns(batch, self.fingerprint))

    def batches(self, number: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Arrow batches of one piece."""
        if self.plan.straight and columns is None:
            raise UnsupportedOperation(f"{self.folder} keeps no vectors: they went to a server.", "Read them there.")
        read_folder(self.part(number), KIND)
        return batches(self.part(number) / FILE, columns)

    def documents(self, keys: Ids, /) -> list[str]:
        """Ids of the documents with these keys, ``(m,)``; those of 16 pieces are kept in memory.

        Raises
        ------
        NotFound
            For a key that is not there.
        """
        firsts = np.array([piece.first for piece in self.plan.pieces])
        asked: list[int] = np.asarray(keys, dtype=np.int64).tolist()
        out = list[str]()
        for key in asked:
            if not 0 <= key < len(self):
                raise NotFound(f"There is no key {key}.", f"Keys go from 0 to {len(self) - 1}.")
            number = int(np.searchsorted(firsts, key, side="right")) - 1
            out.append(self._read(number)[key - int(firsts[number])].as_py())
        return out

    def _names(self, number: int) -> Any:
        arrow = load("pyarrow", extra="ray")
        return arrow.chunked_array([batch.column("id") for batch in self.batches(number, ["id"])])
