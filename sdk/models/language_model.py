"""One language model, loaded once, for every task that has a use for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast, get_args

from reperio import extras
from reperio.errors import ConfigurationError, NotFound, UnsupportedOperation
from reperio.models.checkpoint import (
    adapter_base,
    adapter_digest,
    locate,
    tensors_digest,
    tokenizer_digest,
    tokenizer_home,
    weights_digest,
)
from reperio.models.loading import (
    check_commit,
    first_position,
    load_adapters,
    load_model,
    load_tokenizer,
    merge_adapter,
    position_table,
    rope_change,
    text_model,
)
from reperio.models.rows import RowMaker
from reperio.models.view import ModelView, View
from reperio.protocols import Spec
from reperio.registry import resolve

if TYPE_CHECKING:
    from reperio.encoders.decoder import DecoderEncoder

__all__ = ["LanguageModel"]

DType: TypeAlias = Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"]

# On a processor a batch should stay in its cache; a GPU wants to be filled.
CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 65536


class LanguageModel:
    """A transformers model that is loaded once and seen in many ways.

    It is loaded when it is first used, from safetensors only, and every weight must be there. Each task takes a
    `view` of it: its attention, adapter, depth and temperature. Views share the weights, know nothing of each other,
    and may run in threads of their own.

    Parameters
    ----------
    model
        A folder, or a name on the Hugging Face hub.
    revision
        Commit, tag or branch on the hub; or the content of the weights, as ``fields()["weights"]`` tells it, to which
        they are held.
    device
        As torch names it; the best one there is where None.
    dtype
        Precision that weights are loaded in; ``"auto"`` is the checkpoint's. ``"int8"`` and ``"int4"`` need
        bitsandbytes.
    kernel
        transformers' attention implementation (``"sdpa"``, ``"eager"``, ``"flash_attention_2"``). Where None, rows are
        packed if the model can be; else it is transformers' own choice, with padding.
    adapters
        Folders of LoRA adapters by name; a view switches one on.
    trust_remote_code
        Whether code that comes with the model may run; then ``revision`` must be a full commit.
    batch_tokens
        Most tokens in a batch: a matter of speed and memory only.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    References
    ----------
    .. [1] LoRA: Hu et al., 2021. GritLM (one model to embed and to write): Muennighoff et al., 2024.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: DType = "auto",
        kernel: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        trust_remote_code: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        if dtype not in get_args(DType):
            raise ConfigurationError(f"dtype is {dtype!r}.", f"Use one of {', '.join(get_args(DType))}.")
        if batch_tokens is not None and batch_tokens <= 0:
            raise ConfigurationError(f"batch_tokens is {batch_tokens}.", "Use 1 or more.")
        if trust_remote_code:
            check_commit(revision)
        self.model = model
        self.revision = revision
        self.device = device
        self.dtype: DType = dtype
        self.kernel = kernel
        self.adapters = {name: Path(folder) for name, folder in (adapters or {}).items()}
        self.trust_remote_code = trust_remote_code
        self._batch_tokens = batch_tokens
        self._lock = threading.RLock()
        self._loaded: tuple[Any, Any] | None = None
        self._folder: Path | None = None
        self._views: dict[View, ModelView] = {}
        self._contents: dict[str, Any] | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, batch_tokens: int | None = None) -> Self:
        """Around a transformers model and tokenizer that are in memory; they are not changed."""
        out = cls(type(model).__name__, batch_tokens=batch_tokens)
        out._loaded = (model.eval(), tokenizer)
        return out

    @property
    def spec(self) -> Spec:
        """How to load it again; a folder by its whole path.

        Raises
        ------
        UnsupportedOperation
            If it was given a model in memory.
        """
        if self._loaded is not None and self._folder is None:
            raise UnsupportedOperation(f"A {self.model} in memory cannot be written down.", "Save it, give the folder.")
        return {
            "type": "LanguageModel",
            "model": str(Path(self.model).resolve()) if Path(self.model).is_dir() else str(self.model),
            "revision": self.revision,
            "device": self.device,
            "dtype": self.dtype,
            "kernel": self.kernel,
            "adapters": {name: str(folder.resolve()) for name, folder in self.adapters.items()} or None,
            "trust_remote_code": self.trust_remote_code,
            "batch_tokens": self._batch_tokens,
        }

    @property
    def name(self) -> str:
        """What a person calls it: folder or name, and revision where one was given."""
        return str(self.model) if self.revision is None else f"{self.model}@{self.revision}"

    @property
    def folder(self) -> Path | None:
        """Where it was loaded from; None for one that was made in memory."""
        self._load()
        return self._folder

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; not to be changed."""
        return self._load()[1]

    @property
    def network(self) -> Any:
        """The transformers model that all views share; not to be changed."""
        return self._load()[0]

    @property
    def config(self) -> Any:
        """The transformers configuration; not to be changed."""
        return self.network.config

    @property
    def batch_tokens(self) -> int:
        """Most tokens in a batch."""
        default = CPU_BATCH_TOKENS if self.network.device.type == "cpu" else GPU_BATCH_TOKENS
        return self._batch_tokens or default

    @property
    def dim(self) -> int:
        """Hidden size, d."""
        return int(text_model(self.network).config.hidden_size)

    @property
    def positions(self) -> int | None:
        """Most tokens that it can read at once; None where nothing says."""
        return _positions(text_model(self.network))

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that it reads at once, unless told otherwise; None where nothing says."""
        known = [int(n) for n in (self.positions, self.tokenizer.model_max_length) if n is not None and 0 < n < 2**31]
        return min(known) if known else None

    def view(self, view: View | str = "own", /) -> ModelView:
        """One way to run the model, proved on it when it is first asked for; the same object each time.

        Parameters
        ----------
        view
            How to see it; a str is its attention.

        Raises
        ------
        UnsupportedOperation
            If the model does not do what the attention's name says, by a probe of two short calls.
        ConfigurationError
            For more layers than there are.
        NotFound
            If there is no adapter of this name.
        """
        asked = View(view) if isinstance(view, str) else view
        if asked.adapter is not None and asked.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise NotFound(f"There is no adapter {asked.adapter!r}.", f"Loaded: {known}.")
        if asked.attention == "echo":  # which is a matter of the rows
            asked = replace(asked, attention="causal")
        network, tokenizer = self._load()
        with self._lock:
            if asked not in self._views:
                ordinary = _ordinary(tokenizer, network.config.get_text_config())
                self._views[asked] = ModelView(network, view=asked, packs=self.kernel is None, vocabulary=ordinary)
            return self._views[asked]

    def encoder(self, **settings: Any) -> DecoderEncoder:
        """A `DecoderEncoder` over this model; ``settings`` are its own."""
        return cast("DecoderEncoder", resolve("DecoderEncoder")(self, **settings))

    def rows(self, **settings: Any) -> RowMaker:
        """How texts become rows of this model's tokens; ``settings`` are those of `RowMaker`."""
        return RowMaker(self.tokenizer, **settings)

    def fields(self, adapter: str | None = None) -> dict[str, Any]:
        """What its numbers hang on, for a fingerprint: contents, not places."""
        network, tokenizer = self._load()
        with self._lock:
            if self._contents is None:
                self._contents = self._told(network, tokenizer)
            used = {} if adapter is None else {"adapter": adapter_digest(self.adapters[adapter])}
            return {**self._contents, **used}

    def _told(self, network: Any, tokenizer: Any) -> dict[str, Any]:
        precision = self.dtype if self.dtype in ("int8", "int4") else str(network.dtype).removeprefix("torch.")
        if self._folder is not None:
            base = adapter_base(self._folder)
            merged = {} if base is None else {"merged adapter": adapter_digest(self._folder)}
            words = tokenizer_home(self._folder, base)
            told = {"weights": weights_digest(base or self._folder), "tokenizer": tokenizer_digest(words), **merged}
        else:
            plain = RowMaker(tokenizer).definition().encode()
            told = {
                "weights": tensors_digest(network.state_dict().items()),
                "tokenizer": f"memory {hashlib.sha256(plain).hexdigest()[:32]}",
            }
        return {**told, "config": _settings(network.config), "dtype": precision}

    def _located(self) -> Path:
        """The folder; where the weights' content is pinned, it is this content."""
        if self.revision is None or not self.revision.startswith("files "):
            return locate(self.model, self.revision)
        folder = locate(self.model)
        found = weights_digest(adapter_base(folder) or folder)
        if found != self.revision:
            problem = f"The weights in {folder} are {found!r}, and {self.revision!r} was asked for."
            raise ConfigurationError(problem, "Fetch the model again, or pin what it is now.")
        return folder

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                extras.load("torch", extra="models")
                folder = self._located()
                base = adapter_base(folder)
                words = tokenizer_home(folder, base)
                tokenizer = load_tokenizer(words, trust_remote_code=self.trust_remote_code)
                whole, code = base or folder, self.trust_remote_code
                network = load_model(whole, dtype=self.dtype, device=self.device, kernel=self.kernel, code=code)
                if base is not None:
                    merge_adapter(network, folder)
                load_adapters(network, self.adapters)
                self._folder, self._loaded = folder, (network, tokenizer)
            return self._loaded


# What a configuration says that changes no state.
_ASIDE = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "quantization_config"),
    *("transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
}


def _settings(config: Any) -> str:
    """Digest of a configuration, as far as it is not the usual one: the same weights give other states by another."""
    told = {name: value for name, value in config.to_diff_dict().items() if name not in _ASIDE}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _positions(base: Any) -> int | None:
    """How many positions the model knows; those of a table are counted from after the padding's, as in RoBERTa.

    Where rotary frequencies change with the longest row of a call (``"dynamic"``), no more than leave them alone.
    """
    table = position_table(base)
    if table is not None:
        return int(table.num_embeddings) - first_position(base)
    rope = rope_change(base.config)
    if rope is not None and rope[0] == "dynamic":
        return rope[1]
    positions: int = getattr(base.config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else None


def _ordinary(tokenizer: Any, config: Any) -> list[int]:
    """Some ids that are words or parts of words."""
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), config.vocab_size)
    ids = [token for token in range(size // 2, size) if token not in special][:200]
    return ids or list(range(size))
