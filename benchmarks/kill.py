"""kill -9 at random moments during upsert, delete, checkpoint, reindex and compaction: what is left each time."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from reperio.testing.crash import trials

KILLS = 240


def run() -> dict[str, Any]:
    during: Counter[str] = Counter()
    problems: list[str] = []
    for collection in range(4):
        with tempfile.TemporaryDirectory() as folder:
            for trial in trials(Path(folder), KILLS // 4, seed=collection):
                during[trial.during] += 1
                problems += trial.problems
    print(f"{sum(during.values())} kills, during {dict(during)}: {len(problems)} problems")
    for problem in problems[:10]:
        print(" ", problem)
    return {"kills": sum(during.values()), "during": dict(during), "problems": problems}
