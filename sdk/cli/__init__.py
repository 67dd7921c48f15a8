"""The command ``reperio``: typer and rich over the public names, loaded when used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from reperio.errors import MissingDependency
from reperio.extras import load

if TYPE_CHECKING:
    from reperio.cli.commands import app as app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line with the arguments of this process.

    Exit codes: 0; 1 for what went wrong, or `reperio verify` with problems; 2 for wrong input or usage; 130 after
    Ctrl-C; 141 where the reader of the output went away.
    """
    try:
        for module in ("typer", "rich"):
            load(module, extra="cli")
    except MissingDependency as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    from reperio.cli.commands import app

    app()


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reperio.cli.commands import app

    return app
