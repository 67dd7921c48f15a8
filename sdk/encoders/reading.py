"""How every encoder over a `LanguageModel` reads texts: prompts, limits, windows, counts, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from reperio import meter
from reperio.encoders.texts import OnTruncation, check_texts, tell_cuts
from reperio.errors import ConfigurationError, EmptyText
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.rows import Fill, Row, RowMaker
from reperio.models.states import Head
from reperio.models.view import ModelView, View
from reperio.models.windows import OVERLAP, Tokens
from reperio.protocols import Spec

__all__ = ["Around", "Expansion", "OnTruncation", "Read", "Reading"]

ROLES: tuple[Role, Role] = ("query", "document")


@dataclass(frozen=True, slots=True)
class Expansion:
    """Short rows are filled up with one token, whose states serve as the rest do (query expansion of ColBERT).

    Attributes
    ----------
    length
        Tokens that a row has at the least, special tokens counted.
    seen
        Whether the other tokens look at it; ColBERT's do not.
    token
        Its name; where None the tokenizer's mask, or its end of text where it has no mask.
    cuts
        Whether longer texts are cut to that length.
    """

    length: int = 32
    seen: bool = False
    token: str | None = None
    cuts: bool = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigurationError(f"An expansion's length is {self.length}.", "Use 1 or more; 32 is usual.")

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {"type": "Expansion", **asdict(self)}

    def fill(self, tokenizer: Any) -> Fill:
        """The same with the token's id.

        Raises
        ------
        ConfigurationError
            If there is no such token, or rows are padded at their beginning, where it would stand before the text.
        """
        if tokenizer.padding_side == "left":
            problem = "The tokenizer pads on the left, and an expansion stands at the end."
            raise ConfigurationError(problem, "Use no expansion, or set padding_side to 'right' in its configuration.")
        return Fill(_id(tokenizer, self.token or tokenizer.mask_token or "eos"), self.length, self.seen)


@dataclass(frozen=True, slots=True)
class Around:
    """What stands in the rows of a role besides its texts and their prompt.

    Attributes
    ----------
    starts
        Names of tokens before the prompt; never cut.
    expansion
        How short rows are filled up.
    """

    starts: tuple[str, ...] = ()
    expansion: Expansion | None = None

    def fields(self) -> dict[str, Any]:
        """What embeddings hang on, for a fingerprint."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Read:
    """What a head gave for texts, window by window.

    Attributes
    ----------
    parts
        One result for each window, those of one text together, in the order of the texts.
    starts
        Where each text's windows start among ``parts``, ``(n + 1,)``; one window a text unless texts are chunked.
    counts
        Tokens of each text before any cut, ``(n,)``.
    truncated
        Which texts were cut, ``(n,)``.
    rows
        What the model read, for each window.
    tokens
        All tokens of each text, none cut, with all that stands around it.
    """

    parts: list[Any]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    rows: list[Row]
    tokens: list[Tokens]


class Reading:
    """Reads texts with one view of a model.

    Parameters
    ----------
    model
        Loaded when it is first used.
    view
        How it is seen.
    prompts
        For each role, what stands before a text, or a template with ``{text}``.
    max_tokens
        Most tokens of a row, or for each role; what the model reads where None.
    on_truncation
        What happens to a longer text: ``"warn"``, ``"error"`` or ``"chunk"``, as in `DenseEncoder`.
    ends
        Tokens that stand at the end of every row and are never cut; ``"eos"`` for the tokenizer's own.
    around
        For each role, what else stands in a row.

    Raises
    ------
    ConfigurationError
        For a setting out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        view: View,
        prompts: Mapping[Role, str],
        max_tokens: int | Mapping[Role, int] | None = None,
        on_truncation: OnTruncation = "warn",
        ends: Sequence[str] = (),
        around: Mapping[Role, Around] | None = None,
    ) -> None:
        if on_truncation not in get_args(OnTruncation):
            known = ", ".join(get_args(OnTruncation))
            raise ConfigurationError(f"on_truncation is {on_truncation!r}.", f"Use one of {known}.")
        limits = max_tokens if isinstance(max_tokens, Mapping) else dict.fromkeys(ROLES, max_tokens)
        if any(limit is not None and limit <= 0 for limit in limits.values()):
            raise ConfigurationError(f"max_tokens is {max_tokens}.", "Use 1 or more.")
        for name, roles in {"prompts": prompts, "max_tokens": limits}.items():
            strange = set(roles) - set(ROLES)
            if strange:
                raise ConfigurationError(f"{name} names the role {sorted(strange)[0]!r}.", "Use query and document.")
        self.model = model
        self.settings = view
        self.prompts: dict[Role, str] = {role: prompts.get(role, "") for role in ROLES}
        self.max_tokens = max_tokens
        self.on_truncation: OnTruncation = on_truncation
        self._limits: dict[Role, int | None] = {role: limits.get(role) for role in ROLES}
        self._ends = tuple(ends)
        self._around = {role: (around or {}).get(role, Around()) for role in ROLES}
        self._makers: dict[Role, RowMaker] | None = None

    @property
    def view(self) -> ModelView:
        """The model as this reads it; loads it."""
        return self.model.view(self.settings)

    def maker(self, role: Role) -> RowMaker:
        """How texts of a role become rows; loads the model's tokenizer."""
        made = self._makers
        if made is None:
            tokenizer, most = self.model.tokenizer, self.model.positions
            for limit in self._limits.values():
                if limit is not None and most is not None and limit > most:
                    problem = f"max_tokens is {limit}, and the model reads {most}."
                    raise ConfigurationError(problem, f"Use {most} or less.")
            ends = [_id(tokenizer, name) for name in self._ends]
            rows: dict[Role, RowMaker] = {
                role: RowMaker(
                    tokenizer,
                    prompt=prompt,
                    limit=self._limits[role] or self.model.max_tokens,
                    ends=ends,
                    summary=[_id(tokenizer, name) for name in self.settings.summary],
                    twice=self.settings.mode.name == "echo",
                    starts=[_id(tokenizer, name) for name in self._around[role].starts],
                    fill=None if (expansion := self._around[role].expansion) is None else expansion.fill(tokenizer),
                )
                for role, prompt in self.prompts.items()
            }
            self._makers = made = rows
        return made[role]

    def fields(self) -> dict[str, Any]:
        """What embeddings hang on, for a fingerprint."""
        limits = {role: self.maker(role).frame.limit for role in ROLES}
        around = {role: some.fields() for role, some in self._around.items() if some != Around()}
        return {
            **self.model.fields(self.settings.adapter),
            "view": self.settings.fields(),
            "prompts": self.prompts,
            "ends": self._ends,
            "max_tokens": limits["document"] if len(set(limits.values())) == 1 else limits,
            "truncation": {"windows overlap": OVERLAP} if self.on_truncation == "chunk" else "cut",
            **({"around": around} if around else {}),
        }

    def read(self, texts: Sequence[str], role: Role, head: Head[Sequence[Any]], *, start: int = 0) -> Read:
        """Every text through the model and a head.

        Raises
        ------
        EmptyText, InvalidInput, TruncationError
            As `DenseEncoder.encode_document`; positions in messages count from ``start``.
        """
        laid = self.lay_out(texts, role, start=start)
        for batch, results in self.view.run(laid.rows, head, budget=self.model.batch_tokens):
            for position, result in zip(batch.tolist(), results, strict=True):
                laid.parts[position] = result
        return laid

    def lay_out(self, texts: Sequence[str], role: Role, *, start: int = 0) -> Read:
        """What `read` lets the model read, where a head has to know the rows beforehand; the parts are None.

        Raises
        ------
        EmptyText, InvalidInput, TruncationError
            As `read`.
        """
        checked = check_texts(texts, start=start)
        maker = self.maker(role)
        tokens = maker.tokenize(checked)
        counts = np.array([len(row) for row in tokens], dtype=np.int64)
        self._check_words(tokens, checked, maker, start)
        too_long = counts > (maker.frame.limit or np.inf)
        if too_long.any():
            tell_cuts(self.on_truncation, counts, too_long, limit=maker.frame.limit, start=start)
        chunk = self.on_truncation == "chunk"
        windows = [maker.windows(row) if chunk else [maker.whole(row)] for row in tokens]
        rows = [window for some in windows for window in some]
        meter.count("texts", len(counts))
        meter.count("tokens", sum(map(len, rows)))
        cut = too_long & (not chunk)
        meter.count("truncated", int(cut.sum()))
        starts = np.cumsum([0, *map(len, windows)], dtype=np.int64)
        return Read([None] * len(rows), starts, counts, cut, rows, tokens)

    def _check_words(self, tokens: Sequence[Tokens], texts: Sequence[str], maker: RowMaker, start: int) -> None:
        around = maker.frame.before + maker.frame.after
        for position, row in enumerate(tokens):
            if len(row) - around - maker.prompt_tokens(row) < 1:
                raise EmptyText(f"texts[{start + position}] is {texts[position][:40]!r}: it has no token.", "Drop it.")


def _id(tokenizer: Any, name: str) -> int:
    """Id of a token that stands at the end of rows.

    Raises
    ------
    ConfigurationError
        If the tokenizer has no such token.
    """
    token = tokenizer.eos_token if name == "eos" else name
    found = None if token is None else tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        what = "no end-of-text token" if name == "eos" else f"no token {name!r}"
        raise ConfigurationError(f"The tokenizer has {what}.", "Add it, or use pooling that needs none, as mean.")
    return int(found)
