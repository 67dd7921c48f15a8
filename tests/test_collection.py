"""A collection keeps what it is given, finds it, and says why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from reperio import Collection, Document, Field, Pipeline, Query, Ranking, Signal, hybrid, lexical
from reperio.compression import PassageCompressor
from reperio.embeddings import Dense
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.errors import FingerprintMismatch, NotFound, StaleResult
from reperio.fusion import Convex, ReciprocalRank
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.retrieval import EXACT_SCAN
from reperio.types import Encoded, FieldSpan, Provenance

TOPICS = ["merge sorted lists", "parse json text", "open a socket", "compress a file", "match a pattern"]


def documents(n: int = 60) -> list[Document]:
    return [
        Document(
            f"d{i}", f"{TOPICS[i % 5]} quickly, note {i}", {"n": i, "topic": TOPICS[i % 5].split(), "even": i % 2 == 0}
        )
        for i in range(n)
    ]


class CountingEncoder(HashEncoder):
    """Counts the texts that it is asked to encode as documents."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__(dim)
        self.texts: list[str] = []

    @property
    def spec(self) -> dict[str, Any]:
        return {"type": "HashEncoder", "dim": self.dim}

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        self.texts += texts
        return super().encode_document(texts)


def signals(factory: str = "Flat", encoder: HashEncoder | None = None) -> dict[str, Signal[Any]]:
    return {
        "bm25": Signal(BM25Encoder(), BM25Index(), stored=False),
        "dense": Signal(encoder or HashEncoder(64), FaissIndex(factory)),
    }


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with Collection.open(tmp_path / "c", signals=signals()) as opened:
        opened.upsert(documents())
        yield opened


def test_it_finds_what_it_was_given_and_keeps_every_score(collection: Collection) -> None:
    found = collection.search("merge sorted lists", 5)
    assert isinstance(found, Ranking)
    assert all("merge sorted lists" in hit.document.text for hit in found)
    assert all(set(hit.signals) == {"bm25", "dense"} for hit in found)
    assert (np.diff(found.scores) <= 0).all()
    assert found[0].document == collection.get(found.ids[0])


def test_a_batch_is_the_single_queries_one_by_one(collection: Collection) -> None:
    batch = collection.search([Query("a", TOPICS[0]), TOPICS[1]], 7)
    assert [r.query.id for r in batch] == ["a", "1"]
    for ranking, topic in zip(batch, TOPICS, strict=False):
        alone = collection.search(topic, 7)
        assert ranking.ids == alone.ids
        np.testing.assert_allclose(ranking.scores, alone.scores, atol=1e-6)


def test_a_hit_missing_from_one_signal_has_its_exact_score_there(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(500))
        for hit in c.search("merge sorted lists note 7", 150):
            for name in ("bm25", "dense"):
                alone = c.explain("merge sorted lists note 7", hit.document.id, signals=[name])
                assert hit.signals[name] == pytest.approx(alone.score, abs=1e-5)


def test_reopening_reads_the_same_from_disk_and_encodes_nothing(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents())
        before = c.search(TOPICS, 9)
        wanted = [(r.ids, r.scores.tolist()) for r in before]
    for mode in ("r", "rw"):
        with Collection.open(tmp_path / "c", mode=mode) as c:  # type: ignore[arg-type]
            assert [(r.ids, r.scores.tolist()) for r in c.search(TOPICS, 9)] == wanted
    encoder = CountingEncoder()
    with Collection.open(tmp_path / "c", signals=signals(encoder=encoder)) as c:
        encoder.texts.clear()
        report = c.upsert(documents())
        assert (report.unchanged, report.encoded, encoder.texts) == (60, {}, [])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_an_upsert_is_an_exact_diff_whatever_the_batch(tmp_path: Path, batch_size: int) -> None:
    encoder = CountingEncoder()
    with Collection.open(tmp_path / "c", signals=signals(encoder=encoder)) as c:
        c.upsert(documents(), batch_size=batch_size)
        encoder.texts.clear()
        changed = documents()
        changed[3] = Document("d3", "an entirely new text", changed[3].metadata)
        changed[4] = Document("d4", changed[4].text, {"n": -4})  # the metadata alone
        changed[5] = Document("other", changed[5].text)  # a known text under a new id
        report = c.upsert(changed, batch_size=batch_size)
        assert (report.added, report.updated, report.unchanged) == (1, 2, 57)
        assert encoder.texts == ["an entirely new text"]
        assert report.encoded == {"dense": 1}
        assert c.count() == 61
        assert c.get("d4") == changed[4]
        assert c.count(Field("n") == -4) == 1
        assert c.verify().ok


def test_two_documents_with_one_text_are_two_documents(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        assert c.upsert([Document("a", "same text"), Document("b", "same text")]).encoded == {"dense": 1}
        assert c.delete(["a"]) == 1
        assert c.search("same text", 5).ids == ["b"]


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    encoder = CountingEncoder()

    def stopping() -> Iterator[Document]:
        yield from documents()[:40]
        raise KeyboardInterrupt

    with Collection.open(tmp_path / "c", signals=signals(encoder=encoder)) as c:
        encoder.texts.clear()
        with pytest.raises(KeyboardInterrupt):
            c.upsert(stopping(), batch_size=16)
        assert c.count() == 32
        c.upsert(iter(documents()), batch_size=16)
        assert len(encoder.texts) == len(set(encoder.texts)) == 60


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat", "SQ8", "IVF4,PQ4x4"])
def test_every_factory_is_updated_deleted_and_filtered(tmp_path: Path, factory: str) -> None:
    with Collection.open(tmp_path / "c", signals=signals(factory)) as c:
        c.upsert(documents(700))
        c.delete([f"d{i}" for i in range(0, 700, 5)])  # a topic of its own
        assert "merge" not in c.search("merge sorted lists", 1)[0].document.text
        c.upsert([Document("new", "merge sorted lists")])
        assert c.search("merge sorted lists", 1, signals=["dense"]).ids == ["new"]
        for condition, matches in [(Field("even") == True, 280), (Field("n") < 30, 24), (Field("n") == 3, 1)]:  # noqa: E712
            found = c.search("parse json text", 300, where=condition, signals=["dense"])
            assert len(found) == min(300, matches) == len(set(found.ids))
            assert all(condition.matches(hit.document.metadata) for hit in found)
        assert c.verify().ok


def test_a_lossy_index_proposes_and_exact_scores_decide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((900, 32)).astype(np.float32)
    given = {"dense": Signal(GivenVectors(32), FaissIndex("PQ8x4"))}
    with Collection.open(tmp_path / "c", signals=given) as c:
        c.upsert([Document(str(i), f"t{i}") for i in range(900)], embeddings={"dense": vectors})
        (found,) = c.search(["?"], 5, embeddings={"dense": vectors[7:8]})
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert found.ids[0] == "7"
        for hit in found:
            assert hit.score == pytest.approx(float(unit[7] @ unit[int(hit.document.id)]), abs=1e-5)


def test_given_vectors_are_kept_compared_and_replaced(tmp_path: Path) -> None:
    given = {"dense": Signal(GivenVectors(4), FlatIndex("ip"))}
    with Collection.open(tmp_path / "c", signals=given) as c:
        docs = [Document("a", "x"), Document("b", "x")]
        eye = np.eye(4, dtype=np.float32)
        c.upsert(docs, embeddings={"dense": eye[:2]})
        assert c.search(["?"], 1, embeddings={"dense": eye[1:2]})[0].ids == ["b"]
        assert c.upsert(docs, embeddings={"dense": eye[:2]}).unchanged == 2
        report = c.upsert(docs, embeddings={"dense": eye[[0, 3]]})
        assert (report.unchanged, report.updated) == (1, 1)
        assert c.search(["?"], 1, embeddings={"dense": eye[3:]})[0].scores.tolist() == [1.0]


def test_explain_agrees_with_search_and_adds_up(collection: Collection) -> None:
    for fusion in (Convex(), ReciprocalRank(), Convex("z-score"), Convex("theoretical")):
        found = collection.search("parse json note 6", 8, fusion=fusion, where=Field("n") < 50)
        for rank, hit in enumerate(found, 1):
            why = collection.explain("parse json note 6", hit.document.id, fusion=fusion, where=Field("n") < 50)
            assert why.score == pytest.approx(hit.score, abs=1e-5)
            assert why.rank == rank
            assert {n: s.score for n, s in why.signals.items()} == pytest.approx(dict(hit.signals), abs=1e-5)
            terms = why.signals["bm25"].terms
            assert sum(t.contribution for t in terms) == pytest.approx(hit.signals["bm25"], abs=1e-5)
    assert {t.term for t in collection.explain("parse json", "d1").signals["bm25"].terms} == {"parse", "json"}
    shut_out = collection.explain("parse json", "d1", where=Field("n") > 10)
    assert shut_out.rank is None
    assert shut_out.filter == ("n > 10", False)
    with pytest.raises(NotFound, match="'nothing'"):
        collection.explain("parse json", "nothing")


def test_explain_shows_the_plan_of_a_filter(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(EXACT_SCAN + 200))
        small = c.explain("parse json", "d1", where=Field("n") < 20).signals["dense"].plan
        large = c.explain("parse json", "d1", where=Field("n") >= 0).signals["dense"].plan
        assert small == "exact scan of the 20 rows that pass the filter"
        assert large == f"FaissIndex among the {EXACT_SCAN + 200} rows that pass the filter"
        assert "exact scan" in str(c.explain("parse json", "d1", where=Field("n") < 20))


def test_a_reader_sees_each_commit_at_the_next_search(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as writer:
        writer.upsert(documents(10))
        with Collection.open(tmp_path / "c", mode="r") as reader:
            assert reader.count() == 10
            writer.upsert([Document("new", "a walrus")])
            assert reader.search("walrus", 1).ids == ["new"]
            held = reader.search("walrus", 1)
            writer.delete(["new"])
            assert reader.count() == 10
            assert held.ids == ["new"]  # the version that was found, though it is deleted since
            assert "walrus" not in reader.search("walrus", 1)[0].document.text
            writer.compact()
            assert reader.search("merge", 1)[0].document.id in {d.id for d in documents(10)}


def test_a_hit_read_after_compaction_says_so(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert([Document("a", "a walrus"), Document("b", "a seal")])
        late = c.search("walrus", 1)
        c.delete(["a"])
        assert c.compact() == 1
        with pytest.raises(StaleResult, match="Search again"):
            list(late)


def test_reindex_switches_and_rolls_back(collection: Collection, tmp_path: Path) -> None:
    before = [r.ids for r in collection.search(TOPICS, 5)]
    with Collection.open(tmp_path / "c", mode="r") as reader:
        assert reader.stats().signals["dense"]["index"]["factory"] == "Flat"
        collection.reindex("dense", FaissIndex("HNSW16"))
        assert collection.stats().signals["dense"]["index"]["factory"] == "HNSW16"
        assert reader.stats().signals["dense"]["index"]["factory"] == "HNSW16"
        assert [r.ids for r in collection.search(TOPICS, 5)] == before
        collection.upsert([Document("new", "a walrus")])
        collection.rollback("dense")
        assert collection.stats().signals["dense"]["index"]["factory"] == "Flat"
        assert collection.search("walrus", 1, signals=["dense"]).ids == ["new"]
        assert reader.stats().signals["dense"]["index"]["factory"] == "Flat"
    collection.rollback("dense")
    assert collection.stats().signals["dense"]["index"]["factory"] == "HNSW16"
    assert collection.verify().ok
    with pytest.raises(NotFound, match="roll back"):
        collection.rollback("bm25")


def test_a_factory_string_is_enough_to_reindex(collection: Collection) -> None:
    before = [r.ids for r in collection.search(TOPICS, 5)]
    collection.reindex("dense", "HNSW16")
    index = collection.stats().signals["dense"]["index"]
    assert (index["factory"], index["metric"]) == ("HNSW16", "cosine")
    assert [r.ids for r in collection.search(TOPICS, 5)] == before


def test_the_default_signals_take_the_index_that_is_given() -> None:
    chosen = hybrid(HashEncoder(8), index=FaissIndex("HNSW32"))["dense"]
    assert chosen.index.spec["factory"] == "HNSW32"
    assert chosen.encoder.spec["dim"] == 8


def test_what_matches_nothing_has_no_rank(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=lexical()) as c:
        c.upsert([Document("a", "beans"), Document("b", "rice")])
        assert c.search("beans").ids == ["a"]
        assert c.explain("beans", "a").rank == 1
        assert c.explain("beans", "b").rank is None


def test_compaction_frees_the_disk_and_keeps_the_rest(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(600))
        c.delete([f"d{i}" for i in range(500)])
        c.upsert([Document("d599", "rewritten")])
        wanted = c.search(TOPICS, 20)
        ids = [r.ids for r in wanted]
        size = c.stats().store_bytes
        assert c.compact() == 501
        assert c.stats().store_bytes < size / 2
        assert c.stats().replaced == 0
        assert [r.ids for r in c.search(TOPICS, 20)] == ids
        assert c.verify().ok


def test_provenance_and_metadata_survive(tmp_path: Path) -> None:
    where = Provenance("shop.db", "articles", "7", (FieldSpan("title", 0, 5), FieldSpan("body", 6, 9, 2)), 12)
    document = Document(
        "7", "Shoes red", {"price": 9.5, "tags": ["a", "b"], "deep": {"x": [1, None]}, "no": None}, where
    )
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert([document])
        assert c.get("7") == document
        assert list(c.documents(Field("tags").contains("b"))) == [document]
        assert c.search("shoes", 1)[0].document == document


def test_another_encoder_is_refused_and_the_field_is_named(tmp_path: Path) -> None:
    Collection.open(tmp_path / "c", signals=signals()).close()
    with pytest.raises(FingerprintMismatch, match=r"'dense'.*dim: 32 != 64"):
        Collection.open(tmp_path / "c", signals=signals(encoder=HashEncoder(32)))
    with pytest.raises(FingerprintMismatch, match=r"'bm25'.*language"):
        Collection.open(
            tmp_path / "c", mode="r", signals={**signals(), "bm25": Signal(BM25Encoder("german"), BM25Index())}
        )


def test_a_model_changed_under_the_same_name_is_caught_by_the_canaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Collection.open(tmp_path / "c", signals=signals()).close()
    plain = HashEncoder.encode_document

    def drifted(self: HashEncoder, texts: Sequence[str], /) -> Encoded[Dense]:
        encoded = plain(self, texts)
        return Encoded(np.roll(encoded.embeddings, 1, axis=1), encoded.token_counts, encoded.truncated)

    monkeypatch.setattr(HashEncoder, "encode_document", drifted)
    with pytest.raises(FingerprintMismatch, match="canary"):
        Collection.open(tmp_path / "c")
    monkeypatch.undo()
    Collection.open(tmp_path / "c").close()  # the refusal changed nothing and kept no lease


def test_threads_search_while_another_writes(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with Collection.open(tmp_path / "c", signals=signals("HNSW16")) as c:
        c.upsert(documents(100))
        stop = threading.Event()

        def read() -> None:
            try:
                while not stop.is_set():
                    for ranking in c.search(TOPICS, 5, where=Field("n") >= 0):
                        assert len(ranking) == 5
                        assert all(hit.document.text for hit in ranking)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for i in range(15):
            c.upsert([Document(f"x{i}", f"parse json text {i}", {"n": 1000 + i})])
            c.delete([f"d{i}"])
            if i == 7:
                c.reindex("dense", FaissIndex("Flat"))
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert errors == []
        assert c.verify().ok


def test_a_collection_is_a_stage_that_can_be_saved(collection: Collection, tmp_path: Path) -> None:
    pipeline = collection.retriever(5, where=Field("even") == True, fusion=Convex()) >> PassageCompressor(30)  # noqa: E712
    collection.checkpoint()
    wanted = pipeline([TOPICS[1]])
    pipeline.save(tmp_path / "p.yaml")
    loaded = Pipeline.load(tmp_path / "p.yaml")
    assert loaded([TOPICS[1]]) == wanted
    assert loaded.run([TOPICS[1]]).stages[0].counts["hits"] == 5


def test_default_signals_are_bm25_and_minilm_on_real_text(tmp_path: Path, data: Callable[[str], Path]) -> None:
    from reperio.evaluation import Beir

    corpus = list(Beir(data("adi")).documents())
    with Collection.open(tmp_path / "c") as c:
        assert c.upsert(corpus).encoded == {"dense": len(corpus)}
        assert c.signals == ["bm25", "dense"]
        best = c.search("automatic retrieval of articles from approximate titles", 3)
        assert all(set(hit.signals) == {"bm25", "dense"} for hit in best)
    with Collection.open(tmp_path / "c") as c:
        assert c.upsert(corpus).encoded == {}
        assert c.search("automatic retrieval of articles from approximate titles", 3).ids == best.ids


class CollectionMachine(RuleBasedStateMachine):
    """Any sequence of operations leaves what a dictionary would hold."""

    names = Bundle("names")

    @initialize(factory=st.sampled_from(["Flat", "HNSW8", "IVF2,Flat"]))
    def start(self, factory: str) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "c"
        self.collection = Collection.open(self.path, signals=signals(factory))
        self.model: dict[str, Document] = {}

    @rule(target=names, name=st.sampled_from("abcdefgh"))
    def name(self, name: str) -> str:
        return name

    @rule(name=names, topic=st.sampled_from(TOPICS), n=st.integers(0, 3))
    def upsert(self, name: str, topic: str, n: int) -> None:
        document = Document(name, topic, {"n": n})
        report = self.collection.upsert([document])
        assert report.unchanged == (self.model.get(name) == document)
        self.model[name] = document

    @rule(name=names)
    def delete(self, name: str) -> None:
        assert self.collection.delete([name]) == (self.model.pop(name, None) is not None)

    @rule(step=st.sampled_from(["checkpoint", "compact"]))
    def maintain(self, step: str) -> None:
        getattr(self.collection, step)()

    @rule(factory=st.sampled_from(["Flat", "HNSW8", "SQ8"]))
    def reindex(self, factory: str) -> None:
        self.collection.reindex("dense", FaissIndex(factory))

    @rule(mode=st.sampled_from(["close", "drop"]))
    def reopen(self, mode: str) -> None:
        self.collection.close() if mode == "close" else self.collection._release()
        self.collection = Collection.open(self.path)

    @precondition(lambda self: self.model)
    @rule(topic=st.sampled_from(TOPICS), n=st.integers(0, 3))
    def search(self, topic: str, n: int) -> None:
        held = {name for name, d in self.model.items()}
        assert set(self.collection.search(topic, 20, signals=["dense"]).ids) == held
        lexical = self.collection.search(topic, 20, signals=["bm25"])
        assert {d.id for d in self.model.values() if d.text == topic} <= set(lexical.ids) <= held
        condition = Field("n") >= n
        passing = {name for name, d in self.model.items() if condition.matches(d.metadata)}
        if any("n" in d.metadata for d in self.model.values()):
            assert set(self.collection.search(topic, 20, where=condition, signals=["dense"]).ids) == passing

    @invariant()
    def same(self) -> None:
        assert {d.id: d for d in self.collection.documents()} == self.model

    def teardown(self) -> None:
        assert self.collection.verify().problems == ()
        self.collection._release()
        self.folder.cleanup()


TestCollectionMachine = CollectionMachine.TestCase
TestCollectionMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
