"""A weight for each token of a tokenizer: an encoder that looks up what a table says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from reperio import extras, meter
from reperio.artifacts import new_folder
from reperio.embeddings import Sparse
from reperio.encoders.sparse_layouts import read_json, write_json
from reperio.encoders.texts import check_batch, check_texts
from reperio.errors import ConfigurationError, InvalidInput, NotFound, UnsupportedOperation
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["TokenWeights"]

VERSION = 1
"""Raised whenever the same table would give other weights here."""

_TOKENIZER = "tokenizer.json"
_WEIGHTS = "model.safetensors"
_SETTINGS = "tokenizer_config.json"
_IDF = "idf.json"
_TEXTS_AT_ONCE = 1024


class TokenWeights:
    """Gives each token of a text, once, the weight that a table has for it. It needs no torch, and cuts no text.

    Parameters
    ----------
    folder
        Holds ``tokenizer.json``, and ``model.safetensors`` or ``idf.json`` (token → weight): what
        sentence-transformers calls `SparseStaticEmbedding`.

    Raises
    ------
    NotFound
        If a file is missing.
    ConfigurationError
        If the table is another tokenizer's, or holds a weight that is negative or no number.

    References
    ----------
    .. [1] Towards Competitive Search Relevance for Inference-Free Learned Sparse Retrievers: Geng et al., 2024.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path | None = Path(folder)
        self._tokenizer = read_tokenizer(self.folder)
        self._settings = _settings(self.folder)
        self.weights = _checked(_read(self.folder, self._tokenizer), self._tokenizer, str(folder))

    @classmethod
    def of(cls, tokenizer: Any, weights: NDArray[np.float32], *, settings: Mapping[str, Any] | None = None) -> Self:
        """Around a tokenizer of the library tokenizers, which is not changed, and its weights, ``(V,)``.

        ``settings`` are what transformers wants to know of the tokenizer, where the table will be saved for it: which
        token pads a batch.
        """
        out = cls.__new__(cls)
        out.folder = None
        out._settings = dict(settings or {})
        out._tokenizer = _plain(tokenizer.to_str())
        out.weights = _checked(weights, out._tokenizer, "weights")
        return out

    @classmethod
    def from_corpus(cls, texts: Iterable[str], tokenizer: str | Path, *, size: int | None = None) -> Self:
        """Weigh each token by how few texts hold it: idf = ln(1 + (n - df + 0.5) / (df + 0.5)), of n texts.

        Parameters
        ----------
        texts
            Read once, a few at a time.
        tokenizer
            A folder with ``tokenizer.json``: that of the documents' model.
        size
            V of the documents' model, where it is larger than the tokenizer's vocabulary.

        Raises
        ------
        ConfigurationError
            If ``size`` is below the tokenizer's vocabulary.
        InvalidInput
            If there is no text.
        """
        check_batch(texts)
        made = read_tokenizer(Path(tokenizer))
        known = _size(made)
        if size is not None and size < known:
            raise ConfigurationError(f"size is {size}; the tokenizer has {known} tokens.", f"Use {known} or more.")
        found = np.zeros(known if size is None else size, dtype=np.int64)
        count = 0
        waiting: Iterator[str] = iter(texts)
        while some := list(islice(waiting, _TEXTS_AT_ONCE)):
            for encoded in made.encode_batch(check_texts(some, start=count), add_special_tokens=False):
                found[np.unique(encoded.ids).astype(np.int64)] += 1
            count += len(some)
        if not count:
            raise InvalidInput("There is no text to count tokens in.", "Give the texts of the collection.")
        weights = np.log1p((count - found + 0.5) / (found + 0.5)).astype(np.float32)
        return cls.of(made, weights, settings=_settings(Path(tokenizer)))

    @property
    def spec(self) -> Spec:
        """How to build this encoder again; its folder by the whole path.

        Raises
        ------
        UnsupportedOperation
            If it is in memory only.
        """
        if self.folder is None:
            raise UnsupportedOperation("A table in memory cannot be written down.", "Save it, and open the folder.")
        return {"type": "TokenWeights", "folder": str(self.folder.resolve())}

    @property
    def dim(self) -> int:
        """V."""
        return len(self.weights)

    @property
    def weights_below(self) -> int:
        """Columns from here on hold counts: none does."""
        return self.dim

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare: the table and the tokenizer."""
        told = {"tokenizer": self._tokenizer.to_str().encode(), "weights": self.weights.tobytes()}
        parts = {name: hashlib.sha256(content).hexdigest()[:32] for name, content in told.items()}
        return Fingerprint.make("sparse", "token-weights", self.dim, **parts, version=VERSION)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Texts → the weight of each token that occurs, however often it does; a weight of 0 is left out.

        Raises
        ------
        EmptyText, InvalidInput
            As every encoder.
        """
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Texts, as queries are."""
        return self._encode(texts)

    def terms(self, text: str) -> dict[int, str]:
        """Column → token of ``text``, for explanations; raises what `encode_query` raises."""
        [encoded] = self._tokenizer.encode_batch(check_texts([text]), add_special_tokens=False)
        return {token: self._word(token) for token in sorted(set(encoded.ids))}

    def save(self, path: Path | str, /) -> None:
        """Write the folder of a `SparseStaticEmbedding`: whole or not at all."""
        with new_folder(path, "token-weights", {}) as folder:
            self._tokenizer.save(str(folder / _TOKENIZER))
            write_json(folder / _SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast", **self._settings})
            write_json(folder / "config.json", {"frozen": False})
            extras.load("safetensors.numpy", extra="models").save_file({"weight": self.weights}, folder / _WEIGHTS)

    def _encode(self, texts: Sequence[str]) -> Encoded[Sparse]:
        encoded = self._tokenizer.encode_batch(check_texts(texts), add_special_tokens=False)
        counts = np.array([len(one.ids) for one in encoded], dtype=np.int64)
        rows = [np.unique(np.array(one.ids, dtype=np.int64)) for one in encoded]
        rows = [row[self.weights[row] > 0] for row in rows]
        columns = np.concatenate([np.empty(0, dtype=np.int64), *rows])
        indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        meter.count("texts", len(counts))
        meter.count("tokens", int(counts.sum()))
        cut = np.zeros(len(counts), dtype=np.bool_)
        return Encoded(Sparse(indptr, columns, self.weights[columns], self.dim), counts, cut)

    def _word(self, token: int) -> str:
        plain = str(self._tokenizer.decode([token])).strip()
        return plain if plain and "\N{REPLACEMENT CHARACTER}" not in plain else str(self._tokenizer.id_to_token(token))


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, which cuts and pads nothing.

    Raises
    ------
    NotFound
        If there is none.
    ConfigurationError
        If it cannot be read.
    """
    file = folder / _TOKENIZER
    if not file.is_file():
        raise NotFound(f"{folder} has no {_TOKENIZER}.", "Give a folder with a fast tokenizer.")
    try:
        return _plain(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}", "Fetch the model again.") from error


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS
    return dict(read_json(file)) if file.is_file() else {}


def _plain(definition: str) -> Any:
    made = extras.load("tokenizers", extra="models")
    try:
        out = made.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(str(error)) from error
    out.no_truncation()
    out.no_padding()
    return out


def _read(folder: Path, tokenizer: Any) -> NDArray[np.float32]:
    if (folder / _WEIGHTS).is_file():
        broken = extras.load("safetensors", extra="models").SafetensorError
        try:
            tensors = extras.load("safetensors.numpy", extra="models").load_file(folder / _WEIGHTS)
            found: NDArray[np.float32] = tensors["weight"].astype(np.float32)
        except (KeyError, OSError, TypeError, broken) as error:
            problem = f"{folder / _WEIGHTS} has no table of weights: {error}"
            raise ConfigurationError(problem, "Give the folder of a SparseStaticEmbedding.") from error
        return found
    if not (folder / _IDF).is_file():
        raise NotFound(f"{folder} has neither {_WEIGHTS} nor {_IDF}.", "Give the folder of a SparseStaticEmbedding.")
    table: dict[str, float] = read_json(folder / _IDF)
    ids = [tokenizer.token_to_id(token) for token in table]
    if None in ids:
        problem = f"{folder / _IDF} weighs {list(table)[ids.index(None)]!r}, which the tokenizer does not know."
        raise ConfigurationError(problem, "Give the tokenizer that the table was made with.")
    out = np.zeros(tokenizer.get_vocab_size(), dtype=np.float32)
    out[ids] = list(table.values())
    return out


def _size(tokenizer: Any) -> int:
    return int(max(tokenizer.get_vocab().values())) + 1


def _checked(weights: NDArray[np.float32], tokenizer: Any, where: str) -> NDArray[np.float32]:
    size = _size(tokenizer)
    if weights.ndim != 1 or len(weights) < size:
        problem = f"{where} has weights of shape {weights.shape}, and the tokenizer has {size} tokens."
        raise ConfigurationError(problem, "Give one weight for each token.")
    bad = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
    if len(bad):
        problem = f"{where}: the token {tokenizer.id_to_token(int(bad[0]))!r} weighs {weights[bad[0]]}"
        raise ConfigurationError(f"{problem} ({len(bad)} such weights).", "Weights are finite, 0 or more.")
    return np.ascontiguousarray(weights, dtype=np.float32)
