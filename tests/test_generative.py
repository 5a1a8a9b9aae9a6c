from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from neural_worlds import planted

from models.generative import SemanticDecoder
from pipeline.features.store import FeatureStore
from pipeline.recall import generative
from pipeline.recall.histories import Histories
from pipeline.recall.paths import Trie
from pipeline.recall.snapshot import take

SIZES = (3, 4, 2)
IDS = np.array(sorted(itertools.product(*map(range, SIZES))), np.int32)
OPTIONS = {"levels": 2, "codes": 8, "width": 16, "layers": 1, "heads": 2, "epochs": 5, "batch_size": 128}


def decoder() -> SemanticDecoder:
    torch.manual_seed(0)
    model = SemanticDecoder(SIZES, domains=2, width=8, length=3, heads=2, layers=2)
    for head in model.heads:
        torch.nn.init.normal_(head.weight, std=1.0)
    return model.eval()


def histories() -> Histories:
    """Three requests: two events, none, and one; item n has the n-th id, item 0 is none."""
    offsets = np.array([0, 2, 2, 3])
    return Histories(np.array([5, 9, 2]), offsets[:-1], offsets[1:], np.array([1, 0, 2]), np.array([0, -1, 1]))


@torch.inference_mode()
def test_the_shares_of_all_ids_add_up_to_one() -> None:
    model = decoder()
    read = generative.read(histories(), IDS, 3)
    assert read["there"].tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert read["events"][0, 0].tolist() == IDS[9].tolist()
    assert read["domain"].tolist() == [1, 0, 2]
    tokens, there = model.history(**read)
    shares = [model.log_items(tokens, there, torch.tensor(code).expand(3, -1)) for code in IDS]
    torch.testing.assert_close(torch.stack(shares).exp().sum(dim=0), torch.ones(3))


@torch.inference_mode()
def test_a_beam_as_wide_as_the_catalogue_is_an_exhaustive_search() -> None:
    """Over the ids of twelve items, with shares taken code by code and all levels at once."""
    model = decoder()
    items = np.arange(1, 24, 2, dtype=np.int32)
    route = generative.Spoken(model, IDS, Trie.of(IDS[items]), items)
    found = route.answer(histories(), len(items))
    tokens, there = model.history(**generative.read(histories(), IDS, 3))
    shares = torch.stack([model.log_items(tokens, there, torch.tensor(IDS[item]).expand(3, -1)) for item in items])
    scores, order = shares.T.sort(dim=1, descending=True)
    np.testing.assert_array_equal(found.items, items[order.numpy()])
    np.testing.assert_allclose(found.scores, scores.numpy(), rtol=1e-4)


@torch.inference_mode()
def test_a_row_is_read_alike_alone_and_in_company() -> None:
    model = decoder()
    code = torch.tensor(IDS[[7, 3, 20]]).long()
    together = model.log_items(*model.history(**generative.read(histories(), IDS, 3)), code)
    for row in range(3):
        alone = generative.read(histories().take(slice(row, row + 1)), IDS, 3)
        torch.testing.assert_close(
            model.log_items(*model.history(**alone), code[row : row + 1]), together[row : row + 1]
        )


def test_every_parameter_gets_a_gradient() -> None:
    model = decoder()
    code = torch.tensor(IDS[[7, 3, 20]]).long()
    model.log_items(*model.history(**generative.read(histories(), IDS, 3)), code).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_a_catalogue_without_content_gets_ids_of_who_engaged_with_what(tmp_path: Path) -> None:
    features = planted(tmp_path, content=False)
    metrics = generative.train(features, tmp_path, positive="click", seed=0, log=lambda *_: None, **OPTIONS)
    assert metrics["recall_50"] > 0.5
    ids = np.load(tmp_path / generative.IDS)
    store = FeatureStore.open(features)
    taken = take(store, store.slices["validation"], "click").history["item"].unique().to_numpy()
    assert set(np.flatnonzero(ids[:, 0] >= 0)) <= set(taken)


def test_items_without_a_vector_are_told_of_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = planted(tmp_path, blank=5)
    with caplog.at_level(logging.WARNING):
        metrics = generative.train(
            features, tmp_path, positive="click", seed=0, log=lambda *_: None, **{**OPTIONS, "epochs": 1}
        )
    assert metrics["without_id"] == 5
    assert "5 of 240 items" in caplog.text
    ids = np.load(tmp_path / generative.IDS)
    assert (ids[1:, 0] == generative.NO_ID).sum() == 5


def test_heads_have_to_share_the_width() -> None:
    with pytest.raises(ValueError, match="a width of 10"):
        SemanticDecoder(SIZES, domains=2, width=10, heads=4)
