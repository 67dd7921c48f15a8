"""Sparse queries without a model: each token weighs what a table says. The documents' model has done the work."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reperio.artifacts import new_folder, read_folder
from reperio.embeddings import Sparse
from reperio.encoders import sparse
from reperio.encoders.sparse_layouts import TYPES, read_layout, write_common, write_json
from reperio.encoders.token_weights import TokenWeights
from reperio.errors import ConfigurationError, NotFound, StorageError, UnsupportedOperation
from reperio.models.language_model import LanguageModel
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["InferenceFreeEncoder"]

_KIND = "inference-free-encoder"
_QUERIES = "query_0_SparseStaticEmbedding"
_DOCUMENTS = {"document_0_Transformer": "sparse-model", "document_1_SpladePooling": "splade-pooling"}
"""What `save` puts into a folder, and what each is."""


class InferenceFreeEncoder:
    """Documents by a model, queries by a table: a query costs its tokenisation and needs no torch.

    Parameters
    ----------
    documents
        A sparse encoder; or a folder of sentence-transformers whose `Router` sends queries through
        `SparseStaticEmbedding`, or that `save` wrote.
    queries
        The table, or its folder; that of the folder ``documents`` where None.

    Raises
    ------
    ConfigurationError
        If there is no table, or the two have different vocabularies.

    References
    ----------
    .. [1] Geng et al., 2024 (arXiv 2411.04403) and 2025 (arXiv 2504.14839).
    """

    def __init__(
        self, documents: Encoder[Sparse] | str | Path, queries: TokenWeights | str | Path | None = None
    ) -> None:
        self._folder = Path(documents) if isinstance(documents, str | Path) else None
        if self._folder is not None:
            documents, table = _opened(self._folder)
            queries = table if queries is None else queries
        if queries is None:
            raise ConfigurationError("There is no table of weights for queries.", "Give queries=TokenWeights(...).")
        self.documents: Encoder[Sparse] = documents  # type: ignore[assignment]
        self.queries = queries if isinstance(queries, TokenWeights) else TokenWeights(queries)
        self._lock = threading.Lock()
        self._fingerprint: Fingerprint | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If the table or the model is in memory only.
        """
        documents = dict(self.documents.spec) if self._folder is None else str(self._folder.resolve())
        return {"type": "InferenceFreeEncoder", "documents": documents, "queries": dict(self.queries.spec)}

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare. Loads the documents' model, unless `save` has kept its own."""
        with self._lock:
            if self._fingerprint is None:
                documents = _kept(self._folder) or self.documents.fingerprint
                if documents.dim != self.queries.dim:
                    problem = f"The table weighs {self.queries.dim} tokens, and documents have {documents.dim} columns."
                    raise ConfigurationError(problem, "Use the tokenizer of the documents' model, and its size.")
                parts = {"documents": documents.digest, "queries": self.queries.fingerprint.digest}
                self._fingerprint = Fingerprint.make("sparse", documents.model, documents.dim, **parts)
            return self._fingerprint

    @property
    def weights_below(self) -> int:
        """Columns from here on hold counts: none does."""
        return self.queries.dim

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Weights of queries, from the table; see `TokenWeights.encode_query`."""
        return self.queries.encode_query(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Weights of documents, from the model; see `SparseEncoder.encode_document`."""
        return self.documents.encode_document(texts)

    def terms(self, text: str) -> dict[int, str]:
        """Column → token of ``text``, for explanations."""
        return self.queries.terms(text)

    def save(self, path: Path | str, /) -> None:
        """Write a folder that sentence-transformers' `SparseEncoder`, and this one, opens: whole or not at all.

        Raises
        ------
        UnsupportedOperation
            As `SparseEncoder.save`; or if documents have another kind of encoder.
        """
        if not isinstance(self.documents, sparse.SparseEncoder):
            problem = f"Documents are encoded by a {type(self.documents).__name__}, which has no such layout."
            raise UnsupportedOperation(problem, "Use a SparseEncoder.")
        names = {"query": [_QUERIES], "document": [*_DOCUMENTS]}
        kinds = {name: TYPES[name.rpartition("_")[2]] for route in names.values() for name in route}
        parameters: dict[str, Any] = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
        meta: dict[str, Any] = {}
        with new_folder(path, _KIND, meta) as folder:
            self.queries.save(folder / names["query"][0])
            with new_folder(folder / names["document"][0], _DOCUMENTS[names["document"][0]], {}) as inside:
                self.documents.write_model(inside)
            self.documents.write_pooling(folder / names["document"][1])
            write_json(folder / "router_config.json", {"types": kinds, "structure": names, "parameters": parameters})
            settings = self.documents
            write_common(folder, {"": "Router"}, prompts=settings.prompts or {}, top_n=settings.limit("document"))
            told = _opened(folder)[0].fingerprint
            meta["documents"] = {"dim": told.dim, "fields": told.fields}


def _opened(folder: Path) -> tuple[sparse.SparseEncoder, TokenWeights | None]:
    """What a folder has for documents, and for queries."""
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}.", "Check the path.")
    layout = read_layout(folder)
    if layout is None:
        return sparse.SparseEncoder(folder), None
    how: Any = {"pooling": layout.pooling, "activation": layout.activation, "top_n": layout.top_n}
    how |= {"prompts": layout.prompts, "max_tokens": layout.max_tokens}
    documents = sparse.SparseEncoder(LanguageModel(layout.model), **how)
    return documents, None if layout.queries is None else TokenWeights(layout.queries)


def _kept(folder: Path | None) -> Fingerprint | None:
    """The fingerprint that `save` kept, while it holds: of these very files, under this release's numbers."""
    if folder is None:
        return None
    try:
        meta = read_folder(folder, _KIND)
        for name, kind in _DOCUMENTS.items():
            read_folder(folder / name, kind)
    except (NotFound, StorageError):  # a folder of somebody else's, or that was changed
        return None
    told = meta["documents"]
    fields = tuple((name, value) for name, value in told["fields"])
    found = Fingerprint("sparse", str(folder / next(iter(_DOCUMENTS))), told["dim"], fields)
    now = Fingerprint.make("", "", 0, version=sparse.VERSION)
    return found if set(now.fields) <= set(found.fields) else None
