from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from linear_worlds import asked, binary, random_log
from route_tables import alone_as_in_company, engaged, recalled, same_bytes

from pipeline.lake import InputError
from pipeline.recall import ials

LOG = random_log(2, users=40, items=30, events=600)
ITEMS = list(range(1, 31))


def test_one_user_and_one_item_on_paper(tmp_path: Path) -> None:
    """With α = ν = 1, w = h / (2h² + 2λ) and likewise h, so that 2h² + 2λ = 1: with λ = 1/16, h² = 7/16."""
    recalled(ials, engaged([(1, 1)], [1]), tmp_path / "one", [1], width=1, unobserved=1.0, ridge=1 / 16, sweeps=200)
    assert ials.load(tmp_path / "one", None).vectors[1, 0] ** 2 == pytest.approx(7 / 16, abs=1e-4)


@pytest.mark.parametrize("width", [3, 64], ids=["more events than numbers", "fewer events than numbers"])
@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_a_user_is_solved_for_and_asks_all_items(width: int, exponent: float, tmp_path: Path) -> None:
    options = {"width": width, "unobserved": 0.1, "ridge": 0.2, "exponent": exponent}
    users = sorted({user for user, _ in LOG})
    lists = recalled(ials, engaged(LOG, ITEMS), tmp_path / "one", users, k=5, **options)
    items = ials.load(tmp_path / "one", None).vectors[1:].astype(np.float64)
    for own, found in zip(binary(LOG, 31)[:, 1:] > 0, lists, strict=True):
        normal = items[own].T @ items[own] + 0.1 * items.T @ items
        normal += 0.2 * (own.sum() + 0.1 * len(items)) ** exponent * np.eye(width)
        scores = np.where(own, -np.inf, items @ np.linalg.solve(normal, items[own].sum(axis=0)))
        best = [place for place in np.argsort(-scores)[:5] if np.isfinite(scores[place])]
        np.testing.assert_allclose([score for _, score in found], scores[best], atol=1e-4)
        np.testing.assert_allclose([scores[item - 1] for item, _ in found], scores[best], atol=1e-4)


def test_the_items_are_solved_for_too(tmp_path: Path) -> None:
    """After many sweeps the loss is at a stationary point: its gradient by the items' vectors is 0."""
    options = {"width": 4, "unobserved": 0.1, "ridge": 0.05, "exponent": 0.7, "sweeps": 400}
    users = sorted({user for user, _ in LOG})
    recalled(ials, engaged(LOG, ITEMS), tmp_path / "one", users, **options)
    route, taken = ials.load(tmp_path / "one", None), binary(LOG, 31)[:, 1:]
    histories = [[item + 1 for item in np.flatnonzero(own)] for own in taken]
    found = ials.users_of(asked(*histories), route.vectors, route.diagonal, route.penalty, 200).astype(np.float64)
    items = route.vectors[1:].astype(np.float64)
    scores = found @ items.T
    gradient = (taken * (scores - 1) + 0.1 * scores).T @ found
    gradient += 0.05 * (taken.sum(axis=0) + 0.1 * len(users))[:, None] ** 0.7 * items
    assert np.abs(gradient).max() < 2e-3
    assert np.abs(items).max() > 0.1


def test_alone_and_in_company_and_twice(tmp_path: Path) -> None:
    taken = engaged(LOG, ITEMS)
    for name in ("one", "two"):
        recalled(ials, taken, tmp_path / name, [1])
    same_bytes(tmp_path / "one", tmp_path / "two")
    alone_as_in_company(ials, taken, tmp_path / "one", [*range(12), 99])


def test_unknown_users_and_items_nobody_took_or_that_are_withdrawn(tmp_path: Path) -> None:
    found = recalled(ials, engaged(LOG, [1, 2, 3, 4, 77]), tmp_path / "one", [0, 1, 99])
    assert found[0] == found[2] == []
    assert {item for item, _ in found[1]} <= {1, 2, 3, 4}


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    assert recalled(ials, engaged([], [1, 2]), tmp_path / "one", [1]) == [[]]


@pytest.mark.parametrize("option", ["ridge", "unobserved"])
def test_bad_options_are_named(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{option} 0\.0"):
        recalled(ials, engaged(LOG, ITEMS), tmp_path / "one", [1], **{option: 0.0})
