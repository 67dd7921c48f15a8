"""Latent attention: tokens look up a trained dictionary before they are averaged (NV-Embed)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reperio.errors import ConfigurationError
from reperio.models.pooling import ragged
from reperio.models.states import TokenStates
from reperio.models.trainable import TrainablePooling, torch

__all__ = ["LatentAttention"]


class LatentAttention(TrainablePooling):
    """Every token attends to trained latents, which are keys and values; then an MLP, then the mean.

    Weights have NV-Embed's names and shapes, so that ``latent_attention_model.*`` of its checkpoints fit unchanged.
    Rows end with the end-of-text token, which counts. Of a row with a prompt, as many tokens are left out at its front
    as the prompt has on its own: the special token before it is among them, the prompt's last one is not. That is what
    the published code does, and what its weights were trained with.

    Parameters
    ----------
    dim
        d, the hidden size of the model.
    latents
        How many there are.
    heads
        Of the attention.
    head_dim
        Size of a head; d where None, as in NV-Embed.
    folder
        Where it was saved; then nothing else is given.

    References
    ----------
    .. [1] NV-Embed: Improved Techniques for Training LLMs as Generalist Embedding Models. Lee et al., 2024.
    """

    names = ("dim", "latents", "heads", "head_dim")
    ends = True

    def __init__(
        self,
        dim: int | None = None,
        *,
        latents: int = 512,
        heads: int = 8,
        head_dim: int | None = None,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(
            {"dim": dim, "latents": latents, "heads": heads, "head_dim": dim if head_dim is None else head_dim}, folder
        )

    def build(self, *, dim: int, latents: int, heads: int, head_dim: int) -> None:
        """Parameters by the names that NV-Embed gives them."""
        for name, value in {"dim": dim, "latents": latents, "heads": heads, "head_dim": head_dim}.items():
            if value < 1:
                raise ConfigurationError(f"{name} is {value}.", "Use 1 or more.")
        nn, inner = torch.nn, heads * head_dim
        attend, mlp = nn.Module(), nn.Module()
        attend.norm, attend.norm_context, attend.fn = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Module()
        attend.fn.to_q = nn.Linear(dim, inner, bias=False)
        attend.fn.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        attend.fn.to_out = nn.Linear(inner, dim, bias=False)
        mlp.norm, mlp.fn = nn.LayerNorm(dim), nn.Module()
        mlp.fn.net = nn.Sequential(nn.Linear(dim, 8 * dim), nn.Identity(), nn.Linear(4 * dim, dim))
        self.cross_attend_blocks = nn.ModuleList([attend, mlp])
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.heads = heads

    def pool(self, batch: TokenStates) -> Any:
        """``(b, d)``. Tokens attend to latents, never to each other: no row knows of another, and none is padded."""
        tokens = self.look_up(batch.states.to(self.latents.dtype))
        first = batch.offsets[:-1] + np.maximum(batch.leads - 1, 0)
        return ragged(tokens, np.stack([first, batch.offsets[1:]], axis=1), "mean")

    def look_up(self, states: Any) -> Any:
        """What the tokens are after attention and MLP, ``(t, d)`` → ``(t, d)``."""
        functional = torch.nn.functional
        attend, mlp = self.cross_attend_blocks
        query = attend.fn.to_q(attend.norm(states))
        key, value = attend.fn.to_kv(attend.norm_context(self.latents)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(1, (self.heads, -1)).transpose(0, 1)[None] for x in (query, key, value))
        seen = functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        states = attend.fn.to_out(seen) + states
        up, _, down = mlp.fn.net
        wide, gate = up(mlp.norm(states)).chunk(2, dim=-1)
        return down(wide * functional.gelu(gate)) + states
