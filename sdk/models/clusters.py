"""A vocabulary in clusters: words that a model's head scores alike share one row, which has their names.

LENS (Lei et al., 2025) replaces a head of 32,000 rows by some thousand centroids, so that a text's weights fit in a
vector of ordinary size, in which spellings of one word no longer compete.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.artifacts import loading, new_folder, read_folder
from reperio.errors import ConfigurationError
from reperio.models.checkpoint import tensors_digest
from reperio.models.language_model import LanguageModel
from reperio.models.vocabulary import VocabularyHead, word

__all__ = ["Clusters"]

_KIND = "vocabulary-clusters"
# Similarities that are held at once, words × clusters.
_CELLS = 1 << 25


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters of the rows of a head.

    Attributes
    ----------
    centroids
        Mean of the rows of each cluster, ``(k, e)``, float32: of the length of rows, so that scores stay as they were.
    members
        Cluster of each word, ``(V,)``, int32; -1 for a row of zeros.
    names
        The words next to the middle of each cluster, nearest first.
    source
        Digest of the head that it was made from.
    path
        Where it was saved or opened; None in memory.
    """

    centroids: NDArray[np.float32]
    members: NDArray[np.int32]
    names: tuple[tuple[str, ...], ...]
    source: str
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.centroids)

    @classmethod
    def fit(cls, model: LanguageModel, k: int = 4000, *, seed: int = 0, iterations: int = 20, names: int = 5) -> Self:
        """Cluster the words of a model by the direction of their rows (spherical k-means).

        Parameters
        ----------
        model
            Has a head that scores its vocabulary.
        k
            How many clusters; the paper has 4,000 and 8,000.
        seed
            Of the first centroids, which are rows drawn at random: one seed, one result on one machine.
        iterations
            Most of them; it ends where no word changes its cluster.
        names
            How many words name a cluster.

        Raises
        ------
        ConfigurationError
            If ``k`` is not between 1 and the number of words, or another number is below 1.
        """
        for what, value in (("k", k), ("iterations", iterations), ("names", names)):
            if value < 1:
                raise ConfigurationError(f"{what} is {value}.", "Use 1 or more.")
        weight = VocabularyHead.of(model.view()).weight.detach()
        rows = weight.float()
        used = (rows.norm(dim=1) > 0).nonzero()[:, 0]
        if k > len(used):
            raise ConfigurationError(f"k is {k}, and the vocabulary has {len(used)} words.", "Use fewer clusters.")
        directions = rows[used] / rows[used].norm(dim=1, keepdim=True)
        member, nearness = _lloyd(directions, k, seed, iterations)
        members = np.full(len(rows), -1, dtype=np.int32)
        members[used.cpu().numpy()] = member.cpu().numpy()
        centroids = _means(rows[used], member, k).cpu().numpy()
        named = _names(model.tokenizer, used.cpu().numpy(), member.cpu().numpy(), nearness.cpu().numpy(), k, names)
        return cls(centroids, members, named, head_digest(weight))

    @property
    def digest(self) -> str:
        """Of the centroids, for a fingerprint."""
        return hashlib.sha256(self.centroids.tobytes()).hexdigest()[:32]

    def save(self, path: Path | str, /) -> Self:
        """Write a folder, whole or not at all; gives the clusters as opened from there."""
        with new_folder(path, _KIND, {"source": self.source}) as folder:
            np.save(folder / "centroids.npy", self.centroids)
            np.save(folder / "members.npy", self.members)
            (folder / "names.json").write_text(json.dumps(self.names, ensure_ascii=False), encoding="utf-8")
        return type(self)(self.centroids, self.members, self.names, self.source, Path(path))

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        NotFound, CorruptArtifact
        """
        folder = Path(path)
        meta = read_folder(folder, _KIND)
        with loading(folder, _KIND):
            told = json.loads((folder / "names.json").read_text(encoding="utf-8"))
            centroids, members = np.load(folder / "centroids.npy"), np.load(folder / "members.npy")
            return cls(centroids, members, tuple(tuple(some) for some in told), meta["source"], folder)

    def head(self, vocabulary: VocabularyHead) -> VocabularyHead:
        """A head that scores clusters in place of words.

        Raises
        ------
        ConfigurationError
            If the clusters are another head's.
        """
        if self.source != head_digest(vocabulary.weight):
            problem = f"The clusters{'' if self.path is None else f' in {self.path}'} are those of another vocabulary."
            raise ConfigurationError(problem, "Make them of this model: Clusters.fit(model).")
        rows = extras.load("torch", extra="models").from_numpy(self.centroids).to(vocabulary.weight)
        return VocabularyHead(vocabulary.features, rows, shifted=vocabulary.shifted)


def head_digest(weight: Any) -> str:
    """What tells one head's rows from another's."""
    return tensors_digest([("weight", weight)])


def _lloyd(directions: Any, k: int, seed: int, iterations: int) -> tuple[Any, Any]:
    """Cluster of each row of length 1, and its cosine to the cluster's middle."""
    torch = extras.load("torch", extra="models")
    first = np.random.default_rng(seed).choice(len(directions), size=k, replace=False)
    middles = directions[torch.from_numpy(np.sort(first)).to(directions.device)]
    member, nearness = _assigned(directions, middles)
    for _ in range(iterations):
        middles = _means(directions, member, k)
        _refill(middles, directions, member, nearness)
        middles = middles / middles.norm(dim=1, keepdim=True).clamp_min(1e-12)
        before = member
        member, nearness = _assigned(directions, middles)
        if bool((member == before).all()):
            break
    _settle(member, nearness, k)
    return member, nearness


def _assigned(directions: Any, middles: Any) -> tuple[Any, Any]:
    torch = extras.load("torch", extra="models")
    found = [(part @ middles.T).max(dim=1) for part in directions.split(max(1, _CELLS // len(middles)))]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def _means(rows: Any, member: Any, k: int) -> Any:
    """Mean of the rows of each cluster; zero where there are none."""
    torch = extras.load("torch", extra="models")
    order = torch.argsort(member, stable=True)  # sums in one order, whatever the number of threads
    counts = torch.bincount(member, minlength=k)
    sums = torch.segment_reduce(rows[order], "sum", lengths=counts, axis=0)
    return sums / counts.clamp_min(1)[:, None]


def _refill(middles: Any, directions: Any, member: Any, nearness: Any) -> None:
    """Give clusters without a row those that lie farthest from their own middle."""
    torch = extras.load("torch", extra="models")
    empty = (torch.bincount(member, minlength=len(middles)) == 0).nonzero()[:, 0]
    if len(empty):
        middles[empty] = directions[torch.argsort(nearness, stable=True)[: len(empty)]]


def _settle(member: Any, nearness: Any, k: int) -> None:
    """Let no cluster end without a row: it takes the farthest one of a cluster that has several."""
    torch = extras.load("torch", extra="models")
    counts = torch.bincount(member, minlength=k)
    for place in torch.argsort(nearness, stable=True).tolist():
        empty = (counts == 0).nonzero()
        if not len(empty):
            return
        if counts[member[place]] > 1:
            counts[member[place]] -= 1
            member[place] = empty[0, 0]
            counts[empty[0, 0]] += 1


def _names(tokenizer: Any, used: Any, member: Any, nearness: Any, k: int, count: int) -> tuple[tuple[str, ...], ...]:
    known = len(tokenizer)
    out: list[list[str]] = [[] for _ in range(k)]
    for place in np.lexsort((used, -nearness)).tolist():
        some = out[int(member[place])]
        if len(some) < count:
            token = int(used[place])
            some.append(word(tokenizer, token) if token < known else f"#{token}")
    return tuple(map(tuple, out))
