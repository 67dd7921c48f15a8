"""Every command, its arguments and options. What they do is elsewhere, and loaded when it is asked for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reperio.cli.output import answering

app = typer.Typer(
    help="Durable, explained search: BM25 and dense vectors together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(metavar="COLLECTION", help="Folder of the collection.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON, and nothing else, on stdout.")]
Where = Annotated[str | None, typer.Option("--where", help="Filter: \"year >= 2020 and lang in ['en', 'de']\".")]
Signals = Annotated[str | None, typer.Option("--signals", help="Which signals to use: bm25,dense. All by default.")]
Model = Annotated[str | None, typer.Option("--model", help="Name or path of a sentence-transformers model.")]


@app.command()
def index(  # noqa: PLR0913 - one parameter an option
    collection: Folder,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Path or pattern of JSONL, CSV, TSV or Parquet files; database URL (postgresql://…, sqlite:///…); "
            "folder in BEIR layout; 'python', or 'python:numpy,json', for docstrings.",
        ),
    ],
    table: Annotated[str | None, typer.Option(help="Table or view of the database.")] = None,
    query: Annotated[str | None, typer.Option(help="SELECT in place of a table.")] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", "--id", help="Column or field that identifies a row; may be repeated.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Template '{title}: {body}', or a column; may be repeated.")
    ] = None,
    lexical: Annotated[bool, typer.Option("--lexical", help="BM25 alone: needs no model.")] = False,
    model: Model = None,
    factory: Annotated[str | None, typer.Option(help="FAISS index: Flat, HNSW32, IVF256,Flat, …")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents in one commit.")] = 512,
    as_json: Json = False,
) -> None:
    """Make a collection, or bring it up to date: what has not changed is not encoded again."""
    with answering(as_json=as_json) as output:
        from reperio.cli.indexing import Selection, choose_signals, fill, open_source, report_table
        from reperio.cli.opening import writing

        documents = open_source(source, Selection(table, query, key or (), text or ()))
        signals = choose_signals(only_lexical=lexical, model=model, factory=factory)
        with writing():
            report = fill(collection, documents, signals, batch_size=batch_size)
        output.result(asdict(report), lambda: report_table(report))


@app.command()
def search(
    collection: Folder,
    query: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What to look for; words are joined.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Most hits to show.")] = 10,
    where: Where = None,
    signals: Signals = None,
    as_json: Json = False,
) -> None:
    """Find the best documents, with the score of each signal and where each text came from."""
    with answering(as_json=as_json) as output:
        from reperio.cli.opening import reading
        from reperio.cli.searching import hits_table, read_filter, read_names, rows

        asked = " ".join(query)
        with reading(collection) as opened:
            ranking = opened.search(asked, k, where=read_filter(where), signals=read_names(signals))
            found = rows(ranking)
        if not found:
            output.tell("No document matches.")
        if found or as_json:
            output.result({"query": asked, "hits": found}, lambda: hits_table(found))


@app.command()
def explain(
    collection: Folder,
    query: Annotated[str, typer.Argument(help="What was looked for.")],
    document: Annotated[str, typer.Argument(metavar="ID", help="Id of the document.")],
    where: Where = None,
    signals: Signals = None,
    as_json: Json = False,
) -> None:
    """Say why a document stands where it stands: scores, ranks, terms, filter and plan."""
    with answering(as_json=as_json) as output:
        from rich.text import Text

        from reperio.cli.opening import reading
        from reperio.cli.searching import read_filter, read_names
        from reperio.errors import NotFound

        with reading(collection) as opened:
            try:
                found = opened.explain(query, document, where=read_filter(where), signals=read_names(signals))
            except NotFound as error:
                if not error.problem.startswith("There is no document"):
                    raise
                raise NotFound(error.problem, f"See which ids there are: reperio search {collection} QUERY") from error
        output.result(found.to_dict(), lambda: Text(str(found)))


@app.command("eval")
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/.")],
    split: Annotated[str | None, typer.Option(help="Which judgments; test by default.")] = None,
    model: Model = None,
    k: Annotated[int, typer.Option("-k", "--limit-k", min=1, help="Documents of each ranking.")] = 100,
    measures: Annotated[str, typer.Option(help="In the words of ir-measures.")] = "nDCG@10,RR@10,AP@100,R@100",
    plot: Annotated[Path | None, typer.Option(help="Where to write a figure: .png, .svg, .pdf.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder to keep the collection in, to be used again.")] = None,
    as_json: Json = False,
) -> None:
    """Compare BM25, dense and hybrid search on judged queries, with intervals and significance."""
    with answering(as_json=as_json) as output:
        from reperio.cli.evaluating import check_figure, compare, write_figure
        from reperio.cli.searching import read_names
        from reperio.evaluation import Beir

        if plot is not None:
            check_figure(plot)
        names = read_names(measures) or []
        report = compare(Beir(dataset), split=split, model=model, k=k, measures=names, keep=keep)
        if plot is not None:
            write_figure(report, plot)
            output.tell(f"The figure is in {plot}.")
        output.result(report.to_dict(), report.table)


@app.command()
def verify(collection: Folder, as_json: Json = False) -> None:
    """Check every byte of a collection; exit code 1 if anything is wrong."""
    with answering(as_json=as_json) as output:
        from reperio.cli.inspecting import verify_view
        from reperio.cli.opening import reading

        with reading(collection) as opened:
            report = opened.verify()
        output.result({"ok": report.ok, **asdict(report)}, lambda: verify_view(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def migrate(
    source: Annotated[str, typer.Argument(help="Folder of a collection, or postgresql://…#name.")],
    target: Annotated[str, typer.Argument(help="Where it goes: a folder, or postgresql://…#name.")],
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="Another index: dense=HNSW32, dense=PgvectorIndex, or 'dense={\"type\": …}'; may be repeated."
        ),
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Signal to leave behind; may be repeated.")] = None,
    recall: Annotated[float, typer.Option(help="Least that an approximate index must find.")] = 0.9,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents in one commit.")] = 512,
    as_json: Json = False,
) -> None:
    """Move a collection to another place or other indexes, and compare; exit code 1 if anything differs.

    Nothing is encoded again. Run it again after it was cut short: it goes on.
    """
    with answering(as_json=as_json) as output:
        from reperio.cli.migrating import migration_view, read_indexes, read_place
        from reperio.migration import migrate as move

        report = move(
            read_place(source),
            read_place(target),
            indexes=read_indexes(index or ()),
            without=without or (),
            recall=recall,
            batch_size=batch_size,
        )
        output.result(report.to_dict(), lambda: migration_view(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def stats(collection: Folder, as_json: Json = False) -> None:
    """Show the sizes, fields and signals of a collection."""
    with answering(as_json=as_json) as output:
        from reperio.cli.inspecting import stats_view
        from reperio.cli.opening import reading

        with reading(collection) as opened:
            found = opened.stats()
        output.result(found.to_dict(), lambda: stats_view(found))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, what is missing and how to install it, and the devices."""
    with answering(as_json=as_json) as output:
        from reperio.cli.doctor import diagnose

        found = diagnose()
        output.result(found.to_dict(), found.view)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the collection is kept.")] = Path(".demo"),
    limit: Annotated[int, typer.Option(min=1, help="Most docstrings to index.")] = 8000,
    as_json: Json = False,
) -> None:
    """Index Python docstrings, ask questions, and ask again from a second process."""
    with answering(as_json=as_json) as output:
        from reperio.cli.demo import run

        run(output, folder, limit)
