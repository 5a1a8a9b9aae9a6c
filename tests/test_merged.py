import numpy as np
import polars as pl
import pytest

from pipeline.ranking.merged import Merged


@pytest.fixture
def merged(tmp_path):
    """Three requests: 4, 2 and 3 candidates; the second one's positive was not recalled."""
    pl.DataFrame(
        {
            "request": pl.Series([0, 1, 2], dtype=pl.UInt32),
            "user": pl.Series([5, 6, 7], dtype=pl.Int32),
            "domain": pl.Series([0, 1, 0], dtype=pl.Int16),
            "time": [100, 100, 100],
            "fold": ["distil", "tune", "distil"],
        }
    ).write_parquet(tmp_path / "requests.parquet")
    pl.DataFrame(
        {
            "request": pl.Series([0, 0, 0, 0, 1, 1, 2, 2, 2], dtype=pl.UInt32),
            "item": pl.Series([1, 2, 3, 4, 1, 2, 9, 8, 7], dtype=pl.Int32),
            "position": pl.Series([1, 2, 3, 4, 1, 2, 1, 2, 3], dtype=pl.Int32),
        }
    ).write_parquet(tmp_path / "merged.parquet")
    pl.DataFrame(
        {
            "request": pl.Series([0, 1, 2, 2], dtype=pl.UInt32),
            "item": pl.Series([3, 5, 7, 6], dtype=pl.Int32),
        }
    ).write_parquet(tmp_path / "positives.parquet")
    return Merged.open(tmp_path)


def test_positives_are_marked_and_counted_recalled_or_not(merged):
    assert merged.item[merged.positive].tolist() == [3, 7]
    assert merged.positives.tolist() == [1, 1, 2]


def test_only_numbers_the_requests_anew(merged):
    part = merged.only(merged.fold == "distil")
    assert part.user.tolist() == [5, 7]
    assert part.request.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert part.item.tolist() == [1, 2, 3, 4, 9, 8, 7]


def test_a_sample_holds_every_positive_and_so_many_others(merged):
    sample = merged.sample(1, seed=3)
    assert np.bincount(sample.request).tolist() == [2, 1, 2]
    assert sample.item[sample.positive].tolist() == [3, 7]
    assert np.array_equal(sample.item, merged.sample(1, seed=3).item)


def test_chunks_hold_whole_requests_in_order(merged):
    pieces = list(merged.chunks(4))
    assert np.concatenate([piece.item for piece in pieces]).tolist() == merged.item.tolist()
    assert sum(len(piece) for piece in pieces) == 3
    assert len(pieces) > 1
