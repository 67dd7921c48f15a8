"""Run every notebook of this folder from its first cell to its last; the first error ends the run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
from nbclient import NotebookClient

TIMEOUT = 600
"""Seconds for one cell."""


def run(path: Path) -> float:
    """Execute one notebook in an empty folder.

    Parameters
    ----------
    path
        A jupytext script in the percent format.

    Returns
    -------
    float
        Wall time in seconds, starting the kernel included.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        With the cell and its traceback.
    """
    notebook = jupytext.read(path)
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    return time.perf_counter() - start


def main() -> None:
    """Run all; those named on the command line where there are any."""
    folder = Path(__file__).parent
    paths = [Path(name) for name in sys.argv[1:]] or sorted(folder.glob("[0-9]*.py"))
    for path in paths:
        sys.stdout.write(f"{path.name}  {run(path):.1f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
