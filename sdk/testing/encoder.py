"""What every encoder must do.

Give your encoder as a fixture::

    class TestMyEncoder(EncoderContract):
        @pytest.fixture
        def encoder(self) -> MyEncoder:
            return MyEncoder()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reperio.embeddings import MultiVector, Sparse, kind_of, take, to_bytes
from reperio.errors import EmptyText, InvalidInput
from reperio.protocols import Encoder
from reperio.registry import build
from reperio.types import Encoded

__all__ = ["EncoderContract"]

TEXTS = (
    "Merge multiple sorted inputs into a single sorted output.",
    "short",
    "Größe 42, naïve café, 東京タワー, здравствуй мир.",
    "def merge(*iterables, key=None, reverse=False):\n\t'''Does not pull the data into memory all at once.'''",
    "A null \x00 and a zero-width space \u200b inside, and a flag 🇪🇺 at the end.",
    "Return a list with the n largest elements from the dataset defined by iterable. " * 12,
    "Merge multiple sorted inputs into a single sorted output.",
)
"""Short and long, several scripts, one twice."""

Encode = Callable[[Sequence[str]], Encoded[Any]]


class EncoderContract:
    """Laws of `reperio.protocols.Encoder`, for any kind of embedding.

    Attributes
    ----------
    tolerance
        Largest difference between two values that must be equal; 0 where the encoder is exact.
    """

    tolerance: float = 1e-5

    @pytest.fixture
    def encoder(self) -> Encoder[Any]:
        """The encoder under test; each subclass brings its own."""
        pytest.fail(f"{type(self).__name__} must define the fixture `encoder`")

    @pytest.fixture(params=["encode_query", "encode_document"])
    def encode(self, encoder: Encoder[Any], request: pytest.FixtureRequest) -> Encode:
        """Both roles, one after the other."""
        method: Encode = getattr(encoder, request.param)
        return method

    def test_it_has_the_methods_of_an_encoder(self, encoder: Encoder[Any]) -> None:
        assert isinstance(encoder, Encoder)

    def test_the_embeddings_have_the_form_of_their_kind(self, encoder: Encoder[Any], encode: Encode) -> None:
        embeddings = encode(TEXTS).embeddings
        assert kind_of(embeddings) == encoder.fingerprint.kind
        assert len(embeddings) == len(TEXTS)
        _check_form(embeddings, encoder.fingerprint.dim)

    def test_every_text_has_its_tokens_counted(self, encode: Encode) -> None:
        encoded = encode(TEXTS)
        assert encoded.token_counts.dtype == np.int64
        assert encoded.truncated.dtype == np.bool_
        assert encoded.token_counts.shape == encoded.truncated.shape == (len(TEXTS),)
        assert encoded.token_counts[5] == encoded.token_counts.max() > encoded.token_counts[1] > 0

    def test_a_text_alone_gives_what_it_gives_among_others(self, encode: Encode) -> None:
        together = encode(TEXTS)
        for i, text in enumerate(TEXTS):
            alone = encode([text])
            self._same(alone.embeddings, take(together.embeddings, np.array([i])))
            assert alone.token_counts[0] == together.token_counts[i]
            assert alone.truncated[0] == together.truncated[i]

    def test_the_order_of_the_texts_is_the_order_of_the_rows(self, encode: Encode) -> None:
        order = np.random.default_rng(7).permutation(len(TEXTS))
        self._same(encode([TEXTS[int(i)] for i in order]).embeddings, take(encode(TEXTS).embeddings, order))

    def test_one_text_twice_gives_one_embedding_twice(self, encode: Encode) -> None:
        embeddings = encode(TEXTS).embeddings
        self._same(take(embeddings, np.array([0])), take(embeddings, np.array([len(TEXTS) - 1])))

    def test_other_texts_give_other_embeddings(self, encode: Encode) -> None:
        assert len(set(to_bytes(encode(TEXTS[:4]).embeddings))) == 4

    def test_any_sequence_is_a_batch(self, encode: Encode) -> None:
        self._same(encode(TEXTS[:2]).embeddings, encode(list(TEXTS[:2])).embeddings)

    def test_no_texts_give_no_rows(self, encoder: Encoder[Any], encode: Encode) -> None:
        encoded = encode([])
        assert len(encoded.embeddings) == len(encoded.token_counts) == len(encoded.truncated) == 0
        _check_form(encoded.embeddings, encoder.fingerprint.dim)

    def test_a_bare_text_is_no_batch(self, encode: Encode) -> None:
        with pytest.raises(InvalidInput, match="batch"):
            encode("a bare text")

    @pytest.mark.parametrize("empty", ["", " \t\n"])
    def test_an_empty_text_is_refused_by_its_position(self, encode: Encode, empty: str) -> None:
        with pytest.raises(EmptyText, match=r"\[1\]"):
            encode(["fine", empty])

    @pytest.mark.parametrize(("wrong", "its_type"), [(None, "NoneType"), (3, "int"), (b"bytes", "bytes")])
    def test_what_is_no_text_is_refused_by_its_position_and_type(
        self, encode: Encode, wrong: Any, its_type: str
    ) -> None:
        with pytest.raises(InvalidInput, match=rf"\[1\].*{its_type}"):
            encode(["fine", wrong])

    def test_a_refused_batch_leaves_the_encoder_as_it_was(self, encode: Encode) -> None:
        before = encode(TEXTS[:2]).embeddings
        with pytest.raises(InvalidInput):
            encode(["fine", ""])
        self._same(encode(TEXTS[:2]).embeddings, before)

    def test_the_fingerprint_stays(self, encoder: Encoder[Any]) -> None:
        before = encoder.fingerprint
        encoder.encode_document(TEXTS)
        assert encoder.fingerprint == before
        assert before.dim > 0

    def test_its_specification_is_json_and_builds_an_equal_one(self, encoder: Encoder[Any]) -> None:
        spec = json.loads(json.dumps(dict(encoder.spec)))
        again: Encoder[Any] = build(spec)
        assert type(again) is type(encoder)
        assert dict(again.spec) == dict(encoder.spec)
        assert again.fingerprint == encoder.fingerprint
        self._same(again.encode_document(TEXTS).embeddings, encoder.encode_document(TEXTS).embeddings)

    def _same(self, a: Any, b: Any) -> None:
        """Equal to the tolerance; columns and offsets exactly."""
        if isinstance(a, Sparse):
            np.testing.assert_array_equal(a.indptr, b.indptr)
            np.testing.assert_array_equal(a.indices, b.indices)
            a, b = a.weights, b.weights
        elif isinstance(a, MultiVector):
            np.testing.assert_array_equal(a.offsets, b.offsets)
            a, b = a.vectors, b.vectors
        np.testing.assert_allclose(a, b, rtol=0, atol=self.tolerance)


def _check_form(embeddings: Any, dim: int) -> None:
    """Shapes and dtypes that `reperio.embeddings` promises."""
    if isinstance(embeddings, Sparse):
        assert embeddings.dim == dim
        assert embeddings.indptr.dtype == embeddings.indices.dtype == np.int64
        assert embeddings.weights.dtype == np.float32
        assert embeddings.indptr[0] == 0
        assert embeddings.indptr[-1] == len(embeddings.indices) == len(embeddings.weights)
        assert ((embeddings.indices >= 0) & (embeddings.indices < dim)).all()
        assert np.isfinite(embeddings.weights).all()
        assert (embeddings.weights >= 0).all()
        assert all((np.diff(embeddings.row(i)[0]) > 0).all() for i in range(len(embeddings)))
        return
    values = embeddings.vectors if isinstance(embeddings, MultiVector) else embeddings
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert values.shape[1] == dim
    assert np.isfinite(values).all()
