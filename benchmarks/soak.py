"""Twenty minutes of random changes and questions, compared with a dictionary: ``REPERIO_SOAK=60`` takes 60 seconds.

Not part of `make bench`, for the time it takes.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from reperio.testing.soak import Soak

SECONDS = float(os.environ.get("REPERIO_SOAK", "1200"))
SEED = 1


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Soak(Path(folder), SEED).run(SECONDS)
    print(f"{report.steps} steps, {report.checks} checks, no difference; resident bytes {report.memory}")
    print(f"{dict(report.operations)}\n{dict(report.kinds)}\n{report.recall}")
    told = {f.name: getattr(report, f.name) for f in fields(report)}
    return {**told, "operations": dict(report.operations), "kinds": dict(report.kinds)}
