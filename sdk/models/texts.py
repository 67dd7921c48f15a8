"""What everything that reads texts refuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from reperio.errors import EmptyText, InvalidInput

if TYPE_CHECKING:
    from reperio.models.rows import Row, RowMaker

__all__ = ["check_batch", "check_texts", "read_rows"]


def check_batch(texts: Iterable[object]) -> None:
    """Refuse one text where several are meant.

    Raises
    ------
    InvalidInput
        For a bare ``str``, whose characters would be encoded one by one.
    """
    if isinstance(texts, str | bytes):
        raise InvalidInput(f"A batch of texts is wanted, not the one text {texts[:40]!r}.", "Pass a list: [text].")


def check_texts(texts: Sequence[object], *, start: int = 0) -> list[str]:
    """The texts as a list, or what is wrong with the first bad one.

    Parameters
    ----------
    start
        Position of the first text in what the caller gave, for the message.

    Raises
    ------
    InvalidInput
        For a bare ``str``; or an element that is no ``str`` or not valid Unicode, by its position.
    EmptyText
        If a text is empty or blank; names its position.
    """
    check_batch(texts)
    out = list[str]()
    for position, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise InvalidInput(f"texts[{position}] is a {type(text).__name__}.", "Pass a list of str.")
        if not text or text.isspace():
            raise EmptyText(f"texts[{position}] is {text!r}: there is nothing to encode.", "Drop it.")
        if not text.isascii():
            _check_unicode(text, position)
        out.append(text)
    return out


def _check_unicode(text: str, position: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"texts[{position}] holds half of a surrogate pair at character {error.start}."
        raise InvalidInput(problem, "Repair it: text.encode(errors='replace').decode().") from error


def read_rows(maker: RowMaker, texts: Sequence[object], *, start: int = 0) -> list[Row]:
    """Texts as a model reads them, cut to fit.

    Raises
    ------
    InvalidInput, EmptyText
        As `check_texts`; or if a text has no token.
    """
    checked = check_texts(texts, start=start)
    rows = [maker.whole(row) for row in maker.tokenize(checked)]
    for position, row in enumerate(rows):
        if row.start >= row.stop:
            raise EmptyText(f"texts[{start + position}] is {checked[position][:40]!r}: it has no token.", "Drop it.")
    return rows
