"""Read the whole source once before anything is encoded: how much there is, what it is, and that no id comes twice."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio import meter
from reperio.distributed.cluster import READER, errors
from reperio.distributed.plan import Piece, told
from reperio.errors import DuplicateId, InvalidInput, ReperioError
from reperio.protocols import Divisible, Part
from reperio.stores.rows import check, text_hash
from reperio.types import Document

Hashes: TypeAlias = NDArray[np.uint64]

_BUCKET = 1 << 23
"""Ids compared at a time, at most: 64 MB of hashes, and twice that to sort them."""

_LOOK = 64
"""Pairs of equal hashes looked at to tell a repeated id from a chance."""


def taken(source: Divisible, part: Part) -> tuple[list[Document], int]:
    """Documents of a piece, and how many rows had no text.

    Raises
    ------
    ReperioError
        What the source raises, or a document that no index could hold; with a note that names the piece.
    """
    try:
        with meter.measure() as counts, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is skipped is counted, and told once for the whole job
            documents = [check(document, i) for i, document in enumerate(source.read(part))]
    except ReperioError as error:
        error.add_note(f"In the piece: {told(part)}.")
        raise
    return documents, counts["skipped_empty"]


def digest(documents: Iterable[Document]) -> str:
    """Stands for ids and texts, in their order."""
    out = hashlib.blake2b(digest_size=16)
    for document in documents:
        out.update(_hash(document.id) + text_hash(document.text))
    return out.hexdigest()


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def census(ray: Any, source: Divisible, parts: Sequence[Part], *, rows: int) -> list[Piece]:
    """What is in each piece.

    Raises
    ------
    ReperioError
        What is wrong with the source, by the piece and the row.
    DuplicateId
        An id that comes twice, in one piece or in two.
    InvalidInput
        If there is no document.
    """
    buckets = 1 + len(parts) * rows // _BUCKET
    with errors(ray):
        look = ray.remote(num_cpus=READER, num_returns=1 + buckets)(_look)
        held = ray.put(source)
        found = [look.remote(held, part, buckets) for part in parts]
        counts: list[tuple[int, int, str]] = ray.get([one[0] for one in found])
        compare = ray.remote(num_cpus=READER)(_repeated)
        pairs = ray.get([compare.remote(*(one[1 + bucket] for one in found)) for bucket in range(buckets)])
    for a, b, hashed in (pair for some in pairs for pair in some):
        _refuse(source, parts, a, b, hashed)
    firsts = np.cumsum([0, *(documents for documents, _, _ in counts)]).tolist()
    if not firsts[-1]:
        raise InvalidInput(f"{source.name} has no document with a text.", "Check the source.")
    return [Piece(part, first, *count) for part, first, count in zip(parts, firsts, counts, strict=False)]


def _look(source: Divisible, part: Part, buckets: int) -> list[Any]:
    """Documents, rows skipped, and the digest of a piece; then the hashes of its ids that fall into each bucket."""
    documents, skipped = taken(source, part)
    hashes = np.frombuffer(b"".join(_hash(document.id) for document in documents), dtype="<u8").astype(np.uint64)
    count = (len(documents), skipped, digest(documents))
    return [count, *(hashes[hashes % np.uint64(buckets) == np.uint64(bucket)] for bucket in range(buckets))]


def _repeated(*hashes: Hashes) -> list[tuple[int, int, int]]:
    """Numbers of two pieces that share a hash, and the hash; a few where there are many."""
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")
    same = np.flatnonzero(every[order][1:] == every[order][:-1])[:_LOOK]
    ends = np.cumsum([len(some) for some in hashes])
    where = np.searchsorted(ends, order, side="right")
    return [(int(where[i]), int(where[i + 1]), int(every[order[i]])) for i in same]


def _refuse(source: Divisible, parts: Sequence[Part], a: int, b: int, hashed: int) -> None:
    """Raise if it is one id; two that have a hash in common are none of our business."""
    names = [name for number in dict.fromkeys((a, b)) for name in _named(source, parts[number], hashed)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        places = told(parts[a]) if a == b else f"{told(parts[a])}, and {told(parts[b])}"
        raise DuplicateId(f"The id {twice!r} occurs twice: {places}.", "Give each document an id of its own.")


def _named(source: Divisible, part: Part, hashed: int) -> Iterator[str]:
    documents, _ = taken(source, part)
    return (d.id for d in documents if int.from_bytes(_hash(d.id), "little") == hashed)
