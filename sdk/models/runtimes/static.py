"""Static token tables, in numpy: a text's vector is the mean of its tokens' rows, and no model runs.

Minish Lab's model2vec: https://github.com/MinishLab/model2vec
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.artifacts import loading
from reperio.embeddings import Dense, check_dense
from reperio.errors import ConfigurationError, CorruptArtifact
from reperio.models.checkpoint import tokenizer_digest, weight_files, weights_digest
from reperio.models.inputs import ROLES, Role, TextInput
from reperio.models.modules import COMMON, MODULES, read_modules, read_prompts
from reperio.models.runtimes.heads import normalized
from reperio.models.runtimes.plain import open_tokenizer, tokenized
from reperio.models.windows import Frame, Tokens

__all__ = ["StaticModel"]

_EXTRA = "static"
_LENGTH = 512
"""Tokens that model2vec reads where a model does not say."""


@dataclass(frozen=True, slots=True)
class _Bag:
    """A bag of token ids for each text, of any length, without special tokens."""

    tokenizer: Any
    prompt: str
    frame: Frame
    unknown: int | None

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """All tokens of each text with its prompt, none cut; those of model2vec without what it does not know."""
        rows = tokenized(self.tokenizer, [self.prompt + text for text in texts], special=False)
        return rows if self.unknown is None else [row[row != self.unknown] for row in rows]

    def prompt_tokens(self, row: Tokens) -> int:
        """None: a window of a bag of words needs no prompt of its own."""
        return 0

    def features(self, rows: Sequence[Tokens]) -> dict[str, Any]:
        """All ids in one row, and where each text starts."""
        starts = np.cumsum([0, *map(len, rows[:-1])], dtype=np.int64)
        return {"input_ids": np.concatenate(rows), "offsets": starts}

    def definition(self) -> str:
        """The tokenizer as JSON."""
        text: str = self.tokenizer.to_str()
        return text


class StaticModel:
    """A table of token vectors in a folder, as model2vec or sentence-transformers lays it out.

    In model2vec's layout (``embeddings`` among the weights, ``config.json``) vectors are model2vec's, which leaves
    unknown tokens out; in sentence-transformers' (``embedding.weight``, ``modules.json``) they are those of its
    ``StaticEmbedding``.

    Parameters
    ----------
    folder
        Where the model lies.
    normalize, max_tokens
        As `reperio.models.sentence.SentenceModel` has them.

    Raises
    ------
    ConfigurationError
        If there is no table of tokens.
    CorruptArtifact
        If a file cannot be read.
    """

    runtime, dtype, probe = "static", "float32", None
    batch_tokens = 65536

    def __init__(self, folder: Path, *, normalize: bool | None = None, max_tokens: int | None = None) -> None:
        weight_files(folder)  # refuses pickles
        self._folder = folder
        with loading(folder, "static model"):
            modules = read_modules(folder) if (folder / MODULES).is_file() else []
            names = [module.name for module in modules] or ["StaticEmbedding"]
            place = modules[0].path if modules else folder
            tensors = _tensors(place / "model.safetensors")
            definition = (place / "tokenizer.json").read_text("utf-8")
            tokenizer = open_tokenizer(definition, extra=_EXTRA)
            config, said = _json(place / "config.json", {}), _json(folder / COMMON, {})
            cut: Any = json.loads(definition)["truncation"]
        own = _checked(folder, names, tensors)
        self._table: NDArray[Any] = tensors["embeddings" if own else "embedding.weight"]
        self._mapping, self._shares = tensors.get("mapping"), tensors.get("weights")
        ended = bool(config["normalize"]) if own and "normalize" in config else names[-1] == "Normalize"
        self._last = ended and normalize is not False, bool(normalize)
        self._truncate: int | None = said.get("truncate_dim")
        self.normalized = self._last[1] or (self._last[0] and self._truncate is None)
        self.dim = min(self._table.shape[1], self._truncate or self._table.shape[1])
        saved: int | None = config.get("max_length", _LENGTH) if own else cut and cut["max_length"]
        self._unknown = _unknown(tokenizer) if own else None
        frame = Frame(limit=max_tokens or saved)
        self._prompts = read_prompts(folder)
        self.inputs: Mapping[Role, TextInput] = {
            role: _Bag(tokenizer, self._prompts[role], frame, self._unknown) for role in ROLES
        }

    def forward(self, rows: Sequence[Tokens], role: Role) -> Dense:
        """Embeddings of rows, ``(n, d)``, float32.

        Raises
        ------
        ShapeError
            If the table holds NaN or infinity.
        """
        features = self.inputs[role].features(rows)
        ids = features["input_ids"]
        vectors: Dense = self._table[ids if self._mapping is None else self._mapping[ids]].astype(np.float32)
        if self._shares is not None:
            vectors *= self._shares[ids][:, None].astype(np.float32)
        sums: Dense = np.add.reduceat(vectors, features["offsets"], axis=0)
        out: Dense = sums / np.array([len(row) for row in rows], dtype=np.float32)[:, None]
        if self._last[0]:
            out = normalized(out)
        out = np.ascontiguousarray(out[:, : self._truncate])
        return check_dense(normalized(out) if self._last[1] else out, what="The model's output", rows=len(rows))

    def fields(self) -> dict[str, Any]:
        """Everything that its numbers hang on, for a fingerprint: what torch's says, where they are the same."""
        unknown = {} if self._unknown is None else {"unknown": "left out"}
        return {
            "weights": weights_digest(self._folder),
            "tokenizer": tokenizer_digest(self._folder),
            "modules": ["StaticEmbedding", *["Normalize"] * self._last[0]],
            "pooling": [],
            "prompts": self._prompts,
            "normalized": self.normalized,
            "dtype": self.dtype,
            "max_tokens": self.inputs["document"].frame.limit,
            **unknown,
        }


def _tensors(file: Path) -> dict[str, NDArray[Any]]:
    broken = extras.load("safetensors", extra=_EXTRA).SafetensorError
    try:
        found: dict[str, NDArray[Any]] = extras.load("safetensors.numpy", extra=_EXTRA).load_file(file)
    except broken as error:
        raise CorruptArtifact(f"{file} cannot be read: {error}.", "Fetch it again.") from error
    return found


def _checked(folder: Path, names: list[str], tensors: Mapping[str, Any]) -> bool:
    """Whether a table is in model2vec's layout; refuses what is none."""
    fix = "Leave device out, or use device='openvino'."
    if names not in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
        raise ConfigurationError(f"{folder} holds {names}, not a table of token vectors.", fix)
    if not tensors.keys() & {"embeddings", "embedding.weight"}:
        problem = f"{folder} holds the tensors {sorted(tensors)[:3]}, not a table of token vectors."
        raise ConfigurationError(problem, fix)
    return "embeddings" in tensors


def _unknown(tokenizer: Any) -> int | None:
    """The id for what a tokenizer does not know."""
    model: Mapping[str, Any] = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        found: int | None = tokenizer.token_to_id(model["unk_token"])
        return found
    return model.get("unk_id")


def _json(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else otherwise
