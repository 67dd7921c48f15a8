"""Batches by token budget, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reperio.errors import ConfigurationError, OutOfMemory, ShapeError
from reperio.models.batching import Rows, is_out_of_memory, run_halving, token_batches
from reperio.models.windows import OVERLAP, Frame

lengths = st.lists(st.integers(1, 300), max_size=60)


@given(lengths, st.integers(1, 2000))
def test_batches_hold_every_row_once_and_stay_in_the_budget(sizes: list[int], budget: int) -> None:
    batches = token_batches(sizes, budget)
    assert sorted(np.concatenate([*batches, np.empty(0, np.int64)]).tolist()) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) >= 1
        assert len(batch) == 1 or len(batch) * max(sizes[i] for i in batch) <= budget


@given(lengths, st.integers(1, 2000))
def test_batches_go_from_long_to_short_and_are_as_full_as_the_budget_allows(sizes: list[int], budget: int) -> None:
    batches = token_batches(sizes, budget)
    order = [sizes[i] for batch in batches for i in batch]
    assert order == sorted(sizes, reverse=True)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * sizes[batch[0]] > budget


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="0 tokens"):
        token_batches([1], 0)


BATCHES = token_batches([1] * 37, 8)


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("position", range(len(BATCHES)))
def test_wherever_memory_runs_out_every_row_is_done_once_and_in_order(position: int, fits: int) -> None:
    first_bad = int(BATCHES[position][0])
    tried: list[list[int]] = []

    def run(batch: Rows) -> Rows:
        tried.append(batch.tolist())
        if batch[-1] >= first_bad and len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return batch * 10

    done = list(run_halving(BATCHES, run))
    assert [row for batch, _ in done for row in batch] == list(range(37))
    assert all((result == batch * 10).all() for batch, result in done)
    assert all(batch.tolist() in tried for batch, _ in done)
    # What was done before the first failure is kept whole; after it no batch grows again.
    assert [batch.tolist() for batch, _ in done[:position]] == [batch.tolist() for batch in BATCHES[:position]]
    sizes = [len(batch) for batch in tried[position:]]
    assert all(later <= earlier for earlier, later in pairwise(sizes))


def test_a_single_row_that_does_not_fit_says_so_and_what_the_allocator_said() -> None:
    tried: list[int] = []

    def run(batch: Rows) -> Rows:
        tried.append(len(batch))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(OutOfMemory, match=r"Not even one text fits into memory: CUDA out of memory\."):
        list(run_halving(BATCHES, run))
    assert tried == [8, 4, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x2)"),
        RuntimeError("the text says: out of memory"),
        ValueError("CUDA out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_any_other_error_comes_through_at_once(error: BaseException) -> None:
    calls: list[int] = []

    def run(batch: Rows) -> Rows:
        calls.append(len(batch))
        raise error

    with pytest.raises(type(error)):
        list(run_halving(BATCHES, run))
    assert calls == [8]


def test_a_result_of_another_length_is_refused() -> None:
    with pytest.raises(ShapeError, match="7 results came back for 8 rows"):
        list(run_halving(BATCHES, lambda batch: batch[1:]))


def _torch_allocates() -> object:
    return torch.empty(2**60, dtype=torch.uint8)


def _numpy_allocates() -> object:
    return np.empty(2**60, dtype=np.uint8)


@pytest.mark.parametrize("allocate", [_torch_allocates, _numpy_allocates])
def test_a_real_lack_of_memory_is_recognised(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@given(
    own=st.integers(1, 500),
    room=st.integers(1, 60),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    prompt=st.integers(0, 5),
)
def test_windows_hold_every_token_of_a_text_and_overlap(
    own: int, room: int, before: int, after: int, prompt: int
) -> None:
    head, tail = np.arange(before + prompt) - 100, np.arange(after) - 50
    row = np.concatenate([head, np.arange(own), tail]).astype(np.int32)
    frame = Frame(before, after, limit=before + prompt + room + after)
    windows = frame.windows(row, prompt)
    parts = [window[len(head) : len(window) - after].tolist() for window in windows]
    assert sorted(set().union(*parts)) == list(range(own))
    if len(windows) == 1:
        assert own <= room
        return
    for window, part in zip(windows, parts, strict=True):
        assert window[: len(head)].tolist() == head.tolist()
        assert window[len(window) - after :].tolist() == tail.tolist()
        assert part == list(range(part[0], part[0] + room))
    for one, next_ in pairwise(parts):
        assert len(set(one) & set(next_)) >= int(room * OVERLAP)


@given(st.integers(1, 40), st.integers(3, 20), st.booleans())
def test_a_cut_keeps_the_special_tokens_and_one_end_of_the_text(own: int, limit: int, from_left: bool) -> None:
    row = np.array([101, *range(own), 102], dtype=np.int32)
    cut = Frame(1, 1, limit, from_left).cut(row).tolist()
    kept = list(range(own))[-(limit - 2) :] if from_left else list(range(own))[: limit - 2]
    assert cut == [101, *kept, 102]


def test_a_prompt_that_fills_the_window_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="prompt of 6 tokens"):
        Frame(1, 1, limit=8).windows(np.arange(20, dtype=np.int32), prompt=6)
