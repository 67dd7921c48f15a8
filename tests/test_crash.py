"""kill -9 at any moment leaves what was acknowledged."""

from __future__ import annotations

from pathlib import Path

from reperio.testing.crash import trials


def test_a_killed_writer_loses_nothing_it_had_acknowledged(tmp_path: Path) -> None:
    seen = list(trials(tmp_path, 12, seed=1))
    assert [trial.problems for trial in seen] == [()] * 12
    assert len({trial.during for trial in seen}) > 1
    assert seen[-1].documents > 0
