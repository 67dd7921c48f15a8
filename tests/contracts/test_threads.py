"""Everywhere else, tests work in one thread a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_indexes_keep_the_contract_in_two_threads_too() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    file = Path(__file__).with_name("in_two_threads.py")
    done = subprocess.run([*command, str(file)], env={**os.environ, "REPERIO_TEST_THREADS": "2"}, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
