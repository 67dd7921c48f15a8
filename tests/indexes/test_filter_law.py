"""Whatever a filter leaves, every kind of index gives min(k, rows left) of it, and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.embeddings import take
from reperio.errors import MissingDependency
from reperio.protocols import Index, Spec, Trainable
from reperio.registry import build
from reperio.testing.kinds import KINDS, encoder, label

EVERY = {label(spec): (signal, spec) for signal, specs in KINDS.items() for spec in specs}
ROWS, GONE = 400, 37
TOPICS = [f"topic{i} matter{i} question{i}" for i in range(8)]
TEXTS = [f"passage {TOPICS[i % 8]} number{i}" for i in range(ROWS)]  # each shares a word with each question
QUESTIONS = [f"passage {topic}" for topic in TOPICS]


@cache
def filled(kind: str) -> tuple[Index[Any], Any]:
    """An index from which some rows were removed, one of every eleven, and questions."""
    signal, spec = EVERY[kind]
    try:
        made: Index[Any] = build(_small(spec))
    except MissingDependency as error:
        pytest.skip(str(error))
    rows = encoder(signal).encode_document(TEXTS).embeddings
    if isinstance(made, Trainable) and 0 < made.training_size <= ROWS:
        made.train(take(rows, np.arange(made.training_size)))
    made.add(3 * np.arange(ROWS), rows)
    assert made.remove(33 * np.arange(GONE)) == GONE
    return made, encoder(signal).encode_query(QUESTIONS).embeddings


def _small(spec: Spec) -> Spec:
    return {**spec, "train_size": 300} if spec.get("train_size") else spec


HELD = np.setdiff1d(3 * np.arange(ROWS), 33 * np.arange(GONE))
KEYS = st.sets(st.integers(0, 3 * ROWS), max_size=40)  # two of three were never there


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=15, deadline=None)
@given(keys=KEYS, topics=st.sets(st.integers(0, 7)), k=st.integers(1, 90))
def test_a_filter_leaves_as_many_as_pass(kind: str, keys: set[int], topics: set[int], k: int) -> None:
    """Of whole topics too: all that passes may be far from the question."""
    index, asked = filled(kind)
    passing = [row for row in (3 * np.arange(ROWS)).tolist() if (row // 3) % 8 in topics]
    allowed = np.array(sorted({*keys, *passing}), dtype=np.int64)
    wanted = np.intersect1d(allowed, HELD)
    found = index.search(asked, k, allowed=allowed)
    for ids, scores in zip(found.ids, found.scores, strict=True):
        held = ids[ids >= 0]
        assert len(held) == len(np.unique(held)) == min(k, len(wanted))
        assert np.isin(held, wanted).all()
        assert np.isfinite(scores[: len(held)]).all()
        assert (ids[len(held) :] == -1).all()
