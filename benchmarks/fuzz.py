"""Damaged index folders, loaded: what each loader refuses, and whether one crashes, hangs or answers wrong.

100,000 of each loader as disks damage them, and as many of our own formats with checksums that fit: about half an hour
on two cores, and so not part of `make bench`. ``REPERIO_FUZZ=2000`` takes so many instead.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reperio.testing.fuzz import Attack, Job, Tally, campaign
from reperio.testing.loaders import NATIVE, OWN

FILES = int(os.environ.get("REPERIO_FUZZ", "100000"))
NATIVE_FILES = FILES // 20
"""Of native formats with fitting checksums: these count how often the library itself goes down."""

SEED = 1
LOADERS = "reperio.testing.loaders:loaders"


def run() -> dict[str, Any]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = [
        Job(LOADERS, name, attack, SEED, 0, FILES if attack == "plain" or name in OWN else NATIVE_FILES)
        for attack in ("plain", "resealed")
        for name in (*OWN, *NATIVE)
    ]
    workers = min(2, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        tallies = {
            key: tally
            for part in pool.map(lambda part: campaign(part, tell=_tell), [jobs[i::workers] for i in range(workers)])
            for key, tally in part.items()
        }
    rows = [_row(loader, attack, tally) for (loader, attack), tally in sorted(tallies.items())]
    ours = [row for row in rows if row["attack"] == "plain" or row["loader"] in OWN]
    total, failed = sum(row["files"] for row in ours), sum(row["failures"] for row in ours)
    print(f"{total} files, {failed} failures")
    return {"seed": SEED, "files": total, "failures": failed, "loaders": rows}


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
