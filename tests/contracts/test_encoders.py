"""Every encoder keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from reperio.encoders import (
    BM25Encoder,
    ChunkEncoder,
    ClosedFormEncoder,
    ColbertLayout,
    DecoderEncoder,
    DenseEncoder,
    Expansion,
    GivenVectors,
    HashEncoder,
    HashWeights,
    HashWords,
    MultiVectorEncoder,
    StemStates,
    WholeWords,
    WordWeights,
)
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.projection import TokenProjection
from reperio.registry import build
from reperio.testing.encoder import TEXTS, EncoderContract

# One of the contract's texts is longer than these models read, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.* texts were cut")


@pytest.fixture(scope="module")
def cutting() -> DenseEncoder:
    return DenseEncoder(max_tokens=96)


@pytest.fixture(scope="module")
def windowing() -> DenseEncoder:
    return DenseEncoder(max_tokens=64, on_truncation="chunk", batch_tokens=700)


@pytest.fixture(scope="module")
def decoding(plain_llama: Path) -> DecoderEncoder:
    return DecoderEncoder(plain_llama, attention="bidirectional", prompts="Find what answers: ", max_tokens=96)


@pytest.fixture(scope="module")
def echoing(plain_llama: Path) -> DecoderEncoder:
    return DecoderEncoder(plain_llama, attention="echo", max_tokens=64, on_truncation="chunk")


@pytest.fixture(scope="module")
def chunking(plain_llama: Path) -> ChunkEncoder:
    return ChunkEncoder(plain_llama, chunk_tokens=40, stride=30, max_tokens=96)


@pytest.fixture(scope="module")
def expanding(plain_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> ClosedFormEncoder:
    folder = tmp_path_factory.mktemp("states") / "seen"
    StemStates(plain_llama, max_tokens=64).add(TEXTS).save(folder)
    return ClosedFormEncoder(folder, min_count=1, top=16)


@pytest.fixture(scope="module")
def interacting(plain_bert: Path) -> MultiVectorEncoder:
    markers = {"query": "[unused0]", "document": "[unused1]"}
    layout = ColbertLayout(
        markers=markers, lengths={"query": 300}, expansion=Expansion(cuts=False), skip=(".", ","), normalize=True
    )
    return MultiVectorEncoder(plain_bert, layout=layout, dim=16)


@pytest.fixture(scope="module")
def interacting_in_windows(plain_bert: Path) -> MultiVectorEncoder:
    layout = ColbertLayout(lengths={"query": 24, "document": 40}, prompts={"query": "find: "}, special=False)
    return MultiVectorEncoder(plain_bert, layout=layout, on_truncation="chunk")


@pytest.fixture(scope="module")
def merging(plain_bert: Path) -> MultiVectorEncoder:
    layout = ColbertLayout(lengths={"document": 64})
    return MultiVectorEncoder(plain_bert, layout=layout, words=WholeWords(queries=True), on_truncation="chunk")


@pytest.fixture(scope="module")
def weighing(plain_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> WordWeights:
    weigh = TokenProjection.random(32, 1)
    weigh.save(tmp_path_factory.mktemp("weigh"))
    words = WholeWords(queries=True, normalize=False, punctuation=True)
    return WordWeights(MultiVectorEncoder(plain_bert, words=words, on_truncation="chunk"), weigh)


class TestHashEncoder(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self) -> HashEncoder:
        return HashEncoder(1024)


class TestHashWeights(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self) -> HashWeights:
        return HashWeights(1 << 20)


class TestHashWords(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self) -> HashWords:
        return HashWords()


class TestBM25Encoder(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self) -> BM25Encoder:
        return BM25Encoder()


class TestDenseEncoder(EncoderContract):
    tolerance = 1e-6

    @pytest.fixture
    def encoder(self, cutting: DenseEncoder) -> DenseEncoder:
        return cutting


class TestDenseEncoderInWindows(EncoderContract):
    tolerance = 1e-6

    @pytest.fixture
    def encoder(self, windowing: DenseEncoder) -> DenseEncoder:
        return windowing


def test_given_vectors_say_that_they_cannot_encode() -> None:
    encoder = GivenVectors(3, name="elsewhere")
    for encode in (encoder.encode_query, encoder.encode_document):
        with pytest.raises(UnsupportedOperation, match="embeddings="):
            encode(["a text"])


def test_given_vectors_are_told_apart_by_dimensions_and_name() -> None:
    given = GivenVectors(3, name="elsewhere")
    assert build(given.spec).fingerprint == given.fingerprint
    assert GivenVectors(4, name="elsewhere").fingerprint.differences(given.fingerprint) == ["dim: 4 != 3"]
    assert GivenVectors(3).fingerprint.differences(given.fingerprint) == ['made_by: "given" != "elsewhere"']


@pytest.mark.parametrize("encoder", [GivenVectors, HashEncoder, HashWeights, HashWords])
def test_a_dimension_below_one_is_refused(encoder: type[GivenVectors | HashEncoder | HashWeights | HashWords]) -> None:
    with pytest.raises(ConfigurationError, match="dim is 0"):
        encoder(0)


class TestDecoderEncoder(EncoderContract):
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, decoding: DecoderEncoder) -> DecoderEncoder:
        return decoding


class TestDecoderEncoderInWindows(EncoderContract):
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, echoing: DecoderEncoder) -> DecoderEncoder:
        return echoing


class TestChunkEncoder(EncoderContract):
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, chunking: ChunkEncoder) -> ChunkEncoder:
        return chunking


class TestClosedFormEncoder(EncoderContract):
    tolerance = 1e-4

    @pytest.fixture
    def encoder(self, expanding: ClosedFormEncoder) -> ClosedFormEncoder:
        return expanding


class TestMultiVectorEncoder(EncoderContract):
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, interacting: MultiVectorEncoder) -> MultiVectorEncoder:
        return interacting


class TestMultiVectorEncoderInWindows(EncoderContract):
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, interacting_in_windows: MultiVectorEncoder) -> MultiVectorEncoder:
        return interacting_in_windows


class TestMultiVectorEncoderOfWholeWords(EncoderContract):
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, merging: MultiVectorEncoder) -> MultiVectorEncoder:
        return merging


class TestWordWeights(EncoderContract):
    tolerance = 1e-4

    @pytest.fixture
    def encoder(self, weighing: WordWeights) -> WordWeights:
        return weighing
