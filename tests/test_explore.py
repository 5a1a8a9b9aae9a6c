from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit

from pipeline.ranking import explore
from pipeline.ranking.explore import CLIP, Posterior, deviation, fit, load, save, shift

FIELDS = ("W", "b", "mean", "std", "factors")


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((500, 3)) * [1, 10, 0.1] + [0, 100, -1]
    return numbers.astype(np.float32), generator.uniform(0.01, 0.6, (500, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def posterior(rows: tuple[np.ndarray, np.ndarray]) -> Posterior:
    return fit(*rows, features=16, ridge=2.0, seed=1)


def waves(posterior: Posterior, numbers: np.ndarray) -> np.ndarray:
    """φ row by row, from the formula."""
    standard = np.clip((numbers.astype(float) - posterior.mean) / posterior.std, -CLIP, CLIP)
    rows = [np.cos(posterior.W.T.astype(float) @ row + posterior.b) for row in standard]
    return np.sqrt(2 / len(posterior.b)) * np.array(rows)


def covariance(posterior: Posterior, rows: tuple[np.ndarray, np.ndarray], task: int, ridge: float) -> np.ndarray:
    numbers, chance = rows[0], rows[1][:, task].astype(float)
    seen = waves(posterior, numbers)
    outer = sum(p * (1 - p) * np.outer(one, one) for p, one in zip(chance, seen, strict=True))
    return np.linalg.inv(ridge * np.eye(seen.shape[1]) + outer)


def test_the_variance_is_that_of_the_dense_posterior(rows: tuple[np.ndarray, np.ndarray], posterior: Posterior) -> None:
    asked = np.random.default_rng(2).standard_normal((20, 3)).astype(np.float32) * 3
    seen = waves(posterior, asked)
    for task in range(2):
        expected = [one @ covariance(posterior, rows, task, 2.0) @ one for one in seen]
        assert deviation(posterior, asked)[:, task] ** 2 == pytest.approx(expected, rel=1e-4)


def test_neither_pieces_nor_their_number_matter(
    rows: tuple[np.ndarray, np.ndarray], posterior: Posterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "CHUNK", 7)
    assert fit(*rows, features=16, ridge=2.0, seed=1).factors == pytest.approx(posterior.factors, abs=1e-6)


def test_products_of_features_are_near_the_gaussian_kernel() -> None:
    numbers = np.random.default_rng(3).standard_normal((200, 4))
    wide = fit(numbers, np.full((200, 1), np.nan), features=2048, ridge=1.0, seed=0, length_scale=1.5)
    standard = (numbers[:30] - numbers.mean(axis=0)) / numbers.std(axis=0)
    distance = ((standard[:, None] - standard) ** 2).sum(axis=2)
    seen = waves(wide, numbers[:30])
    assert seen @ seen.T == pytest.approx(np.exp(-distance / (2 * 1.5**2)), abs=5 / np.sqrt(2048))


def test_by_default_rows_drawn_at_random_correlate_by_1_over_e() -> None:
    """The mean of exp(−d² / 2M) over Gaussian rows is (1 + 2/M)^(−M/2); a constant is not counted in M."""
    numbers = np.random.default_rng(4).standard_normal((400, 41))
    numbers[:, 40] = 7
    wide = fit(numbers, np.full((400, 1), np.nan), features=2048, seed=0)
    seen = waves(wide, numbers)
    assert np.isinf(wide.std[40])
    assert (seen[:200] * seen[200:]).sum(axis=1).mean() == pytest.approx((1 + 2 / 40) ** -20, abs=0.02)


def test_uncertainty_is_small_where_rows_were_many_and_the_prior_far_from_them() -> None:
    generator = np.random.default_rng(5)
    numbers = generator.standard_normal((4_000, 2))
    dense = fit(numbers, np.full((4_000, 1), 0.3), length_scale=1.0, ridge=0.25, seed=0, features=512)
    asked = np.array([[0.0, 0.0], [1.0, 1.0], [2.5, 2.5], [5.0, -5.0]])
    spread = deviation(dense, asked)[:, 0]
    prior = np.linalg.norm(waves(dense, asked), axis=1) / np.sqrt(0.25)
    assert (np.diff(spread / prior) > 0).all()
    assert spread[0] < 0.1 * prior[0]
    assert spread[3] > 0.9 * prior[3]
    assert prior == pytest.approx(2.0, rel=0.15)


def test_a_task_whose_probabilities_are_unknown_learns_nothing(rows: tuple[np.ndarray, np.ndarray]) -> None:
    numbers, chance = rows
    half = chance.copy()
    half[:, 0] = np.nan
    half[250:, 1] = np.nan
    learnt = fit(numbers, half, features=16, ridge=4.0, seed=1)
    assert learnt.factors[0] == pytest.approx(np.eye(16) / 2)
    fewer = covariance(learnt, (numbers[:250], chance[:250]), 1, 4.0)
    assert learnt.factors[1] @ learnt.factors[1].T == pytest.approx(fewer, rel=1e-4, abs=1e-6)


def test_draws_have_mean_0_and_the_covariance_of_the_posterior(posterior: Posterior) -> None:
    """Over 20 000 requests with the same two candidates: within 5 standard errors, tasks being independent."""
    asked = np.array([[0, 100, -1], [1, 90, -1.1]], np.float32)
    draws = 20_000
    request = np.repeat(np.arange(draws), 2)
    drawn = shift(posterior, np.tile(asked, (draws, 1)), request, np.random.default_rng(6)).reshape(draws, 4)
    expected = np.zeros((4, 4))
    for task, factor in enumerate(posterior.factors):
        half = waves(posterior, asked) @ factor
        expected[task::2, task::2] = half @ half.T
    deviations = np.sqrt(np.diag(expected))
    assert (np.abs(drawn.mean(axis=0)) < 5 * deviations / np.sqrt(draws)).all()
    error = np.sqrt((expected**2 + np.outer(deviations, deviations) ** 2) / draws)
    assert (np.abs(np.cov(drawn.T) - expected) < 5 * error).all()
    assert expected[0, 2] > 10 * error[0, 2]


def test_candidates_of_one_request_move_together(posterior: Posterior) -> None:
    alike = np.repeat(posterior.mean[None], 4, axis=0)
    drawn = shift(posterior, alike, np.array([7, 3, 7, 3]), np.random.default_rng(8))
    assert np.array_equal(drawn[:2], drawn[2:])
    assert (drawn[0] != drawn[1]).all()


def test_the_same_generator_draws_the_same_bytes(rows: tuple[np.ndarray, np.ndarray], posterior: Posterior) -> None:
    twin = fit(*rows, features=16, ridge=2.0, seed=1)
    request = np.arange(500) // 50
    first, second = (shift(one, rows[0], request, np.random.default_rng(9)) for one in (posterior, twin))
    assert first.tobytes() == second.tobytes()
    assert first.dtype == np.float32
    assert first.tobytes() != shift(posterior, rows[0], request, np.random.default_rng(10)).tobytes()
    assert not np.array_equal(fit(*rows, features=16, ridge=2.0, seed=2).W, posterior.W)


def test_saved_and_loaded_it_is_identical(tmp_path: Path, posterior: Posterior) -> None:
    save(posterior, tmp_path / "posterior.safetensors")
    again = load(tmp_path / "posterior.safetensors")
    for name in FIELDS:
        ours, theirs = getattr(posterior, name), getattr(again, name)
        assert theirs.dtype == np.float32
        assert theirs.shape == ours.shape
        assert theirs.tobytes() == ours.tobytes()


def test_a_missing_or_infinite_number_is_the_mean(rows: tuple[np.ndarray, np.ndarray], posterior: Posterior) -> None:
    gaps = np.array([[np.nan, 90, np.inf], [-np.inf, 90, np.nan]], np.float32)
    filled = np.array([[posterior.mean[0], 90, posterior.mean[2]]] * 2, np.float32)
    assert np.array_equal(deviation(posterior, gaps), deviation(posterior, filled))
    numbers = np.concatenate([rows[0], np.full((9, 3), np.nan), np.full((9, 3), np.inf)]).astype(np.float32)
    chance = np.concatenate([rows[1], np.full((18, 2), np.nan)])
    assert np.array_equal(fit(numbers, chance, features=16, ridge=2.0, seed=1).mean, posterior.mean)
    assert np.array_equal(fit(numbers, chance, features=16, ridge=2.0, seed=1).std, posterior.std)


def test_a_number_that_never_varied_says_nothing() -> None:
    numbers = np.array([[1, 0.1, np.nan], [2, 0.1, np.nan], [3, 0.1, np.nan]], np.float32)
    learnt = fit(numbers, np.full((3, 1), 0.5), features=8, seed=0)
    other = np.array([[2, 50, 9], [2, 0.1, np.nan]], np.float32)
    assert np.isinf(learnt.std[1:]).all()
    assert deviation(learnt, other)[0] == deviation(learnt, other)[1]


def test_what_lies_beyond_5_deviations_is_clipped(posterior: Posterior) -> None:
    far = posterior.mean + posterior.std * np.array([[6, -7, 100], [5, -5, 5]], np.float32)
    assert deviation(posterior, far)[0] == pytest.approx(deviation(posterior, far)[1], rel=1e-3)


def test_no_rows_to_fit_or_to_score(posterior: Posterior) -> None:
    empty = fit(np.empty((0, 3), np.float32), np.empty((0, 2), np.float32), features=8, ridge=4.0, seed=0)
    assert empty.factors == pytest.approx(np.tile(np.eye(8) / 2, (2, 1, 1)))
    nothing = np.empty((0, 3), np.float32)
    assert shift(posterior, nothing, np.empty(0, int), np.random.default_rng(0)).shape == (0, 2)
    assert deviation(posterior, nothing).shape == (0, 2)


def test_thompson_sampling_finds_the_arm_that_greedy_never_tries() -> None:
    """The log knows the first arm, clicked at .3 in both contexts; the second was shown five times, without luck.

    The ranker is the rate so far, smoothed by 1 click in 20, so greedily the second arm never comes. By draws from the
    posterior it does, and is then kept where it is clicked at .6, and only there: in the other context it is .05.
    """
    truth = np.array([[0.3, 0.6], [0.3, 0.05]])
    cells = np.array([[[1, 1], [1, -1]], [[-1, 1], [-1, -1]]], float)
    asked = np.repeat([0, 1], 50)

    def play(explores: bool) -> np.ndarray:
        """How often each context (2) was answered by each arm (2) in each of 60 turns."""
        generator = np.random.default_rng(0)
        shows, clicks = np.array([[500, 5], [500, 5]]), np.array([[150, 0], [150, 0]])
        chosen = np.zeros((60, 2, 2))
        for turn in chosen:
            rate = (clicks + 1) / (shows + 20)
            numbers, chance = (np.repeat(one, shows.ravel(), axis=0) for one in (cells.reshape(4, 2), rate.ravel()))
            seen = fit(numbers, chance[:, None], features=64, length_scale=1.0, seed=0)
            drawn = shift(seen, cells[asked].reshape(-1, 2), np.repeat(np.arange(100), 2), generator).reshape(100, 2)
            given = (logit(rate[asked]) + explores * drawn).argmax(axis=1)
            np.add.at(turn, (asked, given), 1)
            np.add.at(shows, (asked, given), 1)
            np.add.at(clicks, (asked, given), generator.random(100) < truth[asked, given])
        return chosen

    greedy, thompson = play(False), play(True)
    assert greedy[:, :, 1].sum() == 0
    assert thompson[-10:, 0, 1].mean() > 0.95 * 50
    assert thompson[-10:, 1, 1].mean() < 0.1 * 50
    assert (thompson * truth).sum() > 1.3 * (greedy * truth).sum()
