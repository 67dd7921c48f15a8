"""Any sequence of operations on a collection in PostgreSQL leaves what a dictionary would hold."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reperio import Collection, Document, Field, Signal
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import NotFound
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.pgvector import PgvectorIndex

TOPICS = ["merge sorted lists", "parse json text", "open a socket"]
_NUMBERS = count()


class CollectionMachine(RuleBasedStateMachine):
    """Any sequence of operations leaves what a dictionary would hold, for its writer and for a reader."""

    server: str
    folder: Path

    @initialize(where=st.sampled_from(["here", "there"]))
    def start(self, where: str) -> None:
        self.name = f"machine{next(_NUMBERS)}"
        index: Any = FaissIndex() if where == "here" else PgvectorIndex()
        lexical = Signal(BM25Encoder(), BM25Index(), stored=False)
        self.collection = self.opened("rw", signals={"bm25": lexical, "dense": Signal(HashEncoder(64), index)})
        self.reader = self.opened("r", client="two")
        self.model: dict[str, Document] = {}

    def opened(self, mode: Literal["r", "rw"], *, client: str = "one", **settings: Any) -> Collection:
        cache = self.folder / f"{self.name}-{client}"
        return Collection.open(self.server, collection=self.name, mode=mode, cache=cache, **settings)

    @rule(name=st.sampled_from("abcdef"), topic=st.sampled_from(TOPICS), n=st.integers(0, 3))
    def upsert(self, name: str, topic: str, n: int) -> None:
        document = Document(name, topic, {"n": n})
        report = self.collection.upsert([document], progress=False)
        assert report.unchanged == (self.model.get(name) == document)
        self.model[name] = document

    @rule(name=st.sampled_from("abcdef"))
    def delete(self, name: str) -> None:
        assert self.collection.delete([name]) == (self.model.pop(name, None) is not None)

    @rule(step=st.sampled_from(["checkpoint", "compact"]))
    def maintain(self, step: str) -> None:
        getattr(self.collection, step)()

    @rule(where=st.sampled_from(["here", "there"]))
    def reindex(self, where: str) -> None:
        self.collection.reindex("dense", FaissIndex() if where == "here" else PgvectorIndex(index=None))

    @rule()
    def rollback(self) -> None:
        with suppress(NotFound):
            self.collection.rollback("dense")

    @rule(mode=st.sampled_from(["close", "_release"]), client=st.sampled_from(["one", "two"]))
    def reopen(self, mode: str, client: str) -> None:
        getattr(self.collection, mode)()
        self.collection = self.opened("rw", client=client)

    @precondition(lambda self: self.model)
    @rule(topic=st.sampled_from(TOPICS), n=st.integers(0, 3))
    def search(self, topic: str, n: int) -> None:
        condition = Field("n") >= n
        passing = {name for name, d in self.model.items() if condition.matches(d.metadata)}
        for c in (self.collection, self.reader):
            assert set(c.search(topic, 20, signals=["dense"]).ids) == set(self.model)
            assert set(c.search(topic, 20, where=condition).ids) == passing

    @invariant()
    def same(self) -> None:
        for c in (self.collection, self.reader):
            assert {d.id: d for d in c.documents()} == self.model

    def teardown(self) -> None:
        for c in (self.collection, self.reader):
            assert c.verify().problems == ()
            c._release()


def test_any_sequence_of_operations_leaves_what_a_dictionary_would_hold(server: str, tmp_path: Path) -> None:
    machine = type("Machine", (CollectionMachine,), {"server": server, "folder": tmp_path})
    run_state_machine_as_test(machine, settings=settings(max_examples=6, stateful_step_count=20, deadline=None))
