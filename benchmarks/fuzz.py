"""Damaged index folders, loaded: what each loader refuses, and whether one crashes, hangs or answers wrong.

100,000 of each loader as disks damage them, and as many of our own formats with checksums that fit: hours on
two cores, and so not part of `make bench`. Cut short, it goes on where it was. ``REPERIO_FUZZ=2000`` takes so many
instead, ``REPERIO_FUZZ_ATTACKS=plain`` only what disks do.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reperio.testing.fuzz import Attack, Job, Tally, campaign
from reperio.testing.loaders import NATIVE, OWN

FILES = int(os.environ.get("REPERIO_FUZZ", "100000"))
ATTACKS: list[Any] = os.environ.get("REPERIO_FUZZ_ATTACKS", "plain resealed").split()
NATIVE_FILES = FILES // 20
"""Of native formats with fitting checksums: these count how often the library itself goes down."""

SEED = 1
LOADERS = "reperio.testing.loaders:loaders"


def run() -> dict[str, Any]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = [
        Job(LOADERS, name, attack, SEED, 0, FILES if attack == "plain" or name in OWN else NATIVE_FILES)
        for attack in ATTACKS
        for name in (*OWN, *NATIVE)
    ]
    kept = _kept()
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    seen = {(row["loader"], row["attack"], row["files"]) for row in done}
    todo = [job for job in jobs if (job.loader, job.attack, job.stop) not in seen]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool, kept.open("a") as file:
        for row in pool.map(_done, todo):
            print(json.dumps(row), file=file, flush=True)
            done.append(row)
    done = [row for row in done if row["attack"] in ATTACKS]
    rows = sorted(done, key=lambda row: (row["loader"], row["attack"]))
    ours = [row for row in rows if row["attack"] == "plain" or row["loader"] in OWN]
    total, failed = sum(row["files"] for row in ours), sum(row["failures"] for row in ours)
    print(f"{total} files, {failed} failures")
    return {"seed": SEED, "files": total, "failures": failed, "loaders": rows}


def _kept() -> Path:
    """Where finished loaders are kept, so that a run of hours can be resumed: by the same code alone."""
    code = hashlib.sha256()
    for folder in ("sdk", "indexes"):
        for file in sorted(Path(folder).rglob("*.py")):
            code.update(file.read_bytes())
    kept = Path(".cache/fuzz") / f"{code.hexdigest()[:16]}-{SEED}-{FILES}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return kept


def _done(job: Job) -> dict[str, Any]:
    tally = campaign([job], tell=_tell)[job.loader, job.attack]
    return _row(job.loader, job.attack, tally)


def _row(loader: str, attack: Attack, tally: Tally) -> dict[str, Any]:
    return {
        "loader": loader,
        "attack": attack,
        "files": tally.files,
        "refused": tally.refused,
        "same_answers": tally.same,
        "well_formed": tally.other,
        "failures": sum(tally.failures.values()),
        "kinds": dict(tally.failures.most_common(10)),
        "examples": [example.number for example in tally.examples[:10]],
    }


def _tell(job: Job, tally: Tally) -> None:
    counts = f"{tally.files:>7} files {tally.refused:>7} refused {tally.same:>6} same {tally.other:>6} well-formed"
    print(f"{time.strftime('%H:%M:%S')} {job.loader:<20} {job.attack:<9} {counts} {dict(tally.failures)}", flush=True)
