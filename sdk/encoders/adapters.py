"""From one encoder's space into another's: learnt from texts that both have encoded, no labels.

Shapes: n texts, d and e dimensions of the new and the old encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import loading, new_folder, read_folder
from reperio.embeddings import Dense, check_dense
from reperio.encoders.bridged import FEWEST, MOST, RecallLoss, extract, lost, recalls
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError, FingerprintMismatch, InvalidInput, UnsupportedOperation
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["ProjectedEncoder", "Projection"]

KIND = "projection"
MATRIX = "matrix.npy"

PENALTIES = (0.01, 0.1, 1.0)
"""Ridge penalties that are tried, relative to the mean square of a dimension."""

_HELD_OUT = 0.2
"""Share of the texts that the choice and the report are made on, half each."""

_LEAST = 100
"""Fewest texts to learn from."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A linear map from a new encoder's vectors to an old one's, and what it was measured to cost.

    Attributes
    ----------
    matrix
        ``(d, e)``, float32.
    method
        What gave it: ``"procrustes"``, or ``"ridge"`` with its penalty.
    scaled
        Whether vectors are scaled to length 1 afterwards, as the old encoder's are.
    new, old
        Digests of the two encoders' fingerprints.
    loss
        Expected, on texts that it was not learnt from.
    """

    matrix: Dense
    method: str
    scaled: bool
    new: str
    old: str
    loss: RecallLoss

    @classmethod
    def fit(cls, new: Encoder[Dense], old: Encoder[Dense], texts: Sequence[str], *, k: int = 10, seed: int = 0) -> Self:
        """Learn it from texts alone: those of the collection, or past questions, or both.

        Both encoders encode each text, and an extract of it, as queries: these pairs are learnt. An orthogonal map
        (Procrustes) and ridge regressions are tried, all in closed form; the one that finds most on a tenth of the
        texts (40 at least, 500 at most), kept apart, is taken, and its loss measured on as many others.

        Parameters
        ----------
        new, old
            The encoder for queries to come, and the one that wrote the collection.
        texts
            100 or more, of at least 8 words; some thousands are better: of 100, only 20 are learnt from.
        k
            Depth that the loss is measured at.
        seed
            Of what is kept apart.

        Raises
        ------
        InvalidInput
            For too few texts.
        ConfigurationError
            For encoders that are not dense, or ``k`` below 1.

        References
        ----------
        Jang & Lim, Towards Cross-modal Backward-compatible Representation Learning for Vision-Language Models, 2024.
        Schönemann, A generalized solution of the orthogonal Procrustes problem, Psychometrika, 1966.
        """
        if k < 1:
            raise ConfigurationError(f"k is {k}.", "Use 1 or more.")
        for name, encoder in (("new", new), ("old", old)):
            if encoder.fingerprint.kind != "dense":
                raise ConfigurationError(f"The {name} encoder is {encoder.fingerprint.kind}.", "Give a dense one.")
        unique = [text for text in dict.fromkeys(check_texts(texts)) if len(text.split()) >= 8]
        if len(unique) < _LEAST:
            problem = f"There are {len(unique)} different texts of 8 words or more."
            raise InvalidInput(problem, f"Give {_LEAST} or more; some thousands are better.")
        order: list[int] = np.random.default_rng(seed).permutation(len(unique)).tolist()
        apart = order[: max(4 * FEWEST, int(_HELD_OUT * len(unique)))][: 2 * MOST]
        learnt = [unique[i] for i in order[len(apart) :]]
        pairs = [*learnt, *(cast("str", extract(text, seed + i)) for i, text in enumerate(learnt))]
        x, y = (encoder.encode_query(pairs).embeddings.astype(np.float64) for encoder in (new, old))
        scaled = bool(np.abs(np.linalg.norm(y, axis=1) - 1).max() < 1e-3)
        rows = old.encode_document(unique).embeddings
        asked = [cast("str", extract(unique[i], seed + i)) for i in apart]
        theirs, ours = old.encode_query(asked).embeddings, new.encode_query(asked).embeddings
        middle = len(apart) // 2

        def found(queries: Dense, part: slice) -> NDArray[np.float64]:
            return recalls(queries[part], rows, [[i] for i in apart[part]], k=k)

        maps = {"procrustes": _procrustes(x, y), **_ridges(x, y)}
        first = {name: found(_apply(ours, matrix, scaled), slice(middle)).mean() for name, matrix in maps.items()}
        method = max(first, key=lambda name: float(first[name]))
        rest = slice(middle, None)
        after = found(_apply(ours, maps[method], scaled), rest)
        loss = lost(found(theirs, rest), after, k=k, seed=seed)
        return cls(maps[method], method, scaled, new.fingerprint.digest, old.fingerprint.digest, loss)

    def __call__(self, vectors: Dense) -> Dense:
        """The new encoder's vectors, ``(n, d)``, as vectors of the old one, ``(n, e)``."""
        return _apply(check_dense(vectors, what="vectors", dim=len(self.matrix)), self.matrix, self.scaled)

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        told = {"method": self.method, "scaled": self.scaled, "new": self.new, "old": self.old}
        with new_folder(path, KIND, {**told, "loss": asdict(self.loss)}) as folder:
            np.save(folder / MATRIX, self.matrix)

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        path = Path(path)
        told = read_folder(path, KIND)
        with loading(path, KIND):
            loss = RecallLoss(**told.pop("loss"))
            matrix = check_dense(np.load(path / MATRIX, allow_pickle=False), what="the matrix")
            return cls(matrix, told["method"], told["scaled"], told["new"], told["old"], loss)


class ProjectedEncoder:
    """Gives an encoder's vectors in another's space.

    Put it into a `BridgedEncoder` to ask a collection of the old encoder.

    Parameters
    ----------
    encoder
        The new one, for which the projection was learnt.
    projection
        What `Projection.fit` gave, or the folder that it was saved in.

    Raises
    ------
    FingerprintMismatch
        At the first use, if the projection was learnt for another encoder.
    NotFound, NewerFormat, CorruptArtifact
        For a folder that holds none.
    """

    def __init__(self, encoder: Encoder[Dense], projection: Projection | str | Path) -> None:
        self.encoder = encoder
        self._path = None if isinstance(projection, Projection) else Path(projection).absolute()
        self.projection = projection if isinstance(projection, Projection) else Projection.open(projection)
        self._checked = False

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If it was given a projection in memory.
        """
        if self._path is None:
            problem = "A projection in memory cannot be written down."
            raise UnsupportedOperation(problem, "Save it with projection.save(path), and give the path.")
        return {"type": "ProjectedEncoder", "encoder": dict(self.encoder.spec), "projection": str(self._path)}

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder and the projection; `BridgedEncoder` says which documents it is for."""
        inner, one = self.encoder.fingerprint, self.projection
        if inner.digest != one.new:
            problem = f"The projection was not learnt for {inner.model}, or that has changed since."
            raise FingerprintMismatch(problem, "Give the encoder that it was learnt for, or fit another.")
        content = hashlib.sha256(np.ascontiguousarray(one.matrix, "<f4").tobytes()).hexdigest()
        return Fingerprint.make(
            "dense",
            f"{inner.model}, projected",
            one.matrix.shape[1],
            encoder=inner.digest,
            into=one.old,
            matrix=content,
            scaled=one.scaled,
        )

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Queries in the old encoder's space, ``(n, e)``."""
        return self._projected(self.encoder.encode_query(texts))

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Documents in the old encoder's space, ``(n, e)``; raises what the encoder raises."""
        return self._projected(self.encoder.encode_document(texts))

    def _projected(self, encoded: Encoded[Dense]) -> Encoded[Dense]:
        if not self._checked:
            _ = self.fingerprint
            self._checked = True
        return Encoded(self.projection(encoded.embeddings), encoded.token_counts, encoded.truncated)


def _apply(vectors: Dense, matrix: Dense, scaled: bool) -> Dense:
    out = vectors @ matrix
    if scaled:
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.float32(1e-12))
    return np.ascontiguousarray(out, dtype=np.float32)


def _procrustes(x: NDArray[np.float64], y: NDArray[np.float64]) -> Dense:
    """The rotation (of part of the space, where one is larger) and scaling that brings x closest to y.

    Nothing is centred: questions lie elsewhere than the texts, and a shift learnt on these would mislead them.
    """
    u, s, v = np.linalg.svd(x.T @ y, full_matrices=False)
    return cast("Dense", (s.sum() / np.vdot(x, x) * (u @ v)).astype(np.float32))


def _ridges(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Dense]:
    values, vectors = np.linalg.eigh(x.T @ x)
    crossed = vectors.T @ (x.T @ y)
    return {
        f"ridge {penalty:g}": cast(
            "Dense", (vectors @ (crossed / (values + penalty * values.mean())[:, None])).astype(np.float32)
        )
        for penalty in PENALTIES
    }
