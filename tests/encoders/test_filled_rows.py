"""Rows that are filled up with tokens which no other token looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from reperio.errors import ConfigurationError
from reperio.models.language_model import LanguageModel
from reperio.models.rows import Fill, RowMaker
from reperio.models.states import TokenStates

TEXTS = ["merge sorted inputs", "a heap", "Return the n largest elements from a dataset, largest first."]


def states(batch: TokenStates) -> list[Any]:
    return [batch.states[a:b].numpy() for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]


@pytest.mark.parametrize("seen", [False, True])
def test_they_are_what_transformers_gives_under_its_mask(plain_bert: Path, seen: bool) -> None:
    model = LanguageModel(plain_bert)
    mask_id = model.tokenizer.mask_token_id
    maker = RowMaker(model.tokenizer, limit=40, fill=Fill(mask_id, 32, seen))
    rows = [maker.whole(row) for row in maker.tokenize(TEXTS)]
    assert [len(row) for row in rows] == [32, 32, 32]
    peer = AutoModel.from_pretrained(plain_bert).eval()
    got: dict[int, Any] = {}
    for batch, some in model.view().run(rows, states, budget=4096):
        got.update(zip(batch.tolist(), some, strict=True))
    for i, text in enumerate(TEXTS):
        told = model.tokenizer(text, padding="max_length", max_length=32, return_tensors="pt")
        blank = told["attention_mask"] == 0
        told["input_ids"][blank] = mask_id
        if seen:
            told["attention_mask"][:] = 1
        with torch.inference_mode():
            wanted = peer(**told).last_hidden_state[0].numpy()
        np.testing.assert_allclose(got[i], wanted, rtol=0, atol=1e-5)


def test_what_is_not_seen_changes_no_other_token(plain_llama: Path) -> None:
    model = LanguageModel(plain_llama)
    plain, filled = (RowMaker(model.tokenizer, fill=fill) for fill in (None, Fill(5, 40)))
    view = model.view("bidirectional")
    for row in plain.tokenize(TEXTS):
        with torch.inference_mode():
            alone = view.states([plain.whole(row)]).states
            beside = view.states([filled.whole(row), filled.whole(plain.tokenize(TEXTS)[2])]).states
        np.testing.assert_allclose(beside[: len(row)], alone, rtol=0, atol=1e-5)


def test_markers_stand_after_the_first_special_token_and_are_never_cut(plain_bert: Path) -> None:
    tokenizer = LanguageModel(plain_bert).tokenizer
    maker = RowMaker(tokenizer, prompt="find: ", limit=8, starts=[7])
    [row] = maker.tokenize([TEXTS[2]])
    plain = tokenizer(f"find: {TEXTS[2]}")["input_ids"]
    assert row.tolist() == [plain[0], 7, *plain[1:]]
    cut = maker.whole(row)
    assert cut.ids.tolist() == [plain[0], 7, *plain[1:6], plain[-1]]
    assert cut.start == 4
    [spans] = maker.spans([TEXTS[2]])
    assert [TEXTS[2][a:b] for a, b in spans[4:7]] == ["Return", "the", "n"]
    assert (spans[:2] == 0).all()


def test_to_fill_beyond_the_limit_is_refused(plain_bert: Path) -> None:
    with pytest.raises(ConfigurationError, match="filled up to 32 tokens, and max_tokens is 16"):
        RowMaker(LanguageModel(plain_bert).tokenizer, limit=16, fill=Fill(1, 32))
