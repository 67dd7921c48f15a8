"""The best hits, whole, as far as the budget goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reperio import meter
from reperio.errors import ConfigurationError
from reperio.pipeline import Step
from reperio.protocols import Spec
from reperio.types import Context, Document, Ranking, Span

_WORDS = re.compile(r"\S+")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def words(text: str) -> int:
    """How many runs of characters between spaces a text has."""
    return sum(1 for _ in _WORDS.finditer(text))


class PassageCompressor(Step[Ranking, Context]):
    """Takes hits in order until the budget is spent; the last is cut after its last sentence that fits.

    Laws: the joined text never exceeds the budget; kept text is verbatim; a larger budget keeps all that a
    smaller one kept.

    Parameters
    ----------
    budget
        Most tokens of the joined text.
    count
        Counts the tokens of a text; words where None. A compressor with another counter cannot be saved.
    """

    def __init__(self, budget: int, *, count: Callable[[str], int] | None = None) -> None:
        if budget <= 0:
            raise ConfigurationError(f"PassageCompressor.budget is {budget}.", "Use 1 or more.")
        self.budget = budget
        self.count = count or words

    @property
    def spec(self) -> Spec:
        if self.count is not words:
            return super().spec
        return {"type": "PassageCompressor", "budget": self.budget}

    def __call__(self, batch: Sequence[Ranking], /) -> Sequence[Context]:
        contexts = [self._one(ranking) for ranking in batch]
        meter.count("tokens", sum(context.tokens for context in contexts))
        return contexts

    def _one(self, ranking: Ranking) -> Context:
        context = Context(ranking.query, (), {})
        for hit in ranking:
            longer = self._with(context, hit.document, len(hit.document.text))
            if longer.tokens > self.budget:
                ends = [m.start() for m in _SENTENCE_END.finditer(hit.document.text)]
                cuts = (self._with(context, hit.document, end) for end in reversed(ends) if end)
                return next((cut for cut in cuts if cut.tokens <= self.budget), context)
            context = longer
        return context

    def _with(self, context: Context, document: Document, end: int) -> Context:
        spans = (*context.spans, Span(document.id, 0, end))
        longer = Context(context.query, spans, {**context.documents, document.id: document})
        return Context(longer.query, spans, longer.documents, tokens=self.count(longer.text))
