"""``reperio eval``: BM25, dense and hybrid over a test collection."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from reperio.artifacts import disk_errors
from reperio.collection import Collection, hybrid
from reperio.encoders.dense import DenseEncoder
from reperio.errors import ConfigurationError, InvalidInput, NotFound
from reperio.evaluation import Beir, Report, evaluate
from reperio.evaluation.measures import parse_measures
from reperio.extras import load

FIGURES = (".pdf", ".png", ".svg")
"""Endings of a figure's file."""


def compare(
    beir: Beir, *, split: str | None, model: str | None, k: int, measures: Sequence[str], keep: Path | None
) -> Report:
    """Index the collection, ask every judged query of each system, and measure.

    Parameters
    ----------
    beir
        The test collection.
    split
        Which judgments.
    model
        Of the dense signal; the default one where None.
    k
        Documents of each ranking.
    measures
        In the words of ``ir_measures``.
    keep
        Where to keep the collection, so that the next run need not encode; None throws it away.

    Raises
    ------
    InvalidInput
        If ``keep`` holds documents of something else; what `parse_measures` refuses, before anything is encoded.
    """
    parse_measures(measures, k=k)
    queries, qrels = beir.queries(split), beir.qrels(split)
    signals = hybrid(DenseEncoder(model)) if model else hybrid()
    with _folder(keep) as folder, Collection.open(folder, signals=signals) as collection:
        _refuse_strangers(collection, beir)
        collection.upsert(beir.documents())
        systems = {
            "bm25": collection.retriever(k, signals=["bm25"]),
            "dense": collection.retriever(k, signals=["dense"]),
            "hybrid": collection.retriever(k),
        }
        return evaluate(systems, queries, qrels, measures=measures, k=k)


def check_figure(path: Path) -> None:
    """Refuse a figure that could not be written, before anything is encoded.

    Raises
    ------
    ConfigurationError
        If the ending is not one of those known.
    NotFound
        If its folder is not there.
    MissingDependency
        Without the extra ``plot``.
    """
    load("matplotlib", extra="plot")
    if path.suffix not in FIGURES:
        raise ConfigurationError(f"{path} does not end in a kind of figure.", f"Use one of {', '.join(FIGURES)}.")
    if not path.parent.is_dir():
        raise NotFound(f"There is no folder {path.parent}.", "Make it first.")


def write_figure(report: Report, path: Path) -> None:
    """Draw the report into a file.

    Raises
    ------
    StorageError
        If the disk refuses.
    """
    with disk_errors(path):
        report.plot(path)


@contextmanager
def _folder(keep: Path | None) -> Generator[Path]:
    if keep is not None:
        yield keep
        return
    with TemporaryDirectory(prefix="reperio-eval-") as folder:
        yield Path(folder)


def _refuse_strangers(collection: Collection, beir: Beir) -> None:
    held = {document.id for document in collection.documents()}
    strangers = held.difference(document.id for document in beir.documents()) if held else held
    if strangers:
        problem = f"{collection.path} holds {len(strangers)} documents that {beir.name} has not, as {min(strangers)!r}."
        raise InvalidInput(problem, "Give --keep a folder of its own.")
