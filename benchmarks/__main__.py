"""`make bench`, or `python -m benchmarks NAME ...`: every figure of the README, with the command that made it.

Each benchmark is a module with ``run() -> dict``; its result is kept as JSON in ``benchmarks/results``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.measuring import versions

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).parent
NAMES = [
    *(
        "imports",
        "encode",
        "packing",
        "sparse_encode",
        "bm25",
        "lexical",
        "learned_sparse",
        "faiss_overhead",
        "autotune",
        "filtered",
        "opening",
    ),
    *(
        "engines",
        "growth",
        "multivector",
        "out_of_distribution",
        "served",
        "search_overhead",
        "ingest",
        "quality",
        "layers",
    ),
    *("expansion", "migrate", "kill", "faults", "distributed", "tools", "adapters", "crosslingual"),
    "late_interaction",
]


def main() -> None:
    (HERE / "results").mkdir(exist_ok=True)
    for name in sys.argv[1:] or NAMES:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        result = import_module(f"benchmarks.{name}").run()
        kept = {
            "command": f"python -m benchmarks {name}",
            "seconds": round(time.perf_counter() - start, 1),
            "cores": os.cpu_count(),
            "machine": f"{platform.machine()} {_processor()}".strip(),
            "versions": versions(),
            "result": result,
        }
        (HERE / "results" / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def _processor() -> str:
    """What the processor is called, where Linux tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
