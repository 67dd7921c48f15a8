"""One vector from all layers: trained queries look at what each layer says of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.pooling import Pooling, PoolingMode, Region
from reperio.models.states import TokenStates
from reperio.models.trainable import TrainablePooling, torch

__all__ = ["MultiLayerPooling"]


class MultiLayerPooling(TrainablePooling):
    """Pools every layer on its own, and lets trained queries attend to these vectors.

    A trained vector for each layer is added to its own, as a mark of which one it is; both are normalised, attended
    to, and brought to size ``out`` by one linear map. In the paper's study, on equal data, it led on similarity and
    retrieval, and did not on clustering and classification.

    Parameters
    ----------
    dim
        d, the hidden size of the model.
    depth
        How many layers are read, 1 to ``depth``; the embeddings are not.
    queries
        How many trained queries there are.
    heads
        Of the attention; divides d.
    out
        Size of a vector; d where None.
    mode
        How each layer is pooled, as in `Pooling`: ``"last"`` under causal attention, ``"mean"`` under bidirectional.
    over
        Which tokens are pooled, as in `Pooling`. sentence-transformers cannot tell a text's own tokens from special
        ones, so that only ``"row"`` and ``"unprompted"`` can be trained there; the others are refused there.
    folder
        Where it was saved; then nothing else is given.

    References
    ----------
    .. [1] Pooling And Attention: What Are Effective Designs For LLM-Based Embedding Models? Tang and Yang, 2024.
    """

    names = ("dim", "depth", "queries", "heads", "out", "mode", "over")

    def __init__(
        self,
        dim: int | None = None,
        depth: int | None = None,
        *,
        queries: int = 8,
        heads: int = 8,
        out: int | None = None,
        mode: PoolingMode = "mean",
        over: Region = "row",
        folder: str | Path | None = None,
    ) -> None:
        sizes = {"dim": dim, "depth": depth, "queries": queries, "heads": heads, "out": out or dim}
        super().__init__({**sizes, "mode": mode, "over": over}, folder)

    def build(
        self, *, dim: int, depth: int, queries: int, heads: int, out: int, mode: PoolingMode, over: Region
    ) -> None:
        """Queries, marks of the layers, and four linear maps."""
        for name, value in {"dim": dim, "depth": depth, "queries": queries, "heads": heads, "out": out}.items():
            if value < 1:
                raise ConfigurationError(f"{name} is {value}.", "Use 1 or more.")
        if dim % heads:
            raise ConfigurationError(f"heads is {heads}, and dim {dim}.", "Use a number of heads that divides dim.")
        if mode not in get_args(PoolingMode):
            raise ConfigurationError(f"mode is {mode!r}.", f"Use one of {', '.join(get_args(PoolingMode))}.")
        nn = torch.nn
        self.marks = nn.Parameter(0.02 * torch.randn(depth, dim))
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(queries * dim, out)
        self.heads = heads
        self.each = Pooling(mode, over=over)
        self.layers = tuple(range(1, depth + 1))
        self.ends = self.each.ends

    def forward(self, batch: TokenStates | dict[str, Any]) -> Any:
        """As every trained pooling; refuses features where they cannot tell which tokens count."""
        if not isinstance(batch, TokenStates) and self.each.over in ("text", "onward"):
            problem = f"over is {self.each.over!r}, and sentence-transformers tells no text from its special tokens."
            raise UnsupportedOperation(problem, 'Use over="row", or "unprompted".')
        return super().forward(batch)

    def pool(self, batch: TokenStates) -> Any:
        """``(b, out)``."""
        vectors = torch.stack([self.each.of(states, batch) for states in batch.layers], dim=1)  # (b, depth, d)
        marked = self.norm(vectors.to(self.marks.dtype) + self.marks)
        key, value = self.to_kv(marked).chunk(2, dim=-1)
        query = self.to_q(self.queries).expand(len(batch), -1, -1)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(seen.transpose(1, 2).flatten(1))
