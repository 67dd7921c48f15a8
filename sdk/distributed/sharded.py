"""Several saved indexes, searched as one.

Shapes: q queries, n rows, d dimensions, k results, m keys asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from reperio.artifacts import read_folder
from reperio.embeddings import Dense, Ids, IdSet
from reperio.errors import CorruptArtifact, NotFound
from reperio.extras import load
from reperio.indexes.rows import check_search, merge
from reperio.protocols import Index, Spec
from reperio.registry import resolve
from reperio.types import Fingerprint, Neighbors

PLAN = "plan"
KIND = "sharded-index"
SHARD = "index-shard"
NAMES = "ids.arrow"


@dataclass(frozen=True, slots=True)
class _Shard:
    """One index and the ids of its documents; its keys are ``range(first, first + len(names))``."""

    first: int
    index: Index[Any]
    names: Any


class ShardedIndex:
    """What `build` wrote: searched as one index, read-only.

    The shards are searched one after the other and their best merged, ties to the lower key. Where an index is exact
    or learnt from one sample, as `build` lets it, that is what one index over all rows finds. An index that FAISS or
    numpy can map takes no memory before it is searched.

    Parameters
    ----------
    folder
        Where `build` wrote.

    Raises
    ------
    NotFound
        If nothing was begun there, or a shard is not built yet.
    CorruptArtifact, NewerFormat
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        meta = read_folder(self.folder / PLAN, KIND)
        try:
            self.spec: Spec = meta["index"]
            kept = meta["fingerprint"]
            fields = tuple((str(name), str(value)) for name, value in kept["fields"])
            self.fingerprint = Fingerprint(kept["kind"], kept["model"], kept["dim"], fields)
            names: list[str] = list(meta["names"])
        except (KeyError, TypeError) as error:
            raise CorruptArtifact(f"{self.folder / PLAN} is no plan: {error}.", "Build into a new folder.") from error
        missing = next((name for name in names if not (self.folder / name).is_dir()), None)
        if missing is not None:
            problem = f"{self.folder} is not whole: {missing} is not there."
            raise NotFound(problem, "Run build again: it goes on where it stopped.")
        self._shards = [_opened(self.folder / name, self.spec["type"]) for name in names]

    @classmethod
    def open(cls, folder: Path | str, /) -> Self:
        """The same as the constructor."""
        return cls(folder)

    def __repr__(self) -> str:
        return f"ShardedIndex({str(self.folder)!r}, shards={len(self._shards)}, rows={len(self)})"

    def __len__(self) -> int:
        return sum(len(shard.index) for shard in self._shards)

    @property
    def shards(self) -> list[Index[Any]]:
        """The index of each shard."""
        return [shard.index for shard in self._shards]

    @property
    def lossless(self) -> bool:
        """Whether scores are exact."""
        return all(shard.index.lossless for shard in self._shards)

    @property
    def lowest(self) -> float:
        """The lowest score that can occur in theory."""
        return min(shard.index.lowest for shard in self._shards)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(np.concatenate([shard.index.ids for shard in self._shards]))

    def search(
        self, queries: Any, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given.

        Raises
        ------
        InvalidInput, ShapeError, ConfigurationError
            As the index of a shard does.
        """
        only = check_search(k, allowed, options)
        parts = list[Neighbors]()
        for shard in self._shards:
            mine = only
            if only is not None:
                low, high = np.searchsorted(only, [shard.first, shard.first + len(shard.names)])
                mine = only[low:high]
            parts.append(shard.index.search(queries, k, allowed=mine, options=options))
        return merge(parts, k)

    def score(self, queries: Any, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        parts = [shard.index.score(queries, ids) for shard in self._shards]
        return np.asarray(np.max(parts, axis=0), dtype=np.float32)

    def documents(self, keys: Ids, /) -> list[str]:
        """Ids of the documents with these keys, ``(m,)``.

        Raises
        ------
        NotFound
            For a key that is not there, such as the -1 of an empty slot.
        """
        firsts = np.array([shard.first for shard in self._shards])
        asked: list[int] = np.asarray(keys, dtype=np.int64).tolist()
        out = list[str]()
        for key in asked:
            shard = self._shards[max(0, int(np.searchsorted(firsts, key, side="right")) - 1)]
            if not shard.first <= key < shard.first + len(shard.names):
                raise NotFound(f"There is no key {key}.", f"Keys go from 0 to {len(self) - 1}; -1 is an empty slot.")
            out.append(shard.names[key - shard.first].as_py())
        return out


def _opened(folder: Path, kind: str) -> _Shard:
    meta = read_folder(folder, SHARD)
    arrow, ipc = load("pyarrow", extra="ray"), load("pyarrow.ipc", extra="ray")
    try:
        names = ipc.open_file(arrow.memory_map(str(folder / NAMES))).read_all().column("id")
    except (arrow.ArrowException, OSError) as error:
        raise CorruptArtifact(f"{folder / NAMES} cannot be read: {error}.", "Build the shard again.") from error
    return _Shard(int(meta["first"]), resolve(kind).open(folder / "index"), names)
