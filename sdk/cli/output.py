"""What a command says: its result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import Any, NoReturn, TextIO, cast

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from tqdm import tqdm

from reperio.errors import InvalidInput, ReperioError

INTERRUPTED = 130
PIPE_CLOSED = 141


class Screen(Console):
    """Writes for a person; 160 columns where there is no terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, width=get_terminal_size((160, 24)).columns)

    def on_broken_pipe(self) -> NoReturn:
        """Let `answering` see it: rich would exit with 1."""
        raise BrokenPipeError


class Output:
    """Where one command writes.

    Parameters
    ----------
    as_json
        Whether the result is one line of JSON.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, data: Mapping[str, Any], view: Callable[[], RenderableType]) -> None:
        """Write the result: ``data`` as JSON, or what ``view`` draws."""
        if self.as_json:
            sys.stdout.write(to_json(data) + "\n")
        else:
            Screen().print(view())

    def show(self, part: RenderableType) -> None:
        """Write a part of the result for a person; nothing where JSON is asked for."""
        if not self.as_json:
            Screen().print(part)

    def tell(self, message: str) -> None:
        """Say something that is not the result."""
        Screen(stderr=True).print(message, markup=False, soft_wrap=True)

    def refuse(self, error: ReperioError) -> None:
        """Say what is wrong and what to do."""
        if self.as_json:
            report = {"type": type(error).__name__, "message": error.problem, "fix": error.fix}
            sys.stdout.write(to_json({"error": report}) + "\n")
            sys.stdout.flush()
            return
        screen = Screen(stderr=True)
        screen.print(f"[bold red]{type(error).__name__}[/] {escape(error.problem)}", soft_wrap=True)
        for line in (error.fix, *getattr(error, "__notes__", ())):
            if line:
                screen.print(line, markup=False, soft_wrap=True)


@contextmanager
def answering(*, as_json: bool) -> Generator[Output]:
    """The inside of every command: errors become messages and exit codes.

    Raises
    ------
    typer.Exit
        With 2 for input that is wrong, 1 for any other `ReperioError`, 130 after Ctrl-C, 141 on a closed pipe.
    """
    output = Output(as_json=as_json)
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = warned = Warned()
                yield output
            if warned.repeated:
                output.tell(f"{warned.repeated} more warnings like these.")
        except ReperioError as error:
            output.refuse(error)
            raise typer.Exit(2 if isinstance(error, InvalidInput) else 1) from error
        sys.stdout.flush()
    except KeyboardInterrupt:
        output.tell("Stopped. What was committed is kept.")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(PIPE_CLOSED) from None


def to_json(data: object) -> str:
    """One line of strict JSON: what is not finite becomes null."""
    return json.dumps(_finite(data), default=str, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(part) for part in cast("Sequence[object]", value)]
    return value


class Warned:
    """Shows a warning, above a progress bar if there is one, and only counts it when it comes again from its place."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Stand in for `warnings.showwarning`."""
        del category, file, line
        self._counts[filename, lineno] += 1
        if self._counts[filename, lineno] == 1:
            with tqdm.external_write_mode(file=sys.stderr):
                Screen(stderr=True).print(f"[yellow]Warning[/] {escape(str(message))}", soft_wrap=True)

    @property
    def repeated(self) -> int:
        """How many were only counted."""
        return self._counts.total() - len(self._counts)


def _discard_output() -> None:
    """Nobody reads any more: what is still buffered would fail again when Python exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
