"""What a model's layers make of texts, told without labels: which one to pool, and whether long texts collapse."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError, InvalidInput
from reperio.models.language_model import LanguageModel
from reperio.models.pooling import Pooling
from reperio.models.states import TokenStates
from reperio.models.texts import check_batch, read_rows
from reperio.models.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerReport", "choose_layer", "curvature", "invariance", "noisy", "prompt_entropy"]

Values: TypeAlias = NDArray[np.float64]
By: TypeAlias = Literal["invariance", "entropy", "curvature"]

_AT_ONCE = 64
_TEMPERATURE = 0.1
_SIGNS = {"invariance": 1, "entropy": 1, "curvature": -1}


def prompt_entropy(states: Any) -> float:
    """How many directions the tokens of one text take, from 0 (one) to 1 (as many as there can be).

    The entropy of the eigenvalues of the tokens' Gram matrix, scaled to the sum 1, over the logarithm of the smaller of
    t and d (Giraldo et al., 2014; Skean et al., 2025). It does not hang on rotation or scale.

    Parameters
    ----------
    states
        Tensor, ``(t, d)``; at least 2 tokens.
    """
    torch = extras.load("torch", extra="models")
    wide = states.double()
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    shares = torch.linalg.eigvalsh(gram / gram.trace()).clamp_min(1e-15)
    return float(-(shares * shares.log()).sum() / np.log(len(gram)))


def curvature(states: Any) -> float:
    """Mean angle between each step from token to token and the next one, in radians (Hosseini and Fedorenko, 2023).

    Parameters
    ----------
    states
        Tensor, ``(t, d)``; at least 3 tokens.
    """
    torch = extras.load("torch", extra="models")
    steps = torch.nn.functional.normalize(states.double().diff(dim=0), dim=1)
    return float((steps[1:] * steps[:-1]).sum(dim=1).clamp(-1, 1).arccos().mean())


def invariance(one: Values, other: Values) -> float:
    """How well a text is known by its noisy copy: 1 as well as can be, 0 no better than chance, below it worse.

    One minus InfoNCE at temperature 0.1 over its value for chance, both ways.

    Parameters
    ----------
    one, other
        Vectors of n texts, and of their copies, ``(n, d)``; at least 2 texts.
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (one, other))
    scores = a @ b.T / _TEMPERATURE
    losses: list[float] = []
    for some in (scores, scores.T):
        top = some.max(axis=1)
        each = np.log(np.exp(some - top[:, None]).sum(axis=1)) + top - some.diagonal()
        losses.append(float(each.mean()))
    return float(1 - np.mean(losses) / np.log(len(a)))


def noisy(text: str, *, seed: int = 0, share: float = 0.15) -> str:
    """The text as a hurried typist writes it: in a share of its words letters are swapped, left out, or a space put in.

    The same for the same text and seed.
    """
    rng = np.random.default_rng([seed, zlib.crc32(text.encode("utf-8", "surrogatepass"))])
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) < 3 or rng.random() >= share:
            continue
        at, how = int(rng.integers(len(word) - 1)), int(rng.integers(3))
        changed = (word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :])
        words[place] = changed[how] if how < 2 else word[: at + 1] + " " + word[at + 1 :]
    return " ".join(words)


@dataclass(frozen=True, slots=True, eq=False)
class LayerReport:
    """What three diagnostics say of each layer. Shapes: l layers, the embeddings (0) among them.

    Attributes
    ----------
    entropy, curvature
        Means over texts of `prompt_entropy` and `curvature`, ``(l,)``.
    invariance
        `invariance` of all texts, ``(l,)``.
    texts
        How many were read.
    by
        Which of the three chose.
    layer
        The one that was chosen: where ``by`` is best among layers 1 to l - 1. Entropy and invariance are better where
        higher, curvature where lower.
    """

    entropy: Values
    curvature: Values
    invariance: Values
    texts: int
    by: By
    layer: int

    @property
    def pooling(self) -> Pooling:
        """The mean over the layer that was chosen."""
        return Pooling("mean", layer=self.layer)

    def table(self) -> str:
        """One line a layer, the chosen one marked."""
        lines = [f"layer  entropy  curvature  invariance   ({self.texts} texts, by {self.by})"]
        for layer, row in enumerate(zip(self.entropy, self.curvature, self.invariance, strict=True)):
            mark = " <" if layer == self.layer else ""
            lines.append(f"{layer:5}  {row[0]:7.3f}  {row[1]:9.3f}  {row[2]:10.3f}{mark}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A ``matplotlib`` figure, one curve a diagnostic, made without ``pyplot``.

        Raises
        ------
        MissingDependency
            Without the extra ``plot``.
        """
        figure: Figure = extras.load("matplotlib.figure", extra="plot").Figure(figsize=(9, 2.8), layout="constrained")
        for axes, name in zip(figure.subplots(1, 3), get_args(By), strict=True):
            axes.plot(getattr(self, name), color="#0072B2", marker="o", markersize=4)
            axes.axvline(self.layer, color="#D55E00", linewidth=1)
            axes.set_title(name)
            axes.set_xlabel("layer")
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def choose_layer(
    model: LanguageModel,
    texts: Iterable[str],
    *,
    view: View | str = "own",
    by: By = "invariance",
    max_tokens: int = 256,
    seed: int = 0,
) -> LayerReport:
    """Tell every layer's entropy, curvature and invariance on a sample of texts, and choose one to pool.

    Intermediate layers are often better than the last one for retrieval and classification [1]_. No labels are needed:
    what is wanted is the layer whose vectors a little noise in the text changes least against the differences between
    texts. It is a guess all the same: where there are judged queries, measure.

    Parameters
    ----------
    texts
        100 to 1000 of the kind that will be embedded. They are read in passing; the mean of each layer's states is
        kept for each, twice.
    view
        How the model is seen.
    by
        Which diagnostic chooses.
    max_tokens
        Most tokens that are read of a text.
    seed
        Of the noise.

    Raises
    ------
    InvalidInput
        If fewer than 2 texts have 3 tokens or more; for a bare ``str``, or a text that is none, by its position.
    EmptyText
        If a text is blank or has no token; names its position.
    ConfigurationError
        If ``by`` names no diagnostic.

    References
    ----------
    .. [1] Does Representation Matter? Exploring Intermediate Layers in Large Language Models. Skean et al., 2024. Layer
       by Layer: Uncovering Hidden Representations in Language Models. Skean et al., 2025.
    """
    if by not in get_args(By):
        raise ConfigurationError(f"by is {by!r}.", f"Use one of {', '.join(get_args(By))}.")
    check_batch(texts)
    seen = model.view(view)
    numbers = tuple(range(seen.depth + 1))
    limit = max_tokens if model.max_tokens is None else min(max_tokens, model.max_tokens)
    maker = model.rows(limit=limit)
    shapes: list[Values] = []
    pooled: list[list[Values]] = [[], []]
    waiting = iter(texts)
    while some := list(islice(waiting, _AT_ONCE)):
        own, start = read_rows(maker, some, start=len(pooled[0])), len(pooled[0])
        for copy in (0, 1):
            rows = read_rows(maker, [noisy(t, seed=2 * seed + copy) for t in some], start=start)
            _put(pooled[copy], seen.run(rows, _Means(numbers), budget=model.batch_tokens), len(rows))
        rows = [row for row in own if row.stop - row.start >= 3]
        _put(shapes, seen.run(rows, _Shapes(numbers), budget=model.batch_tokens), len(rows))
    if len(shapes) < 2:
        raise InvalidInput(f"{len(shapes)} texts have 3 tokens or more.", "Give 100 to 1000 texts.")
    one, other = (np.stack(copies, axis=1) for copies in pooled)  # (l, n, d)
    entropies, angles = np.mean(shapes, axis=0).T
    found = {
        "entropy": entropies,
        "curvature": angles,
        "invariance": np.array([invariance(a, b) for a, b in zip(one, other, strict=True)]),
    }
    layer = 1 + int(np.argmax(_SIGNS[by] * found[by][1:]))
    return LayerReport(**found, texts=len(pooled[0]), by=by, layer=layer)


def _put(into: list[Values], results: Iterable[tuple[Any, Values]], rows: int) -> None:
    """Results of batches, in the order of their rows."""
    found: list[Any] = [None] * rows
    for batch, values in results:
        for place, value in zip(batch.tolist(), values, strict=True):
            found[place] = value
    into.extend(found)


class _Means:
    """The mean of every layer's states, ``(b, l, d)``."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._pooling = Pooling("mean")

    def __call__(self, batch: TokenStates, /) -> Values:
        means = [self._pooling.of(states, batch).cpu().numpy() for states in batch.layers]
        return np.stack(means, axis=1).astype(np.float64)


class _Shapes:
    """Entropy and curvature of every layer's states of the text's own tokens, ``(b, l, 2)``."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)

    def __call__(self, batch: TokenStates, /) -> Values:
        out = np.empty((len(batch), len(self.layers), 2))
        for i, (start, stop) in enumerate(batch.spans):
            for j, states in enumerate(batch.layers):
                own = states[start:stop]
                out[i, j] = prompt_entropy(own), curvature(own)
        return out
