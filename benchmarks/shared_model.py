"""What a second and a third view of one loaded model cost in memory, and what loading it again costs.

A Llama of random weights, 230 MB in float32, loaded from safetensors; each way in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import table
from reperio import LanguageModel
from reperio.memory import resident
from reperio.testing.models import save_decoder

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
WAYS = ("one view", "three views", "three models")
TEXTS = ["One sentence of some words, long enough to fill a row of tokens."] * 16


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save_decoder(Path(folder), "Llama", **SIZES)
        weights = (Path(folder) / "model.safetensors").stat().st_size / 1e6
        out: dict[str, Any] = {"weights MB": weights}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.shared_model", folder, way]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            out[way] = json.loads(told.splitlines()[-1])
    table([{"way": way, **out[way]} for way in WAYS])
    return out


def _measure(folder: str, way: str) -> dict[str, float]:
    attentions = ("causal", "bidirectional", "last-2")[: 1 if way == "one view" else 3]
    base = LanguageModel(folder, device="cpu", dtype="float32")
    first = base.encoder(attention="causal", pooling="mean")
    first.encode_document(TEXTS)
    before = resident() or 0
    kept = [first]
    for attention in attentions[1:]:
        model = base if way == "three views" else LanguageModel(folder, device="cpu", dtype="float32")
        kept.append(model.encoder(attention=attention, pooling="mean"))
        kept[-1].encode_document(TEXTS)
    after = resident() or 0
    return {"first MB": before / 1e6, "added MB": (after - before) / 1e6}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2])))
