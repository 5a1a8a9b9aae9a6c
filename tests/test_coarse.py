import numpy as np
import pytest
import torch
from conftest import latest

from pipeline.features.store import FeatureStore
from pipeline.ranking import coarse
from pipeline.ranking.batches import Encoder
from pipeline.ranking.merged import Merged


@pytest.fixture(scope="module")
def folders(small_run):
    return latest(small_run)


def test_ranks_count_from_one_within_each_request():
    request = np.array([0, 0, 0, 1, 1])
    assert coarse.rank_within(np.array([0.1, 0.9, 0.5, 2.0, 2.0]), request).tolist() == [3, 1, 2, 1, 2]


def test_consistency_by_hand():
    merged = Merged(
        user=np.zeros(1),
        domain=np.zeros(1),
        time=np.zeros(1),
        fold=np.array(["tune"]),
        positives=np.array([2]),
        request=np.zeros(4, np.int64),
        item=np.arange(4),
        position=np.arange(4),
        positive=np.array([True, False, False, True]),
    )
    told = coarse.consistency(np.array([4.0, 3, 2, 1]), np.array([1.0, 2, 3, 4]), merged, keep=2)
    assert told == {"teacher_top_kept": 0.5, "positives_kept": 0.5}


def test_stored_vectors_give_the_score_of_the_model_itself(folders):
    """Item vectors in half precision, users once a request: the same numbers as row by row, within that precision."""
    store = FeatureStore.open(folders["features"])
    ranker, encoder = coarse.load(folders["coarse"]), Encoder(store)
    merged = Merged.open(folders["recall"])
    merged = merged.only(np.arange(len(merged)) < 5)
    with torch.inference_mode():
        directly = ranker.model(encoder(merged.rows(store))).numpy()
    learnt = coarse.logits(ranker.model, encoder, store, merged)
    np.testing.assert_allclose(learnt, directly, atol=0.05, rtol=0.01)
    expected = learnt - ranker.prior * np.log(merged.position)
    np.testing.assert_allclose(ranker.score(encoder, store, merged), expected, atol=1e-6)


def test_the_batches_hold_the_chosen_requests(folders):
    store = FeatureStore.open(folders["features"])
    merged = Merged.open(folders["recall_validation"])
    teacher = np.arange(len(merged.item), dtype=np.float32)
    lists = coarse.Distilled(
        merged,
        teacher,
        Encoder(store),
        coarse._user_rows(store, merged),
        coarse._item_rows(store, int(merged.time[0])),
    )(torch.tensor([3, 1]))
    assert lists.users["domain"].tolist() == merged.domain[[1, 3]].tolist()
    asked = np.isin(merged.request, [1, 3])
    assert lists.teacher.tolist() == teacher[asked].tolist()
    offset = store.schema.offsets[store.schema.position("item_id")]
    codes = store.items["code_item_id"][merged.item[asked]] + offset
    column = store.schema.position("item_id")
    assert lists.items["fields"][lists.item, column].tolist() == codes.tolist()
