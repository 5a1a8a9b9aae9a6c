from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from neural_worlds import planted
from torch.nn.functional import log_softmax, normalize

from models.policy import Policy, correction, top_k_factor
from pipeline.features.store import FeatureStore
from pipeline.recall import policy
from pipeline.recall.histories import Histories, Reader
from pipeline.recall.route import Requests


def test_top_k_factor_on_paper() -> None:
    shares = torch.tensor([0.25, 0.5, 1e-9, 1.0])
    np.testing.assert_allclose(top_k_factor(shares.log(), 2), [1.5, 1.0, 2.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(top_k_factor(shares.log(), 3), [3 * 0.75**2, 3 * 0.25, 3.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(top_k_factor(shares.log(), 1), [1.0] * 4)


def test_top_k_factor_is_what_a_share_does_to_being_among_k_draws() -> None:
    share = torch.tensor([0.01, 0.2, 0.7], dtype=torch.float64, requires_grad=True)
    among = 1 - (1 - share) ** 16
    torch.testing.assert_close(top_k_factor(share.log().detach(), 16), torch.autograd.grad(among.sum(), share)[0])


def test_correction_on_paper() -> None:
    """π / β is .5 / .1 = 5, capped at 3, and .2 / .8 = .25; λ_2 is 1 and 1.6."""
    log_policy = torch.tensor([0.5, 0.2]).log().requires_grad_()
    weight = correction(log_policy, torch.tensor([0.1, 0.8]).log(), k=2, cap=3.0)
    np.testing.assert_allclose(weight, [3.0, 0.4], rtol=1e-6)
    assert not weight.requires_grad


def learnt(logged: list[float], reward: list[float], *, k: int, corrected: bool = True) -> torch.Tensor:
    """π after steps along the expected gradient of what a policy `logged` shows and its rewards."""
    shown, value = torch.tensor(logged), torch.tensor(reward)
    logits = torch.zeros(len(logged), requires_grad=True)
    for _ in range(3_000):
        log_policy = log_softmax(logits, dim=0)
        weight = correction(log_policy, shown.log(), k=k, cap=1e3) if corrected else torch.ones(len(logged))
        loss = -(shown * value * weight * log_policy).sum()
        with torch.no_grad():
            logits -= 0.2 * torch.autograd.grad(loss, logits)[0]
    return logits.detach().softmax(dim=0)


def test_the_correction_finds_what_the_log_seldom_showed() -> None:
    """Item 0 was shown 9 times in 10 and is taken half the time; item 1 always is. Imitation prefers item 0."""
    imitated = learnt([0.9, 0.1], [0.5, 1.0], k=1, corrected=False)
    np.testing.assert_allclose(imitated, [0.45 / 0.55, 0.1 / 0.55], atol=1e-3)
    assert float(learnt([0.9, 0.1], [0.5, 1.0], k=1)[1]) > 0.95


def test_with_two_to_show_the_second_best_keeps_its_share() -> None:
    """One draw: all on the best. Two: r (1 − π) is alike for the two best, 1 · (1 − π) = .9 · π, and next to nothing is
    left for a third of so little worth."""
    alone = learnt([1 / 3] * 3, [1.0, 0.9, 0.1], k=1)
    assert float(alone[0]) > 0.95
    both = learnt([1 / 3] * 3, [1.0, 0.9, 0.1], k=2)
    np.testing.assert_allclose(both[:2], [1 / 1.9, 0.9 / 1.9], atol=0.02)


def vectors(count: int, seed: int) -> torch.Tensor:
    return 2 * normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)))


def test_with_all_items_sampled_once_the_share_is_the_softmaxs() -> None:
    users, items = vectors(3, 1), vectors(8, 2)
    order = torch.tensor([5, 0, 3, 1, 2, 4, 6, 7])
    found = policy.log_chosen(users, items[order], order, torch.zeros(8))
    torch.testing.assert_close(found, log_softmax(users @ items.T, dim=1)[torch.arange(3), order[:3]])


def test_from_an_uneven_sample_the_share_is_nearly_the_softmaxs() -> None:
    users, items = vectors(1, 1), vectors(20, 2)
    share = torch.arange(1, 21).double() ** 2
    share /= share.sum()
    drawn = torch.multinomial(share, 50_000, replacement=True, generator=torch.Generator().manual_seed(0))
    sample = torch.cat([torch.tensor([4]), drawn])
    log_q = (share[sample] * len(drawn)).log().float()
    exact = float(log_softmax(users @ items.T, dim=1)[0, 4])
    assert float(policy.log_chosen(users, items[sample], sample, log_q)) == pytest.approx(exact, abs=0.03)
    assert abs(float(policy.log_chosen(users, items[sample], sample, torch.zeros(len(sample)))) - exact) > 1


def test_returns_on_paper() -> None:
    user, reward = np.array([1, 1, 1, 2, 2]), np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(policy.returns(user, reward, 0.5), [0.75, 1.5, 1.0, 0.5, 1.0])
    np.testing.assert_array_equal(policy.returns(user, reward, 0.0), reward)


def test_the_logged_policys_gradient_stops_at_the_state(tmp_path: Path) -> None:
    store = FeatureStore.open(planted(tmp_path))
    reader = Reader.of(store, 4)
    model = Policy(store.schema, width=8, length=4, content=reader.content.shape[1])
    requests = Requests(*(np.array(values) for values in ([1, 2], [0, 1], [9, 9], [3, 4, 5], [1, 2, 3], [0, 2, 3])))
    users = model.users(reader(Histories.of(requests)))
    items = reader.codes[1:6], reader.content[1:6]
    (users[1] @ model.logged_item_vectors(*items).T).square().sum().backward()
    reached = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert reached == {"logged_user", "logged_items"}
    (users[0] @ model.item_vectors(*items).T).square().sum().backward()
    untouched = [name for name, value in model.named_parameters() if value.grad is None]
    assert untouched == []


def test_more_than_one_k_is_never_negative() -> None:
    for share, k in itertools.product([1e-12, 0.3, 1.0, 1.0 + 1e-7], [1, 2, 16]):
        assert 0 <= float(top_k_factor(torch.tensor([share]).log(), k)[0]) <= k
