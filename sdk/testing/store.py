"""What every store must do.

Give a function that opens one and the same store, empty at first, as a fixture::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def opened(self, tmp_path: Path) -> Callable[[Mode], Store]:
            return lambda mode: MyStore(tmp_path / "store", mode=mode)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import numpy as np
import pytest

from reperio.embeddings import Ids
from reperio.errors import FilterError, InvalidInput, NotFound, ReadOnly, StaleResult, StorageError
from reperio.filters import Field, Filter
from reperio.protocols import Store
from reperio.stores.rows import Entry, Mode, Vector, text_hash
from reperio.types import Document, FieldSpan, Provenance, Value

__all__ = ["StoreContract", "commit", "metadata_of"]

NONE: Ids = np.empty(0, dtype=np.int64)

SIGNALS = {
    "bm25": {"index": {"type": "BM25Index"}, "stored": False},
    "dense": {"index": {"type": "FlatIndex", "metric": "cosine"}, "stored": True, "canaries": ["00ff"]},
}

TEXTS = ["plain", "Größe 42, naïve café, 東京タワー 🎈", "line\r\nbreak\ttab", "'; DROP TABLE x; --", "%s {} \\x00 $1"]


def metadata_of(n: int) -> dict[str, Value]:
    """Every kind of value, some of them awkward."""
    return {
        "n": n,
        "half": n / 2,
        "name": f"name {n}",
        "even": n % 2 == 0,
        "tags": ["a", f"t{n}"],
        "nothing": None,
        "deep": {"x": [1, {"y": None}]},
        'we"ird.$[0] %s {key}': n,
        "huge": 2**63 - 1 - n,
        "tiny": 1e-300 * n,
        "day": date(2024, 1, 1 + n % 28),
    }


def commit(store: Store, documents: Sequence[Document], *, removed: Sequence[str] = (), signal: int = 1) -> int:
    """Commit versions of documents, each with one vector, and remove the old ones and ``removed``."""
    entries = [Entry.of(document) for document in documents]
    for entry in entries:
        entry.vectors[signal] = Vector(text_hash(entry.document.text), tokens=3, truncated="cut" in entry.document.text)
    with store.writing:
        old = store.find([*(document.id for document in documents), *removed])
        return store.commit(entries, np.array(sorted(old.values()), dtype=np.int64))


def some(n: int, *, start: int = 0) -> list[Document]:
    """Documents ``d<start>`` to ``d<start + n - 1>``."""
    return [Document(f"d{i}", f"text {i} {TEXTS[i % len(TEXTS)]}", metadata_of(i)) for i in range(start, start + n)]


class StoreContract:
    """Laws of `reperio.protocols.Store`."""

    @pytest.fixture
    def opened(self) -> Callable[[Mode], Store]:
        """Opens the store under test; each subclass brings its own."""
        pytest.fail(f"{type(self).__name__} must define the fixture `opened`")

    @pytest.fixture
    def store(self, opened: Callable[[Mode], Store]) -> Iterator[Store]:
        """Open for writing, with signals declared."""
        store = opened("rw")
        store.declare(SIGNALS)
        yield store
        store.close()

    @pytest.fixture
    def reader(self, store: Store, opened: Callable[[Mode], Store]) -> Iterator[Store]:
        """The same store, open for reading, as another client has it."""
        reader = opened("r")
        yield reader
        reader.close()

    # What is kept

    def test_documents_come_back_as_they_were(self, store: Store) -> None:
        """Text, metadata and provenance, to the character and to the kind of each number."""
        where = Provenance("shop.db", "articles", "7", (FieldSpan("title", 0, 5), FieldSpan("body", 6, 9, 2)), 12)
        documents = [*some(12), Document("7", "Shoes red", {"price": 9.5, "whole": 1e22, "zero": -0.0}, where)]
        documents += [Document("x" * 5000, "a long id"), Document("naïve 🎈 '\";%s{}", "an odd id")]
        commit(store, documents)
        found = store.fetch(np.array([store.find([d.id])[d.id] for d in documents], dtype=np.int64))
        plainly = [Document(d.id, d.text, {**d.metadata, **_dates(d)}, d.provenance) for d in documents]
        assert found == plainly
        assert repr([d.metadata for d in found]) == repr([dict(sorted(d.metadata.items())) for d in plainly])
        assert store.texts(store.matching(None)) == [d.text for d in documents]

    def test_rows_are_numbered_once_and_in_order(self, store: Store) -> None:
        """A row key is never used twice, not even after a purge."""
        commit(store, some(3))
        first = store.matching(None)
        commit(store, some(3), removed=["d2"])
        second = store.matching(None)
        store.purge()
        commit(store, [Document("new", "new")])
        assert (np.diff(np.concatenate([first, second, store.added_since(2)])) > 0).all()
        assert len(second) == 3

    def test_a_commit_moves_the_sequence_number_by_one(self, store: Store) -> None:
        """One transaction, one number, however much it changes."""
        assert store.seq == store.floor == 0
        assert [commit(store, some(5)), commit(store, some(2, start=5), removed=["d0"]), store.seq] == [1, 2, 2]
        assert (store.count(), store.dead()) == (6, 1)

    def test_what_is_known_tells_versions_apart(self, store: Store) -> None:
        """The digest changes with anything a document holds; the hash with its text alone."""
        commit(store, [Document("a", "text", {"n": 1})])
        before = store.known(["a", "nobody"])
        commit(store, [Document("a", "text", {"n": 2})])
        after = store.known(["a"])
        assert list(before) == ["a"]
        assert before["a"].text_hash == after["a"].text_hash == text_hash("text")
        assert before["a"].digest != after["a"].digest
        assert before["a"].row < after["a"].row
        assert store.find(["nobody"]) == {}
        for bad in ("", "a\0b", 7):
            with pytest.raises(InvalidInput):
                store.known([bad])  # type: ignore[list-item]

    def test_embeddings_come_back_to_the_byte(self, store: Store) -> None:
        """Any bytes: also none, and more than a page holds."""
        values = [b"", bytes(range(256)), np.random.default_rng(0).bytes(50_000)]
        entries = [Entry.of(document) for document in some(3)]
        for entry, value in zip(entries, values, strict=True):
            entry.vectors.update({0: Vector(value, None, False), 1: Vector(value[::-1], 7, True)})
        store.commit(entries, NONE)
        rows = store.matching(None)
        found = store.vectors(0, np.append(rows, 999))
        assert found == {row: Vector(value) for row, value in zip(rows.tolist(), values, strict=True)}
        assert store.vectors(1, rows[1:2])[int(rows[1])] == Vector(values[1][::-1], 7, True)
        assert store.vectors(2, rows) == {}
        assert store.truncated(1) == 3

    def test_an_embedding_is_used_again_for_the_same_text(self, store: Store) -> None:
        """Also of a document deleted since; never one that the caller gave."""
        commit(store, [Document("a", "same"), Document("b", "same"), Document("c", "cut other")])
        given = Entry.of(Document("g", "given"))
        given.vectors[1] = Vector(b"theirs")
        store.commit([given], NONE)
        commit(store, [], removed=["a", "b"])
        hashes = {text: text_hash(text) for text in ("same", "given", "cut other", "unknown")}
        found = store.reusable(1, hashes.values())
        assert set(found) == {hashes["same"], hashes["cut other"]}
        assert found[hashes["cut other"]] == Vector(hashes["cut other"], 3, True)
        assert store.reusable(0, hashes.values()) == {}

    def test_signals_are_declared_once_in_order(self, store: Store, reader: Store) -> None:
        """Their configurations are JSON, to be read by every client."""
        assert store.signals() == reader.signals() == {name: (i, c) for i, (name, c) in enumerate(SIGNALS.items())}
        with pytest.raises(StorageError):
            store.declare(SIGNALS)

    # Replay

    def test_a_replay_from_any_commit_gives_what_is_live(self, store: Store) -> None:
        """Take away what was removed since, add what was added since: the live rows, from wherever one starts."""
        rng = np.random.default_rng(0)
        states: list[set[int]] = [set()]
        for step in range(12):
            changed = rng.choice(20, 4, replace=False)
            commit(store, some(20)[changed[0] : changed[0] + 3], removed=[f"d{i}" for i in changed[1:]])
            states.append(set(store.matching(None).tolist()))
            assert store.seq == step + 1
        for seq, held in enumerate(states):
            replayed = (held - set(store.removed_since(seq).tolist())) | set(store.added_since(seq).tolist())
            assert replayed == states[-1]
        assert (np.diff(store.added_since(0)) > 0).all()

    def test_a_purge_takes_the_dead_away_and_raises_the_floor(self, store: Store, reader: Store) -> None:
        """Nothing live is touched; who has an older index must rebuild it."""
        commit(store, some(10))
        old = store.matching(None)
        commit(store, some(4), removed=["d9"])
        live = store.matching(None)
        before = store.fetch(live)
        assert store.purge() == 5
        assert (store.floor, store.dead(), store.count()) == (2, 0, 9)
        assert store.fetch(live) == before
        assert set(store.vectors(1, np.arange(1, 30))) == set(live.tolist())
        for client in (store, reader):
            client.refresh()
            assert client.floor == 2
            with pytest.raises(StaleResult, match="Search again"):
                client.fetch(old)
            with pytest.raises(StaleResult):
                client.texts(old)
        assert store.purge() == 0

    def test_it_says_which_rows_it_has(self, store: Store, reader: Store) -> None:
        """Dead ones too, until a purge."""
        commit(store, some(4))
        commit(store, some(1), removed=["d3"])
        asked = np.array([10**6, 2, 4, 1, 2**62], dtype=np.int64)
        for client in (store, reader):
            assert client.held(asked).tolist() == [1, 2, 4]
            assert client.held(asked[:0]).tolist() == []
        store.purge()
        for client in (store, reader):
            assert client.held(asked).tolist() == [2]

    def test_a_purge_until_a_commit_keeps_what_was_replaced_later(self, store: Store, reader: Store) -> None:
        """An index that is at that commit can still be replayed."""
        commit(store, some(6))
        commit(store, some(2), removed=["d5"])
        then = store.matching(None)
        commit(store, some(3))
        assert store.purge(2) == 3
        assert (store.floor, store.dead()) == (2, 3)
        for client in (store, reader):
            client.refresh()
            assert client.matching(None, at=2).tolist() == then.tolist()
            assert len(client.fetch(then)) == len(then)

    def test_an_earlier_commit_shows_what_was_live_then(self, store: Store, reader: Store) -> None:
        """Whoever searches an index that is a commit behind filters what it holds."""
        few = Field("n") <= 3
        states = [(store.matching(None), np.empty(0, np.int64))]
        for entries, removed in ((some(6), []), (some(3), ["d5"]), ([], ["d1"]), (some(8), [])):
            commit(store, entries, removed=removed)
            states.append((store.matching(None), store.matching(few)))
        reader.refresh()
        for client in (store, reader):
            for seq, (live, passing) in enumerate(states):
                assert client.matching(None, at=seq).tolist() == live.tolist()
                assert client.matching(few, at=seq).tolist() == passing.tolist()
        store.purge()
        for client in (store, reader):
            client.refresh()
            assert client.matching(few, at=4).tolist() == states[4][1].tolist()
            with pytest.raises(StaleResult, match="Search again"):
                client.matching(few, at=3)

    # Filters

    @pytest.mark.parametrize(
        "condition",
        [
            Field("n") == 3,
            Field("n") != 3,
            (Field("half") > 1) & (Field("half") <= 3.5),
            Field("even") == True,  # noqa: E712
            Field("name") >= "name 4",
            Field("tags").contains("t5"),
            Field("name").contains("e 1"),
            Field("n").in_([1, 2, 99]),
            Field("nothing").exists(),
            ~Field("deep").exists() | (Field('we"ird.$[0] %s {key}') < 2),
            Field("huge") >= 2**63 - 4,
            Field("tiny") > 2e-300,
            Field("day") >= date(2024, 1, 5),
            Field("name").in_(["'; DROP TABLE documents; --", "name 0", "%s"]),
        ],
        ids=str,
    )
    def test_a_filter_selects_what_it_matches(self, store: Store, condition: Filter) -> None:
        """`Filter.matches` is the meaning; only live documents pass."""
        commit(store, some(12))
        commit(store, some(2), removed=["d11"])
        wanted = [d.id for d in some(11) if condition.matches(d.metadata)]
        if str(condition) == "nothing exists":
            with pytest.raises(FilterError):
                store.matching(Field("nothing") == 1)
        found = store.matching(condition) if str(condition) != "nothing exists" else store.matching(Field("n") < 0)
        assert found.dtype == np.int64
        assert (np.diff(found) > 0).all()
        assert sorted(d.id for d in store.fetch(found)) == sorted(wanted)

    def test_fields_and_their_kinds_are_known(self, store: Store) -> None:
        """An unknown field, or a value of a kind that a field never had, is the caller's mistake."""
        commit(store, [Document("a", "x", {"year": 2000, "mixed": 1}), Document("b", "y", {"mixed": "one"})])
        assert store.fields() == {"year": {"number"}, "mixed": {"number", "string"}}
        with pytest.raises(FilterError, match=r"'yaer'.*Known fields:.*year"):
            store.matching(Field("yaer") == 2000)
        with pytest.raises(FilterError, match="'2000' is a string"):
            store.matching(Field("year") == "2000")

    def test_a_filter_asked_again_sees_what_was_committed_since(self, store: Store, reader: Store) -> None:
        """A result that is kept is kept for one commit."""
        commit(store, some(4))
        for client in (store, reader):
            client.refresh()
            assert len(client.matching(Field("n") >= 0)) == 4
        commit(store, some(3, start=4), removed=["d0"])
        for client in (store, reader):
            client.refresh()
            assert len(client.matching(Field("n") >= 0)) == 6

    # Transactions

    def test_a_commit_that_fails_changes_nothing(self, store: Store, reader: Store) -> None:
        """Not the number either."""
        commit(store, some(3))
        taken = [Entry.of(document) for document in [*some(2, start=3), some(1)[0]]]  # d0 is live: refused
        with pytest.raises(StorageError):
            store.commit(taken, NONE)
        for client in (store, reader):
            client.refresh()
            assert (client.seq, client.count()) == (1, 3)
        assert commit(store, some(1, start=3)) == 2

    def test_readers_see_each_commit_whole(self, store: Store, reader: Store) -> None:
        """Inside a snapshot, of one commit; at the next look, the last."""
        commit(store, some(5))
        assert reader.refresh()
        assert not reader.refresh()
        with reader.snapshot() as seq:
            assert (seq, reader.count()) == (1, 5)
            commit(store, some(5, start=5), removed=["d0"])
            with reader.snapshot() as again:
                assert again == seq
            assert (reader.seq, reader.count(), len(reader.matching(Field("n") >= 0))) == (1, 5, 5)
            assert len(reader.vectors(1, np.arange(1, 20))) == 5
        assert reader.refresh()
        assert (reader.seq, reader.count()) == (2, 9)

    def test_readers_never_see_half_a_commit(self, store: Store, reader: Store) -> None:
        """Every commit replaces all documents with a new version; a reader finds one version only."""
        stop = threading.Event()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    with reader.snapshot() as seq:
                        rows = reader.matching(None)
                        versions = {str(d.metadata["version"]) for d in reader.fetch(rows)}
                        assert versions == ({str(seq)} if seq else set())
                        assert len(reader.vectors(1, rows)) == len(rows) == (20 if seq else 0)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(1, 13):
            commit(store, [Document(f"d{i}", f"{i} v{version}", {"version": version}) for i in range(20)])
        stop.set()
        for thread in threads:
            thread.join(60)
        assert errors == []

    def test_threads_that_write_lose_nothing(self, store: Store) -> None:
        """What is known is still so when it is written, as long as ``writing`` is held."""

        def write(part: int) -> None:
            for i in range(part, 24, 4):
                commit(store, [Document(f"d{i}", "x"), Document("shared", f"by {i}")])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert (store.seq, store.count(), store.dead()) == (24, 25, 23)

    def test_who_reads_changes_nothing(self, reader: Store) -> None:
        """`ReadOnly`, from every method that changes."""
        assert not reader.writable
        for change in (lambda: commit(reader, some(1)), reader.purge, lambda: reader.declare(SIGNALS)):
            with pytest.raises(ReadOnly, match="mode='rw'"):
                change()

    # The whole

    def test_it_is_there_when_opened_again(self, opened: Callable[[Mode], Store], store: Store) -> None:
        """Number, floor, identity, documents."""
        commit(store, some(6))
        commit(store, some(2))
        store.purge()
        uuid, location, documents = store.uuid, store.location, store.fetch(store.matching(None))
        store.close()
        for mode in ("r", "rw"):
            again = opened(mode)
            assert (again.seq, again.floor, again.uuid, again.location) == (2, 2, uuid, location)
            assert again.fetch(again.matching(None)) == documents
            again.close()

    def test_a_sound_store_has_no_problems(self, store: Store) -> None:
        """And a size."""
        commit(store, some(5))
        assert list(store.problems()) == []
        assert store.size() > 1000

    def test_a_closed_store_says_so(self, store: Store) -> None:
        """Closing twice is no mistake; reading afterwards is."""
        commit(store, some(1))
        store.close()
        store.close()
        with pytest.raises(StorageError, match="closed"):
            store.count()

    def test_what_is_not_there_cannot_be_read(self, opened: Callable[[Mode], Store]) -> None:
        """Only ``"rw"`` makes one."""
        with pytest.raises(NotFound, match="mode='rw'"):
            opened("r")


def _dates(document: Document) -> Mapping[str, Value]:
    """Dates as metadata keeps them."""
    return {name: value.isoformat() for name, value in document.metadata.items() if isinstance(value, date)}
