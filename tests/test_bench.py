import json
import math

import pytest

from pipeline.bench import BENCHES
from pipeline.bench.measure import seconds, show

TINY = {
    "train": {"rows": 2_000, "batch_size": 512},
    "processes": {"rows": 2_000, "batch_size": 512, "tasks": "c"},
    "loader": {"rows": 5_000},
    "epoch": {"rows": 5_000, "distinct": 2_000, "batch_size": 512},
    "features": {"events": 3_000, "rolling_events": 300, "runs": 1},
    "scale": {"events": 3_000, "days": 6, "parts": 2},
    "recall": {"users": 400, "items": 250, "impressions": 8_000},
    "ann": {"vectors": 2_000, "queries": 40, "k": 10},
    "routes": {"users": 400, "items": 250, "impressions": 8_000, "requests": 20},
    "item_cf": {"interactions": 5_000, "users": 300, "items": 200},
    "swing": {"interactions": 5_000, "users": 300, "items": 200},
    "merge": {"requests": 20},
    "serve": {
        **{"users": 400, "items": 250, "impressions": 8_000, "per_route": 50, "merged": 100, "keep": 40},
        **{"requests": 20, "seconds": 2, "clients": 2},
    },
    "soak": {"users": 400, "items": 250, "impressions": 8_000, "seconds": 8, "swap_seconds": 3, "rate": 5},
    "refresh": {"users": 300, "items": 200, "impressions": 6_000, "days": 5, "shown": 1, "hours": 12, "seeds": 1},
    "delay": {"users": 300, "items": 200, "impressions": 8_000, "days": 6, "steps": 1, "seeds": 1},
}


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_gives_finite_numbers(name):
    measured, quick = BENCHES[name]
    assert quick
    figures = measured(**TINY[name])
    assert figures
    assert all(math.isfinite(value) for value in figures.values())
    assert all(value >= 0 for key, value in figures.items() if not key.startswith("gain"))


def test_the_last_line_is_one_json_object(capsys):
    show("title", {"rows": 1234567.0, "share": 0.25})
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"rows": 1234567.0, "share": 0.25}
    assert any("1,234,567" in line for line in lines)


def test_seconds_counts_all_but_the_first_run():
    calls = []
    assert seconds(lambda: calls.append(0), runs=3) >= 0
    assert len(calls) == 4
