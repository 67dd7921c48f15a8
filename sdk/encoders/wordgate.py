"""Which words of a document keep a vector: a linear gate over their vectors, learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, MultiVector, check_dense
from reperio.errors import ConfigurationError, InvalidInput, ShapeError
from reperio.models.trainable import TrainedModule, torch

__all__ = ["WordGate", "linear_fit", "winners"]


class WordGate(TrainedModule):
    """Removes words by ``relu(w · v + b)`` of their vectors: where it is 0, the word has no vector (ColBERTer).

    It reads the word in its context, so one occurrence may stay where another goes. `fit` learns it in closed form;
    training learns it with the model: it is a torch module.

    Parameters
    ----------
    dim
        d.
    scales
        Whether the gate multiplies the vectors that stay, as in the paper; else it only decides.
    folder
        Where it was saved; then nothing else is given.

    Raises
    ------
    NotFound
        If the folder has no gate.
    ConfigurationError
        If its weights do not fit.

    References
    ----------
    .. [1] Hofstätter, Khattab, Althammer, Sertkan and Hanbury: Introducing Neural Bag of Whole-Words with ColBERTer.
       CIKM 2022.
    """

    names = ("dim", "scales")

    def __init__(self, dim: int | None = None, *, scales: bool = True, folder: str | Path | None = None) -> None:
        super().__init__({"dim": dim, "scales": scales}, folder)

    def build(self, *, dim: int, scales: bool) -> None:
        """The layer; it lets every word through before it is trained."""
        self.linear = torch.nn.Linear(dim, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.ones_(self.linear.bias)
        self.scales = scales

    @classmethod
    def of(cls, weight: Any, bias: float = 0.0, *, scales: bool = True) -> Self:
        """A gate of this weight, ``(d,)``, and bias."""
        row = torch.as_tensor(weight).reshape(1, -1)
        out = cls(row.shape[1], scales=scales)
        out.fill({"linear.weight": row, "linear.bias": torch.tensor([float(bias)])}, Path("weight"))
        return out

    @classmethod
    def fit(cls, vectors: Dense, useful: NDArray[np.floating[Any]], *, keep: float = 0.7, ridge: float = 1e-2) -> Self:
        """Learn by ridge regression which vectors are useful, and keep so large a share of words like these.

        Parameters
        ----------
        vectors
            Of words in documents, ``(w, d)``, before any normalisation that follows the gate.
        useful
            How useful each was, ``(w,)``, as `winners` counts it; or a word's inverse document frequency.
        keep
            The share of these words that stay, in (0, 1].
        ridge
            Strength, relative to the mean variance of a dimension.

        Returns
        -------
        WordGate
            It decides, and does not scale.
        """
        if not 0 < keep <= 1:
            raise ConfigurationError(f"keep is {keep}.", "Use a share above 0, up to 1.")
        weight, bias = linear_fit(vectors, useful, ridge=ridge)
        told = vectors @ weight + bias
        last = float(np.quantile(told, 1 - keep))
        return cls.of(weight, bias - np.nextafter(np.float32(last), np.float32(-np.inf)), scales=False)

    @property
    def dim(self) -> int:
        """d."""
        return int(self.settings["dim"])

    def forward(self, batch: Any) -> Any:
        """The gate of each vector, tensor ``(w,)`` for ``(w, d)``, 0 or more."""
        return self.linear(batch.to(self.linear.weight.dtype)).squeeze(-1).relu()

    def apply(self, embeddings: MultiVector) -> tuple[MultiVector, NDArray[np.bool_]]:
        """The vectors that stay, and which they are, ``(w,)``; a text of which none would stay keeps all, unscaled."""
        if embeddings.vectors.shape[1] != self.dim:
            problem = f"The gate reads {self.dim} dimensions, and vectors have {embeddings.vectors.shape[1]}."
            raise ConfigurationError(problem, "Use the gate that was learnt for this model and dim.")
        with torch.inference_mode():
            device = self.linear.weight.device
            gates = self(torch.from_numpy(embeddings.vectors).to(device)).cpu().numpy()
        lengths = np.diff(embeddings.offsets)
        gates[np.repeat(_counts(gates > 0, embeddings.offsets) == 0, lengths)] = 1
        kept = gates > 0
        counts = _counts(kept, embeddings.offsets)
        vectors = embeddings.vectors[kept]
        if self.scales:
            vectors = vectors * gates[kept, None]
        return MultiVector(vectors, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)), kept


def _counts(marked: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of each text's vectors are marked, ``(n,)``."""
    return np.diff(np.concatenate([[0], np.cumsum(marked, dtype=np.int64)])[offsets])


def winners(
    queries: MultiVector, documents: MultiVector, *, k: int = 10
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How often each vector of the documents was the best match of a query's vector, among each query's k best.

    Parameters
    ----------
    queries, documents
        Vectors of length 1; no judgements are needed.
    k
        Documents that each query looks at.

    Returns
    -------
    tuple
        Wins of each vector, ``(w,)``; and whether its document was looked at by any query, ``(w,)``.
    """
    if k < 1:
        raise InvalidInput(f"k is {k}.", "Use 1 or more.")
    wins = np.zeros(len(documents.vectors), dtype=np.int64)
    looked = np.zeros(len(documents), dtype=np.bool_)
    for i in range(len(queries)):
        products = documents.vectors @ queries.row(i).T  # (w, m)
        scores = np.maximum.reduceat(products, documents.offsets[:-1], axis=0).sum(axis=1)
        for document in np.argsort(-scores, kind="stable")[:k]:
            start, stop = documents.offsets[document : document + 2]
            wins[start + np.unique(products[start:stop].argmax(axis=0))] += 1
            looked[document] = True
    return wins, np.repeat(looked, np.diff(documents.offsets))


def linear_fit(
    vectors: Dense, targets: NDArray[np.floating[Any]], *, ridge: float = 1e-2
) -> tuple[NDArray[np.float32], float]:
    """Weight ``(d,)`` and bias that come nearest to the targets, by ridge regression.

    Raises
    ------
    ShapeError
        Not one target for each vector, or no vector.
    """
    checked = check_dense(vectors, what="vectors").astype(np.float64)
    wanted: NDArray[np.float64] = np.asarray(targets, dtype=np.float64)
    if wanted.shape != (len(checked),) or not len(checked) or not np.isfinite(wanted).all():
        problem = f"There are {len(checked)} vectors and targets of shape {wanted.shape}, or some are not finite."
        raise ShapeError(problem, "Give one finite number for each vector.")
    mean, middle = checked.mean(axis=0), wanted.mean()
    centred = checked - mean
    spread: NDArray[np.float64] = centred.T @ centred / len(checked)
    strength = ridge * float(np.trace(spread)) / len(spread) + np.finfo(np.float64).tiny
    target: NDArray[np.float64] = centred.T @ (wanted - middle) / len(checked)
    ridged: NDArray[np.float64] = spread + strength * np.eye(len(spread))
    weight: NDArray[Any] = np.linalg.solve(ridged, target)
    return weight.astype(np.float32), float(middle - mean @ weight)
