"""One way to run a loaded model: its attention, adapter, depth and temperature; the weights stay where they are."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import chain, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError
from reperio.models.attention import AttentionMode, apply, summary_mask
from reperio.models.batching import Rows, run_halving, token_batches
from reperio.models.loading import find_layers, first_position, rope_change, switch_adapter, text_model
from reperio.models.packing import Segments, pack_batches, register
from reperio.models.probe import NEAR, Probe, probe
from reperio.models.rows import Row
from reperio.models.states import Head, TokenStates
from reperio.protocols import Spec

__all__ = ["ModelView", "View", "sharing_copy"]

R = TypeVar("R")

# Layers of the model that runs in this thread put their states here.
_kept: ContextVar[dict[int, Any] | None] = ContextVar("reperio_layers", default=None)


@dataclass(frozen=True, slots=True)
class View:
    """How a model is to be seen.

    Attributes
    ----------
    attention
        ``"own"`` as the checkpoint says, ``"causal"``, ``"bidirectional"``, ``"last-K"`` for bidirectional in the
        last K layers, ``"echo"``, ``"summary"``.
    adapter
        Name of the LoRA adapter that is switched on; none where None.
    depth
        How many layers are run; all where None.
    temperature
        Divides what goes into each softmax of attention (TempScale, Zhou et al., 2024); below 1 it sharpens.
    summary
        With the attention ``"summary"``: the tokens that stand after each text and are pooled in its place; what comes
        after them sees the text through them alone (GEM, Zhang et al., 2025).
    """

    attention: str = "own"
    adapter: str | None = None
    depth: int | None = None
    temperature: float = 1.0
    summary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        AttentionMode.parse(self.attention)
        if not 0 < self.temperature < float("inf"):
            raise ConfigurationError(f"temperature is {self.temperature}.", "Use a positive number, 0.9 to 1 is usual.")
        if self.depth is not None and self.depth < 1:
            raise ConfigurationError(f"depth is {self.depth}.", "Use 1 or more layers.")
        # Of a specification it is a list; one name alone is one token.
        object.__setattr__(self, "summary", (self.summary,) if isinstance(self.summary, str) else tuple(self.summary))
        object.__setattr__(self, "temperature", float(self.temperature))
        if bool(self.summary) != (self.attention == "summary"):
            problem = f"attention is {self.attention!r}, and summary names {len(self.summary)} tokens."
            raise ConfigurationError(problem, "Use attention='summary' with the tokens' names, and neither without.")

    @property
    def mode(self) -> AttentionMode:
        """The attention, parsed."""
        return AttentionMode.parse(self.attention)

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {"type": "View", **asdict(self), "summary": list(self.summary)}

    def fields(self) -> dict[str, Any]:
        """What states hang on, but for the adapter, which is told by its content."""
        return {name: value for name, value in asdict(self).items() if name != "adapter"}


def _tensors(thing: Any) -> list[Any]:
    torch = extras.load("torch", extra="models")
    held: dict[str, Any] = thing.__dict__
    return [value for value in held.values() if torch.is_tensor(value)]


def _quantized(model: Any) -> Iterator[Any]:
    """Weights that a quantised layer keeps outside its parameters."""
    for part in model.modules():
        state = getattr(part, "state", None)
        if hasattr(part, "init_8bit_state") and state is not None:
            if part.weight.CB is not None:  # bitsandbytes moves it at the first call, out of the copies' reach
                part.init_8bit_state()
            yield from _tensors(state)


def sharing_copy(model: Any) -> Any:
    """A copy of a torch module with hooks and configuration of its own, whose weights are the very same tensors."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers(), _quantized(model))}
    return copy.deepcopy(model, shared)


class ModelView:
    """A model as one task sees it. Made by `LanguageModel.view`.

    Parameters
    ----------
    model
        A transformers model. It is not changed; its weights are not copied.
    view
        How it is to be seen.
    packs
        Whether rows may be packed.
    vocabulary
        Ids of ordinary tokens, for the probe.

    Attributes
    ----------
    model
        The copy that this view runs: a transformers model like any other.
    probe
        What was proved of it when it was made.
    """

    def __init__(
        self,
        model: Any,
        *,
        view: View,
        packs: bool = True,
        vocabulary: Sequence[int],
    ) -> None:
        self._torch = extras.load("torch", extra="models")
        self.mode = mode = view.mode
        self.model = sharing_copy(model)
        if view.adapter is not None:
            switch_adapter(self.model, view.adapter)
        self._base = text_model(self.model)
        parent, name, layers = find_layers(self._base)
        self.layers = len(layers)
        if view.depth is not None:
            layers = self._cut(parent, name, layers, view.depth)
        apply(mode, self._base, layers)
        _scale(layers, view.temperature)
        layers[0].register_forward_pre_hook(_keep_embeddings, with_kwargs=True)
        for number, layer in enumerate(layers, 1):
            layer.register_forward_hook(_KeepStates(number))
        self.depth = len(layers)
        self.dtype = str(next(model.parameters()).dtype if not hasattr(model, "dtype") else model.dtype)
        self.dtype = self.dtype.removeprefix("torch.")
        rope = rope_change(self._base.config)
        self._rope = None if rope is None else rope[1]
        # transformers keeps such positions in the model between calls, so one call at a time.
        self._lock = nullcontext() if rope is None else threading.RLock()
        self._proven: float = np.inf
        self._packed: Any = None
        if packs and mode.name != "summary":
            self._packed = sharing_copy(self._base)
            self._packed.set_attn_implementation(register())
        self.probe = self._probe(vocabulary)

    @property
    def device(self) -> Any:
        """Where the embeddings of tokens are."""
        return self._base.get_input_embeddings().weight.device

    @property
    def packs(self) -> bool:
        """Whether rows are packed, not padded."""
        return self._packed is not None

    def run(self, rows: Sequence[Row], head: Head[R], *, budget: int) -> Iterator[tuple[Rows, R]]:
        """States of all rows through a head, batch by batch.

        Parameters
        ----------
        rows
            Of any lengths, in any order.
        head
            Gives one result for each row of a batch, on the model's device.
        budget
            Most tokens in a batch, its padding counted. Where memory runs out, the batch is halved.

        Yields
        ------
        tuple
            Positions of the rows of a batch, and what the head gave. Each row comes once.
        """
        wanted = tuple(getattr(head, "layers", (self.depth,)))
        router = bool(getattr(head, "router", False))
        for group, packed in self._groups(rows):
            lengths = [len(rows[int(i)]) for i in group]
            parts = pack_batches(lengths, budget) if packed else token_batches(lengths, budget)
            forward = self._forward(rows, head, {"layers": wanted, "router": router, "packed": packed})
            yield from run_halving([group[part] for part in parts], forward)

    def _forward(self, rows: Sequence[Row], head: Head[R], how: Mapping[str, Any]) -> Callable[[Rows], Any]:
        def forward(batch: Rows) -> Any:
            with self._torch.inference_mode():
                return head(self.states([rows[int(i)] for i in batch], **how))

        return forward

    def _groups(self, rows: Sequence[Row]) -> Iterator[tuple[Rows, bool]]:
        """Rows that may share a batch, and whether it is a pack."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        unseen = np.array([row.unseen for row in rows], dtype=np.int64) > 0
        packed = ~unseen & (lengths <= self._proven) if self.packs else np.zeros(len(rows), dtype=np.bool_)
        # Long rotary positions change with the longest row of a call.
        long = lengths > (self._rope or np.inf)
        for packs, beyond in product((True, False), (False, True)):
            group = np.flatnonzero((packed == packs) & (long == beyond))
            if len(group):
                yield group, packs

    def states(
        self,
        rows: Sequence[Row],
        *,
        layers: Sequence[int] | None = None,
        router: bool = False,
        packed: bool = False,
    ) -> TokenStates:
        """States of one batch of rows; gradients flow where torch records them."""
        wanted = tuple(self._number(layer) for layer in (layers or (self.depth,)))
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        spans = np.array([(row.start, row.stop) for row in rows], dtype=np.int64) + offsets[:-1, None]
        run = self._run_packed if packed else self._run_padded
        token = _kept.set(kept := dict.fromkeys(wanted))
        try:
            with self._lock:
                ids, last, out, gather = run(rows, lengths, router=router)
        finally:
            _kept.reset(token)
        # Where fewer layers are run, the last one's states are taken before the norm, as of any layer but the last.
        found = {**kept, self.layers: last} if self.depth == self.layers else kept
        picked = tuple(gather(found[layer]) for layer in wanted)
        routed = tuple(gather(logits) for logits in (getattr(out, "router_logits", None) or ()))
        if router and not routed:
            raise ConfigurationError(f"{type(self.model).__name__} has no router.", "Use a mixture-of-experts model.")
        leads = np.array([row.lead for row in rows], dtype=np.int64)
        return TokenStates(ids, picked, offsets, spans, routed, leads)

    def _number(self, layer: int) -> int:
        number = layer if layer >= 0 else self.depth + 1 + layer
        if not 0 <= number <= self.depth:
            raise ConfigurationError(f"layer is {layer}, and {self.depth} layers are run.", f"Use 0 to {self.depth}.")
        return number

    def _run_packed(self, rows: Sequence[Row], lengths: NDArray[np.int64], *, router: bool) -> Any:
        torch, device = self._torch, self.device
        ids = torch.from_numpy(np.concatenate([row.ids for row in rows]).astype(np.int64)).to(device)
        first = first_position(self._base)
        sizes: list[int] = lengths.tolist()
        positions = np.concatenate([np.arange(first, first + size) for size in sizes])
        ahead = [self._sees_ahead(layer) for layer in range(self.depth)]
        how = {"output_router_logits": True} if router else {}
        out = self._packed(
            input_ids=ids[None],
            position_ids=torch.from_numpy(positions).to(device)[None],
            use_cache=False,
            segments=Segments.of(lengths, ahead, edge=self.mode.name != "own"),
            **how,
        )

        def gather(states: Any) -> Any:
            return states.reshape(len(ids), -1)

        return ids, out.last_hidden_state, out, gather

    def _run_padded(self, rows: Sequence[Row], lengths: NDArray[np.int64], *, router: bool) -> Any:
        torch, device = self._torch, self.device
        width = int(lengths.max())
        pad = self._base.config.pad_token_id
        known = pad is not None and 0 <= pad < self._base.config.vocab_size  # else any: no token looks at it
        ids = np.full((len(rows), width), pad if known else 0, dtype=np.int64)
        mask = np.arange(width)[None, :] < lengths[:, None]
        ids[mask] = np.concatenate([row.ids for row in rows])
        seen = torch.from_numpy(mask).to(device)
        tokens = torch.from_numpy(ids).to(device)
        how: dict[str, Any] = {"output_router_logits": True} if router else {}
        looked_at = lengths - np.array([row.unseen for row in rows], dtype=np.int64)
        attention = torch.from_numpy(np.arange(width)[None, :] < looked_at[:, None]).to(device).long()
        if self.mode.both_ways > 0:
            how["padding"] = attention
        if self.mode.name == "summary":
            starts, stops = ([getattr(row, end) for row in rows] for end in ("start", "stop"))
            attention = self._kernel_mask(summary_mask(lengths, starts, stops, width=width).to(device))
        out = self._base(input_ids=tokens, attention_mask=attention, use_cache=False, **how)

        def gather(states: Any) -> Any:
            return states.reshape(len(rows), width, -1)[seen]

        return tokens[seen], out.last_hidden_state, out, gather

    def _kernel_mask(self, seen: Any) -> Any:
        """A mask of who sees whom as the attention kernel wants it: eager adds it to the scores."""
        if self._base.config._attn_implementation != "eager":
            return seen
        torch = self._torch
        zero = torch.zeros((), dtype=self.model.dtype, device=seen.device)
        return torch.where(seen, zero, torch.finfo(self.model.dtype).min)

    def _sees_ahead(self, layer: int) -> bool:
        if self.mode.name != "own":
            return self.mode.sees_ahead(layer, self.depth)
        return self._own_ahead

    def _probe(self, vocabulary: Sequence[int]) -> Probe:
        torch = self._torch
        first = self.depth - max(0, self.mode.both_ways)
        layers = (first, self.depth)
        self._own_ahead = False

        def padded(rows: Sequence[Row]) -> TokenStates:
            with torch.inference_mode():
                return self.states(rows, layers=layers)

        def packed(rows: Sequence[Row]) -> TokenStates:
            with torch.inference_mode():
                return self.states(rows, layers=layers, packed=True)

        windows = (getattr(self._base.config, name, None) for name in ("sliding_window", "local_attention"))
        window = max((window for window in windows if window is not None), default=None)
        if window is not None and window > NEAR:  # a probe of such rows costs too much: longer ones are padded
            self._proven = min(n for n in (window, getattr(self._base.config, "sliding_window", None)) if n is not None)
        how: Any = {"vocabulary": vocabulary, "dtype": self.dtype, "window": window}
        found = probe(self.mode, padded, None, **how)
        self._own_ahead = found.ahead
        if self._packed is not None:
            found = probe(self.mode, padded, packed, **how)
            if found.packing is None:
                self._packed = None
        return found

    def _cut(self, parent: Any, name: str, layers: list[Any], depth: int) -> list[Any]:
        if depth > len(layers):
            raise ConfigurationError(f"depth is {depth}, and the model has {len(layers)} layers.", "Use fewer.")
        kept = layers[:depth]
        setattr(parent, name, self._torch.nn.ModuleList(kept))
        config = self._base.config
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = list(config.layer_types)[:depth]
        return kept


def _keep_embeddings(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    kept = _kept.get()
    if kept is not None and 0 in kept:
        kept[0] = given[0] if given else named["hidden_states"]


class _KeepStates:
    """Keeps what a layer gives, if it was asked for."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, layer: Any, given: tuple[Any, ...], out: Any) -> None:
        kept = _kept.get()
        if kept is not None and self._number in kept:
            kept[self._number] = out[0] if isinstance(out, tuple) else out


def _scale(layers: Sequence[Any], temperature: float) -> None:
    """Divide the scale of every attention by the temperature."""
    if temperature == 1:
        return
    found = [part for layer in layers for part in layer.modules() if isinstance(getattr(part, "scaling", None), float)]
    if len(found) != len(layers):
        problem = f"{len(found)} of {len(layers)} layers tell the scale of their attention."
        raise ConfigurationError(problem, "Use temperature=1 with this architecture.")
    for part in found:
        part.scaling /= temperature
