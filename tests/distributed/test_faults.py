"""What dies half-way costs time, and neither a document nor a second copy of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from reperio.connectors import FileSource
from reperio.distributed import EncodedTexts, Workers, encode
from reperio.encoders import HashEncoder

ROWS = 25


def files(folder: Path) -> dict[str, bytes]:
    """Every byte that was kept of the embeddings."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "parts").glob("[!.]*/rows.parquet"))}


def check(folder: Path, texts: tuple[list[str], list[str]]) -> None:
    """Each document once, in its place, with the vector that one process gives it."""
    blocks = list(EncodedTexts.open(folder).blocks())
    assert [name for block in blocks for name in block.ids] == texts[0]
    assert np.concatenate([block.keys for block in blocks]).tolist() == list(range(len(texts[0])))
    wanted = HashEncoder(64).encode_document(texts[1]).embeddings
    assert np.array_equal(np.concatenate([block.embeddings for block in blocks]), wanted)
    assert not list((folder / "parts").glob(".*"))


def waited(done: Any, seconds: float = 240) -> None:  # a busy machine takes a minute to start three processes
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def pieces(folder: Path) -> int:
    return len(list((folder / "parts").glob("[0-9]*")))


def test_workers_that_are_killed_lose_nothing(
    machines: Any, source: FileSource, texts: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    lives = tmp_path / "lives"
    lives.mkdir()
    for life in range(2):
        (lives / f"life-{life}").touch()
    mortal = {"type": "MortalEncoder", "dim": 64, "word": "heap", "folder": str(lives), "seconds": 0.0}
    report = encode(source, tmp_path / "out", encoder=mortal, rows=ROWS, workers=Workers(2), progress=False)
    assert not list(lives.glob("life-*"))
    assert report.documents == len(texts[0])
    assert report.retries >= 2
    check(tmp_path / "out", texts)


def test_a_machine_that_is_lost_loses_nothing(
    machines: Any, source: FileSource, texts: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    node = machines.add(1)
    out = tmp_path / "out"
    slow = {"type": "MortalEncoder", "dim": 64, "word": "", "folder": str(tmp_path), "seconds": 0.3}
    works = tmp_path / node.node_id

    def take_away() -> None:
        waited(lambda: pieces(out) >= 3 and works.exists())
        works.unlink()
        waited(works.exists)  # now it is in the middle of another piece
        machines.kill(node)

    killer = threading.Thread(target=take_away)
    killer.start()
    report = encode(source, out, encoder=slow, rows=ROWS, workers=Workers(3), progress=False)
    killer.join()
    assert report.documents == len(texts[0])
    assert report.retries >= 1
    check(out, texts)


def test_a_driver_that_is_killed_is_run_again_and_keeps_what_was_done(
    machines: Any, source: FileSource, texts: tuple[list[str], list[str]], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    slow = {"type": "MortalEncoder", "dim": 64, "word": "", "folder": "", "seconds": 0.3}
    code = (
        "from reperio.connectors import FileSource\nfrom reperio.distributed import Workers, encode\n"
        f"encode(FileSource('{folder}/*.parquet', 'text', key='id'), {str(out)!r}, encoder={slow!r}, rows={ROWS}, "
        "workers=Workers(2))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RAY_ADDRESS": machines.address},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        waited(lambda: pieces(out) >= 3)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = files(out)
    report = encode(source, out, encoder={**slow, "seconds": 0.0}, rows=ROWS, workers=Workers(2), progress=False)
    assert report.reused >= 3
    assert report.reused < report.pieces
    after = files(out)
    assert {name: after[name] for name in before} == before
    check(out, texts)
    again = encode(source, out, encoder=slow, rows=ROWS, progress=False)
    assert again.reused == again.pieces == report.pieces
    assert files(out) == after
