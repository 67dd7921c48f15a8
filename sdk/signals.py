"""A signal: an encoder and an index of the same kind of embedding, under a name."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np

from reperio.derived import DerivedIndex
from reperio.embeddings import (
    Dense,
    Ids,
    IdSet,
    Kind,
    Sparse,
    check_dense,
    check_multi_vector,
    example,
    from_bytes,
    to_bytes,
)
from reperio.errors import ConfigurationError, CorruptArtifact, FingerprintMismatch, UnsupportedOperation
from reperio.hosted import HostedIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.multivector import MultiVectorIndex
from reperio.protocols import Encoder, Housed, Index, Served, Store
from reperio.registry import build
from reperio.stores.rows import Vector, check_floor, present
from reperio.strangers import Strangers
from reperio.types import Fingerprint, Neighbors

E = TypeVar("E")

CANARIES = (
    "The quick brown fox jumps over the lazy dog.",
    "Größe 42, naïve café, 東京タワー.",
    "def merge(*iterables, key=None, reverse=False): ...",
)
"""Encoded when a collection is made and again whenever it is opened for writing."""

CANARY_TOLERANCE = 1e-3
"""Largest difference of any value of a canary's embedding, relative to its largest: hardware stays below it,
another model does not."""

ASTRAY = 1e-3
"""How far a vector's score for itself may lie from the exact one, relative to the largest: it is rounding's."""


@dataclass(frozen=True, slots=True)
class Signal(Generic[E]):
    """One way to find documents, as given when a collection is made.

    Attributes
    ----------
    encoder
        Texts → embeddings of kind ``E``.
    index
        Empty; finds embeddings of the same kind ``E``.
    stored
        Whether embeddings are kept in the store. False where encoding again is cheaper than reading back.
    """

    encoder: Encoder[E]
    index: Index[E]
    stored: bool = True


def describe(signal: Signal[Any], *, hosted: bool) -> dict[str, Any]:
    """What a store keeps of a signal, canary embeddings included; ``hosted`` where an index can live in it."""
    if len(signal.index):
        raise ConfigurationError(f"The index holds {len(signal.index)} rows already.", "Give an empty index.")
    check_home(signal.index, "The index", hosted=hosted)
    if signal.stored and signal.encoder.fingerprint.kind == "text":
        raise ConfigurationError("A signal of texts stores no embeddings.", "Declare it with Signal(…, stored=False).")
    canaries = _canaries(signal.encoder)
    fresh: Index[Any] = build(signal.index.spec)
    check_weighing(signal.encoder, fresh, "The index")
    fingerprint = signal.encoder.fingerprint
    if canaries is None:  # it encodes nothing itself
        check_index(fresh, example(fingerprint.kind, dim=fingerprint.dim))
    else:
        check_index(fresh, signal.encoder.encode_document(CANARIES).embeddings)
    return {
        "encoder": dict(signal.encoder.spec),
        "fingerprint": asdict(signal.encoder.fingerprint),
        "index": dict(signal.index.spec),
        "stored": signal.stored,
        "canaries": canaries,
    }


def homeless(index: Index[Any], *, hosted: bool) -> bool:
    """Whether it would live in the database of its collection, which is in none."""
    return isinstance(index, Housed) and not index.address and not hosted


def check_home(index: Index[Any], what: str, *, hosted: bool) -> None:
    """Refuse an index that has nowhere to keep its rows.

    Raises
    ------
    ConfigurationError
    """
    if homeless(index, hosted=hosted):
        kind = type(index).__name__
        problem = f"{what} is a {kind} without a url: it lives in PostgreSQL, and the collection is in a folder."
        raise ConfigurationError(problem, "Give its url, or choose another, as FaissIndex.")


def metric_of(index: Index[Any]) -> str | None:
    """How an index measures, seen from outside; None where it does not say."""
    found = index.spec.get("metric", getattr(index, "metric", None))
    return None if found is None else str(found)


def check_weighing(encoder: Encoder[Any], index: Index[Any], what: str) -> None:
    """Refuse an index that would take counts for weights, or weights for counts, where both say what is which.

    Raises
    ------
    ConfigurationError
    """
    made, taken = getattr(encoder, "weights_below", None), getattr(index, "weights_below", None)
    dim = encoder.fingerprint.dim
    if encoder.fingerprint.kind != "sparse" or made is None or taken is None or min(made, dim) == min(taken, dim):
        return
    names = type(encoder).__name__, type(index).__name__
    if made >= dim:
        raise ConfigurationError(
            f"{what}, {names[1]}, weighs counts, and {names[0]} gives none.", "Use InvertedIndex()."
        )
    held = "in every column" if made == 0 else f"in the columns from {made}"
    wanted = "BM25Index()" if made == 0 else f"BM25Index(weights_below={made})"
    raise ConfigurationError(
        f"{what}, {names[1]}, does not weigh the counts that {names[0]} gives {held}.", f"Use {wanted}."
    )


def check_index(fresh: Index[Any], embeddings: Any) -> None:
    """Have an index that cannot take such embeddings say so before anything is stored; it is of no more use then."""
    if isinstance(fresh, Served):
        fresh.check(embeddings)
    else:
        fresh.add(np.arange(len(embeddings), dtype=np.int64), embeddings)


def _canaries(encoder: Encoder[Any]) -> list[str] | None:
    """Hexadecimal rows, queries first; None for an encoder that encodes nothing itself."""
    if encoder.fingerprint.kind == "text":
        return None
    try:
        both = (encoder.encode_query(CANARIES), encoder.encode_document(CANARIES))
    except UnsupportedOperation:
        return None
    return [row.hex() for encoded in both for row in to_bytes(encoded.embeddings)]


def replayed(signals: Sequence[LiveSignal]) -> int | None:
    """The commit that the indexes are at, of which the store may be ahead; None where a server's alone are searched."""
    return min((signal.derived.seq for signal in signals if signal.derived.follows), default=None)


def without(found: Neighbors, rows: IdSet) -> Neighbors:
    """The others, in their order; what is lacking then is at the end."""
    out = np.isin(found.ids, rows)
    order = np.argsort(out, axis=1, kind="stable")
    ids, scores = np.where(out, -1, found.ids), np.where(out, np.float32("-inf"), found.scores)
    return Neighbors(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))


class LiveSignal:
    """A signal of an open collection.

    Parameters
    ----------
    name, number
        Its name, and its number in the store.
    config
        What `describe` wrote.
    store
        The collection's store.
    folder
        ``indexes/<name>``, of the collection or of this client's cache.
    given
        What the caller brought: its encoder is used, and its index keeps what it knows of its server. The encoder
        is built from the configuration on first use where None.
    """

    def __init__(
        self,
        name: str,
        number: int,
        *,
        config: Mapping[str, Any],
        store: Store,
        folder: Path,
        given: Signal[Any] | None = None,
    ) -> None:
        self.name = name
        self.number = number
        self.stored = bool(config["stored"])
        known = config["fingerprint"]
        fields = tuple((str(field), str(value)) for field, value in known["fields"])
        self.fingerprint = Fingerprint(known["kind"], known["model"], known["dim"], fields)
        self._config = config
        self._store = store
        self._lock = threading.Lock()
        self.strangers = Strangers(store)
        self._encoder: Encoder[Any] | None = None
        self._given = given
        if given is not None:
            self._encoder = self._checked(given.encoder)
        digest, host = self.fingerprint.digest, store.host
        self.derived = (
            DerivedIndex(folder, store, self.embed, spec=config["index"], fingerprint=digest)
            if host is None
            else HostedIndex(folder, store, host, self.embed, number=number, fingerprint=digest)
        )

    def after_fork(self, *, changing: bool) -> None:
        """Begin anew in a child; an index that was being changed or searched at the fork is read again."""
        self._lock = threading.Lock()
        self.strangers.renew()
        if changing:
            self.derived.forget()

    @property
    def encoder(self) -> Encoder[Any]:
        """The encoder that wrote the collection, or an error that says how it differs."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._checked(build(self._config["encoder"]))
            return self._encoder

    def _checked(self, encoder: Encoder[Any]) -> Encoder[Any]:
        differences = encoder.fingerprint.differences(self.fingerprint)
        if differences and self._bridges(encoder):
            return encoder
        if differences:
            raise FingerprintMismatch(
                f"The signal {self.name!r} was written by another encoder, which differs in {'; '.join(differences)}.",
                "Open the collection with the encoder that wrote it, or make a new collection.",
            )
        return encoder

    def _bridges(self, encoder: Encoder[Any]) -> bool:
        """Whether it encodes documents as the encoder does that wrote the collection, and queries to fit them."""
        compares: Fingerprint | None = getattr(encoder, "compares_with", None)
        return compares is not None and not compares.differences(self.fingerprint)

    def check_canaries(self) -> None:
        """Encode the canary texts again: a model changed under the same name and hash is caught here.

        Raises
        ------
        FingerprintMismatch
        """
        wanted = self._config["canaries"]
        if wanted is None:
            return
        found = _canaries(self.encoder) or []
        first = len(CANARIES) if self._bridges(self.encoder) else 0  # its queries are meant to be others
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            if i >= first and a != b and not self._close(bytes.fromhex(a), bytes.fromhex(b)):
                raise FingerprintMismatch(
                    f"The encoder of the signal {self.name!r} gives another embedding for the canary text "
                    f"{CANARIES[i % len(CANARIES)]!r} than when the collection was made.",
                    "Restore the model's files and libraries, or make a new collection.",
                )

    def _close(self, a: bytes, b: bytes) -> bool:
        if self.kind == "sparse":  # counts differ by whole numbers, weights by rounding
            rows = [cast("Sparse", from_bytes([blob], "sparse", dim=self.fingerprint.dim)).row(0) for blob in (a, b)]
            columns = np.union1d(rows[0][0], rows[1][0])
            x, y = np.zeros((2, len(columns)), dtype=np.float32)
            x[np.searchsorted(columns, rows[0][0])] = rows[0][1]
            y[np.searchsorted(columns, rows[1][0])] = rows[1][1]
        elif len(a) != len(b):
            return False
        else:
            x, y = np.frombuffer(a, dtype="<f4"), np.frombuffer(b, dtype="<f4")
        return bool(np.abs(x - y).max() <= CANARY_TOLERANCE * np.abs(x).max())

    @property
    def kind(self) -> Kind:
        """Which kind of embedding."""
        return cast("Kind", self.fingerprint.kind)

    @property
    def index(self) -> Index[Any]:
        """The index, caught up with the store."""
        return self.derived.index

    @property
    def scans_exactly(self) -> bool:
        """Whether a small set of rows is best scored one by one, past the index; a server does that itself."""
        if self.kind == "sparse" or not self.stored or isinstance(self.index, Served):
            return False
        return metric_of(self.index) is not None or not self.index.lossless  # else only it can tell

    def check_weighing(self, index: Index[Any]) -> None:
        """As the function of this name; where the encoder cannot be made here, nothing is known of its counts.

        Raises
        ------
        ConfigurationError
        """
        if self.kind != "sparse":
            return
        try:
            encoder = self.encoder
        except ConfigurationError:
            return
        check_weighing(encoder, index, f"The index for {self.name!r}")

    def check(self, index: Index[Any], rows: Ids | None = None) -> None:
        """Refuse an index that cannot hold the signal's embeddings: these rows', or any.

        Raises
        ------
        ConfigurationError
        """
        stored = None if rows is None or not len(rows) else self.embed(rows)
        embeddings = example(self.kind, dim=self.fingerprint.dim) if stored is None else stored
        served = isinstance(index, Served)
        try:
            check_index(index if served else build(index.spec), embeddings)
            if not served:
                index.search(embeddings, 1)  # what it has learnt already may be of another size
        except (AttributeError, TypeError, ValueError) as error:  # not that a library or a server is missing
            what = f"The index for {self.name!r}, {index.spec['type']}, cannot hold its {self.kind} embeddings"
            raise ConfigurationError(f"{what}: {error}", "Choose one for this kind.") from error

    def encode(self, texts: Sequence[str]) -> list[Vector]:
        """Documents' embeddings, ready to be stored."""
        encoded = self.encoder.encode_document(texts)
        if self.kind != "sparse":
            what = f"the output of {self.fingerprint.model}"
            check = check_dense if self.kind == "dense" else check_multi_vector
            check(encoded.embeddings, what=what, dim=self.fingerprint.dim, rows=len(texts))
        rows = zip(to_bytes(encoded.embeddings), encoded.token_counts, encoded.truncated, strict=True)
        return [Vector(value, int(tokens), bool(cut)) for value, tokens, cut in rows]

    def embed(self, rows: Ids) -> Any:
        """Embeddings of stored documents, in this order."""
        if not self.stored:
            return self.encoder.encode_document(self._store.texts(rows)).embeddings
        found = self._store.vectors(self.number, rows)
        blobs = [found[row].value for row in present(rows, found)]
        return from_bytes(blobs, self.kind, dim=self.fingerprint.dim)

    def nearest(self, queries: Any, k: int, *, options: Mapping[str, int] | None = None) -> Neighbors:
        """The k rows that the index finds best, of those that the store has.

        Where the index gives others, it is asked for more, so that they take no document's place.
        """
        asked = k
        while True:
            found = self.index.search(queries, asked, options=options)
            strange = self.strangers.among(found.ids)
            if not len(strange):
                return found if asked == k else Neighbors(found.ids[:, :k], found.scores[:, :k])
            if self.derived.follows:  # not those that another process has compacted away a moment ago
                self._store.refresh()
                check_floor(self.derived.seq, self._store.floor)
            known = without(found, strange)
            short = (known.ids[:, :k] < 0).any(axis=1) & (found.ids[:, -1] >= 0)
            if not short.any() or asked >= len(self.index):
                return Neighbors(known.ids[:, :k], known.scores[:, :k])
            asked = min(len(self.index), 2 * asked + len(strange))

    def exact(self, rows: Ids) -> Index[Any]:
        """An exact index over just these rows, from the store."""
        metric: Any = metric_of(self.index) or "ip"
        exact: Index[Any] = MultiVectorIndex(metric=metric) if self.kind == "multi-vector" else FlatIndex(metric)
        exact.add(rows, self.embed(rows))
        return exact

    def score(self, queries: Any, rows: Ids) -> Dense:
        """Exact scores of rows, ``(q, m)``; ``-inf`` where a row is -1."""
        if self.index.lossless:
            scores = self.index.score(queries, rows)
            late = np.isneginf(scores) & (rows >= 0)
            if not (late.any() and self.kind == "dense" and self.stored and isinstance(self.index, Served)):
                return scores
            # What another process fills may be a commit behind.
            return np.where(late, self.exact(np.unique(rows[late])).score(queries, rows), scores)
        held = np.unique(rows)
        return self.exact(held[held >= 0]).score(queries, rows)

    def rescore(self, queries: Any, found: Neighbors) -> Neighbors:
        """The same rows with exact scores, best first."""
        scores = self.score(queries, found.ids)
        order = np.lexsort((found.ids, -scores), axis=1)
        return Neighbors(np.take_along_axis(found.ids, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def problems(self, live: IdSet) -> Iterator[str]:
        """Where the signal does not hold exactly the live documents; ``live`` are their rows.

        Of an index here that keeps dense vectors as they are, these are compared with the store's too.
        """
        held = self.index.ids
        for what, rows in (("lacks", np.setdiff1d(live, held)), ("still holds", np.setdiff1d(held, live))):
            if len(rows):
                yield f"{self.name}: the index {what} {len(rows)} documents, row {rows[0]} the first"
        width, several = 4 * self.fingerprint.dim, self.kind == "multi-vector"
        for start in range(0, len(live) if self.stored else 0, 4096):
            rows = live[start : start + 4096]
            try:
                found = self._store.vectors(self.number, rows)
            except CorruptArtifact as error:
                yield f"{self.name}: {error.problem}"
                continue
            missing = [row for row in rows.tolist() if row not in found]
            if missing:
                yield f"{self.name}: {len(missing)} documents have no stored embedding, row {missing[0]} the first"
            values = [v.value for v in found.values()]
            if self.kind == "sparse":
                continue
            if any(len(v) != width and not (several and v and len(v) % width == 0) for v in values):
                yield f"{self.name}: a stored embedding is not {width} bytes long" + " for each vector" * several
            elif not np.isfinite(np.frombuffer(b"".join(values), dtype="<f4")).all():
                yield f"{self.name}: a stored embedding holds NaN or infinity"
            elif self.kind == "dense" and self.index.lossless and not isinstance(self.index, Served):
                yield from self._astray(found, held)

    def _astray(self, stored: Mapping[int, Vector], held: IdSet) -> Iterator[str]:
        """Rows that score otherwise for their stored vectors than these do."""
        metric: Any = metric_of(self.index)
        rows = np.array(sorted(stored), dtype=np.int64)
        rows = rows[np.searchsorted(held, rows) < np.searchsorted(held, rows, side="right")]
        if metric is None or not len(rows):
            return
        blobs = [stored[row].value for row in rows.tolist()]
        vectors = cast("Dense", from_bytes(blobs, "dense", dim=self.fingerprint.dim))
        exact = FlatIndex(metric)
        exact.add(rows, vectors)
        wanted, found = (index.score(vectors, rows[:, None])[:, 0] for index in (exact, self.index))
        sizes = 1.0 if metric == "cosine" else np.einsum("nd,nd->n", vectors, vectors)
        wrong = rows[np.abs(found - wanted) > ASTRAY * sizes]
        if len(wrong):
            yield f"{self.name}: the index has other vectors for {len(wrong)} documents, row {wrong[0]} the first"
