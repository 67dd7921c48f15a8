"""kill -9 at random moments during upsert, delete, checkpoint, reindex and compaction: what is left each time.

Every kind of index that keeps its rows here is killed while it is filled and saved, and while it is in use.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from reperio.protocols import Spec
from reperio.registry import build
from reperio.testing.crash import EVERY, trials
from reperio.testing.kinds import label

KILLS = 320
LONGEST = 1.5
"""Seconds that a writer may live: enough for every kind of index to be filled and saved, or to be cut short."""


def run() -> dict[str, Any]:
    during: Counter[str] = Counter()
    filling: Counter[str] = Counter({_name(spec): 0 for _, spec in EVERY})
    using: Counter[str] = Counter(filling)
    problems: list[str] = []
    for collection in range(4):
        with tempfile.TemporaryDirectory() as folder:
            for trial in trials(Path(folder), KILLS // 4, seed=collection, longest=LONGEST):
                step, _, kind = trial.during.partition(" ")
                during[step] += 1
                filling[kind] += bool(kind)
                using.update(trial.kinds)
                problems += (f"{trial.during}: {problem}" for problem in trial.problems)
        print(f"{sum(during.values())} kills: {len(problems)} problems", flush=True)
    kinds = {kind: {"while_it_was_filled": filling[kind], "while_it_was_in_use": using[kind]} for kind in sorted(using)}
    print(f"during {dict(during)}; kinds never in use: {[k for k, n in using.items() if not n]}")
    for problem in problems[:10]:
        print(" ", problem)
    return {"kills": sum(during.values()), "during": dict(during), "kinds": kinds, "problems": problems}


def _name(spec: Spec) -> str:
    return label(build(spec).spec)
