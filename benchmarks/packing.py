"""Decoder embeddings of texts of mixed lengths: packed, padded in batches of alike lengths, and as others pad them.

The model is a Llama of random weights and a real size for a small one (what is computed does not depend on them).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.measuring import both, paired, spread, table
from reperio.models.language_model import LanguageModel
from reperio.models.pooling import Pooling
from reperio.models.rows import Row
from reperio.testing.models import byte_pairs

TEXTS = 32
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
MIXES = {"1 to 512 tokens": (1, 512), "20 to 60 tokens": (20, 60)}
BATCH = 32
"""Rows of a batch in sentence-transformers."""


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=600, num_key_value_heads=2, max_position_embeddings=1024, **SIZES)
    network = AutoModelForCausalLM.from_config(config).eval()
    packed = LanguageModel.of(network, byte_pairs())
    padded = LanguageModel.of(network, byte_pairs())
    padded.kernel = "sdpa"
    out: dict[str, Any] = {}
    for mix, (low, high) in MIXES.items():
        lengths = np.exp(np.random.default_rng(0).uniform(np.log(low), np.log(high), TEXTS)).astype(int)
        for attention in ("causal", "bidirectional"):
            rows = _rows(lengths)
            ways = {
                "packed": partial(_vectors, packed, attention, rows),
                "padded, alike lengths": partial(_vectors, padded, attention, rows),
                "padded, 32 by length": partial(_plain, padded, attention, rows, by_length=True),
                "padded, 32 in order": partial(_plain, padded, attention, rows, by_length=False),
            }
            wanted = ways["padded, 32 in order"]()
            far = max(float(np.abs(way() - wanted).max()) for way in ways.values())
            out[f"{mix}, {attention}"] = {"tokens": int(lengths.sum()), "largest difference": far, **_compare(ways)}
    return out


def _compare(ways: dict[str, Any]) -> dict[str, Any]:
    wall, used = both(ways, repeats=5)
    out = {}
    for name in ways:
        out[name] = {
            "wall ms": spread(wall[name]),
            "cpu ms": spread(used[name]),
            "wall over packed": paired(wall[name], wall["packed"]),
            "cpu over packed": paired(used[name], used["packed"]),
        }
    table(
        [
            {"way": name, **{key: f"{v['median']:.2f} ({v['min']:.2f}-{v['max']:.2f})" for key, v in told.items()}}
            for name, told in out.items()
        ]
    )
    return out


def _rows(lengths: Any) -> list[Row]:
    rng = np.random.default_rng(1)
    return [Row(rng.integers(10, 590, n).astype(np.int32), 0, n) for n in lengths]


def _vectors(model: LanguageModel, attention: str, rows: list[Row]) -> Any:
    out = np.empty((len(rows), SIZES["hidden_size"]), np.float32)
    for batch, vectors in model.view(attention).run(rows, Pooling("mean"), budget=model.batch_tokens):
        out[batch] = vectors
    return out


def _plain(model: LanguageModel, attention: str, rows: list[Row], *, by_length: bool) -> Any:
    """As sentence-transformers does it: so many rows a batch, sorted by length; or as they come."""
    out = np.empty((len(rows), SIZES["hidden_size"]), np.float32)
    view = model.view(attention)
    order = np.argsort([-len(row) for row in rows], kind="stable") if by_length else np.arange(len(rows))
    for start in range(0, len(rows), BATCH):
        batch = order[start : start + BATCH]
        with torch.inference_mode():
            out[batch] = Pooling("mean")(view.states([rows[i] for i in batch]))
    return out
