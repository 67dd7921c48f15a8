"""What every `Source` must pass."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import zip_longest
from typing import cast

import pytest

from reperio.protocols import Source
from reperio.types import Document

_LOGIN = re.compile(r"://[^/@\s]*:[^/@\s]+@")


class SourceContract:
    """Subclass it in a test module and give a fixture ``source`` with a few documents.

    ::

        class TestMySource(SourceContract):
            @pytest.fixture
            def source(self) -> Source:
                return MySource("…")
    """

    @pytest.fixture
    def source(self) -> Source:
        """The source under test."""
        pytest.fail(f"{type(self).__name__} defines no fixture named `source`")

    @pytest.fixture
    def documents(self, source: Source) -> list[Document]:
        """One pass over it."""
        found = list(source.documents())
        assert found, "give a source that has documents"
        return found

    def test_it_is_a_source(self, source: Source) -> None:
        assert isinstance(source, Source)
        assert source.name

    def test_a_second_pass_gives_the_same_documents_in_the_same_order(self, source: Source) -> None:
        for first, second in zip_longest(source.documents(), source.documents()):
            assert first == second

    def test_a_pass_that_is_left_in_the_middle_changes_nothing(self, source: Source, documents: list[Document]) -> None:
        next(iter(source.documents()))
        assert list(source.documents()) == documents

    def test_ids_are_strings_that_are_not_empty_each_once(self, documents: list[Document]) -> None:
        assert all(isinstance(cast("object", document.id), str) and document.id for document in documents)
        assert len({document.id for document in documents}) == len(documents)

    def test_texts_have_something_to_encode(self, documents: list[Document]) -> None:
        for document in documents:
            assert document.text.strip(), document.id
            assert document.text.encode()

    def test_every_document_tells_where_it_came_from(self, documents: list[Document]) -> None:
        for document in documents:
            assert document.provenance is not None, document.id
            assert document.provenance.source
            assert document.provenance.key or document.provenance.line

    def test_field_spans_lie_inside_the_text_and_in_order(self, documents: list[Document]) -> None:
        for document in documents:
            end = 0
            for span in document.provenance.fields if document.provenance else ():
                assert span.field
                assert span.offset >= 0
                assert end <= span.start < span.end <= len(document.text), (document.id, span)
                end = span.end

    def test_metadata_can_be_kept_as_json(self, documents: list[Document]) -> None:
        for document in documents:
            for field, value in document.metadata.items():
                assert _is_value(value), (document.id, field, value)

    def test_no_login_is_shown(self, source: Source, documents: list[Document]) -> None:
        shown = {source.name, repr(source)} | {str(document.provenance) for document in documents}
        assert not [text for text in shown if _LOGIN.search(text)]


def _is_value(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, str | int | date):
        return True
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return all(isinstance(key, str) and _is_value(item) for key, item in items)
    listed = isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview)
    return listed and all(_is_value(item) for item in cast("Sequence[object]", value))
