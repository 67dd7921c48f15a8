"""Text files, line by line, with the number of each line for the message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reperio.errors import ConnectorError, NotFound


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their end, and their numbers from 1; in the memory of one line.

    Raises
    ------
    NotFound
        If there is no such file.
    ConnectorError
        If it cannot be read, or a line is not UTF-8.
    """
    number = 0
    try:
        # Only a newline ends a line: text may hold U+2028 and its like, at which `str.splitlines` would cut.
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise malformed(path, number, f"is not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ConnectorError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def malformed(path: Path, number: int, problem: str) -> ConnectorError:
    """The error for one bad line: file, line, what is wrong with it."""
    return ConnectorError(f"{path}:{number} {problem}.", "Mend the line, or take it out.")
