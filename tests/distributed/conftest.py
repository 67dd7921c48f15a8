"""One cluster of two nodes for all tests, real texts on it, and an encoder that dies when it is told to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reperio import registry
from reperio.connectors import FileSource, PythonDocsSource

# As a user's own package: Ray's processes find it by its entry point.
PACKAGE = '''
import os, signal, time
from pathlib import Path
from reperio.encoders import HashEncoder

class MortalEncoder(HashEncoder):
    """Notes where it works; kills its process at a text that holds a word, as often as there are lives in a folder."""

    def __init__(self, dim: int = 64, *, word: str = "", folder: str = "", seconds: float = 0) -> None:
        super().__init__(dim)
        self.word, self.folder, self.seconds = word, folder, seconds

    @property
    def spec(self):
        more = {"word": self.word, "folder": self.folder, "seconds": self.seconds}
        return {"type": "MortalEncoder", "dim": self.dim, **more}

    def encode_document(self, texts, /):
        if self.folder:
            import ray
            (Path(self.folder) / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(self.seconds)
        if self.word and any(self.word in text for text in texts):
            for life in sorted(Path(self.folder).glob("life-*")):
                life.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_document(texts)
'''


@dataclass
class Machines:
    """A cluster, and how to add a machine and to take it away."""

    address: str
    add: Callable[..., Any]
    kill: Callable[[Any], None]


@pytest.hookimpl(tryfirst=True)  # before the marks are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs them all, and the page about them: two clusters at once are too much for two cores."""
    for item in items:
        if Path(__file__).parent in item.path.parents or item.name.endswith("distributed.md]"):
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("package")
    (folder / "mortal.py").write_text(PACKAGE)
    info = folder / "mortal-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mortal\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[reperio.components]\nMortalEncoder = mortal:MortalEncoder\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    sys.path.insert(0, str(folder))
    registry.registered.cache_clear()
    yield folder
    sys.path.remove(str(folder))
    registry.registered.cache_clear()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def machines(package: Path) -> Iterator[Machines]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    # A machine that is lost is noticed within seconds; one that is slow to start, or has no core free, is not lost.
    pulse = {"health_check_initial_delay_ms": 5000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    head = {"num_cpus": 2, "object_store_memory": memory, "include_dashboard": False, "_system_config": pulse}
    running = Cluster(initialize_head=True, connect=False, head_node_args=head)
    ray.init(address=running.address, log_to_driver=False, logging_level="ERROR")
    yield Machines(
        running.address,
        lambda cpus: running.add_node(num_cpus=cpus, object_store_memory=memory, wait=True),
        lambda node: _kill(running, node),
    )
    ray.shutdown()
    running.shutdown()


def _kill(running: Any, node: Any) -> None:
    """As if the machine had lost its power: every process of it at once."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (raylet, *raylet.children(recursive=True)):
        process.kill()
    running.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Ids and texts of Python's documentation."""
    documents = list(PythonDocsSource(["json", "heapq", "email", "logging", "collections"]).documents())
    return [d.id for d in documents], [d.text for d in documents]


@pytest.fixture(scope="session")
def folder(texts: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Them in two Parquet files, in row groups that no piece fits."""
    out = tmp_path_factory.mktemp("parquet")
    table = pa.table({"id": texts[0], "text": texts[1]})
    half = len(table) // 2
    pq.write_table(table.slice(0, half), out / "a.parquet", row_group_size=37)
    pq.write_table(table.slice(half), out / "b.parquet", row_group_size=1000)
    return out


@pytest.fixture
def source(folder: Path) -> FileSource:
    return FileSource(f"{folder}/*.parquet", "text", key="id")
