"""From rates to machines, hours and bytes: the tables of `docs/how-to/costs.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "costs.md"
BEGIN, END = "<!-- begin: python -m benchmarks.distributed -->", "<!-- end -->"

CORES, MEMORY = 32, 256e9
"""Of a machine, bytes of memory."""

HOURS = 24
"""In which encoding is to be done."""

SHARD, LISTS, LEARN = 2_500_000, 1024, 64
"""Rows of a shard, its lists, and rows that each list is learnt from."""

FULL = 0.75
"""Share of a machine's memory that an index may take."""

LENGTH = "128"
SIZES = (10**5, 10**6, 10**7, 10**8, 10**9)
PATIENCE = 50.0
"""Milliseconds that one query may take on one core."""

Rates = Mapping[str, Any]


def encoding(rates: Rates, documents: int) -> dict[str, float]:
    """Core hours, machines that do it in `HOURS`, and bytes of Parquet."""
    measured = rates["encode"][LENGTH]
    cores = documents / measured["documents/s/core"] / 3600
    out = {
        "core hours": cores,
        "machines": math.ceil(cores / CORES / HOURS),
        "bytes": documents * rates["parquet bytes"],
    }
    if rates.get("gpu"):
        out["GPU hours"] = documents * measured["tokens"] / rates["gpu"]["tokens a second"]["median"] / 3600
    return out


def index(rates: Rates, engine: str, documents: int) -> dict[str, float]:
    """Core hours to build, bytes, and machines whose memory holds them."""
    if engine in rates["indexes"]:
        rate = rates["indexes"][engine]
        shards = max(1, math.ceil(documents / SHARD))
        learning = rate["learning s"] * LISTS * LEARN / rates["rows"]  # once, for all shards
        seconds = learning + documents / 1e6 * rate["adding s/million"]
        fixed = shards * LISTS * rates["dimensions"] * 4 if engine.startswith("IVF") else 0
        size = documents * rate["bytes"] + fixed
    elif engine == "BM25":
        seconds = documents / 1e6 * (rates["bm25"]["encoding s/million"] + rates["bm25"]["adding s/million"])
        size = documents * rates["bm25"]["bytes"]
    else:
        rate = rates["milvus file"] if engine == "Milvus" else rates["postgres"][engine.split()[1]]
        seconds = documents / 1e6 * (rate["adding s/million"] + rate["building s/million"])
        size = documents * rate["bytes"]
    return {"hours": seconds / 3600, "bytes": size, "machines": math.ceil(size / FULL / MEMORY)}


def pick(rates: Rates, documents: int) -> tuple[str, str]:
    """The most exact engine of one machine that is quick enough, and why; else the smallest, and how many machines."""
    indexes = rates["indexes"]
    scan = indexes["Flat"]["ms/query"] * documents / rates["rows"]
    if scan <= PATIENCE:
        return "FaissIndex('Flat')", f"exact; one query looks at everything in {scan:.0f} ms of one core"
    for engine in ("HNSW32", "IVF1024,Flat", "IVF1024,SQ8", "IVF1024,PQ48"):
        need = index(rates, engine, documents)
        if need["machines"] == 1:
            where = "one index" if documents <= SHARD else f"{math.ceil(documents / SHARD)} shards"
            return f"FaissIndex('{engine}')", f"{size(need['bytes'])} in the memory of one machine, {where}"
    return "Milvus, or FaissIndex('IVF1024,PQ48')", f"{index(rates, 'IVF1024,PQ48', documents)['machines']} machines"


def size(amount: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return ""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def page(rates: Rates) -> str:
    """The tables, in Markdown."""
    parts = ["## Measured\n", _table(["texts of", "documents/s and core", "tokens/s and core"], [
        [f"{row['tokens']:.0f} tokens", _number(row["documents/s/core"]), _number(row["tokens/s/core"])]
        for row in rates["encode"].values()
    ])]  # fmt: skip
    rows = [
        [f"`FaissIndex('{name}')`", _number(row["adding s/million"]), _number(row["bytes"])]
        for name, row in rates["indexes"].items()
    ]
    bm25 = rates["bm25"]
    rows.append(["`BM25Index`, its encoder included", _number(bm25["encoding s/million"] + bm25["adding s/million"]),
                 _number(bm25["bytes"])])  # fmt: skip
    for name, row in [*((f"`PgvectorIndex`, {n}, HNSW", r) for n, r in rates["postgres"].items()),
                      ("`MilvusIndex`, the file, HNSW", rates["milvus file"])]:  # fmt: skip
        rows.append([f"{name} (by the clock)", _number(row["adding s/million"] + row["building s/million"]),
                     _number(row["bytes"])])  # fmt: skip
    rows.append(["Parquet of `encode`", "", _number(rates["parquet bytes"])])
    parts += ["", _table(["what", "seconds of a core for a million", "bytes for one"], rows)]
    learning = rates["indexes"]["IVF1024,PQ48"]["learning s"] * LISTS * LEARN / rates["rows"] / 3600
    parts += ["", f"To learn {LISTS} lists and codes of 48 bytes from {LISTS * LEARN:,} rows takes {learning:.2g} core "
              "hours, once for all shards.", "\n## Encoding\n"]  # fmt: skip
    gpu = bool(rates.get("gpu"))
    parts.append(_table(
        ["documents", "core hours", f"machines for {HOURS} h", *(["GPU hours"] if gpu else []), "Parquet"],
        [[f"{n:.0e}", _number((e := encoding(rates, n))["core hours"]), e["machines"],
          *([_number(e["GPU hours"])] if gpu else []), size(e["bytes"])] for n in (10**8, 10**9)],
    ))  # fmt: skip
    parts.append("\n## Building and keeping\n")
    engines = [*rates["indexes"], "BM25", "PostgreSQL float32", "PostgreSQL float16", "Milvus"]
    both = [(name, index(rates, name, 10**8), index(rates, name, 10**9)) for name in engines]
    parts.append(_table(
        ["engine", "10⁸: hours", "bytes", "machines", "10⁹: hours", "bytes", "machines"],
        [[name, *(cell for need in needs for cell in (_number(need["hours"]), size(need["bytes"]), need["machines"]))]
         for name, *needs in both],
    ))  # fmt: skip
    parts += ["\n## Which engine\n", _table(["documents", "take", "because"], [
        [f"{n:.0e}", *pick(rates, n)] for n in SIZES
    ])]  # fmt: skip
    return "\n".join(parts)


def write(rates: Rates) -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{page(rates)}\n\n{END}{after}", encoding="utf-8")
