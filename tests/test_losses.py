import math

import pytest
import torch
from torch.nn import functional as F

from models.sequences import segment_log_softmax
from pipeline.ranking.losses import (
    corrected_for_sampling,
    listwise_distillation,
    masked_bce,
    negatives_gradient,
    pairs,
    pairwise_logistic,
    watch_time,
    with_ranking,
    with_watch_time,
)

NAN = math.nan


def test_masked_bce_is_a_mean_over_known_rows_for_each_task():
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [3.0, 0.0]])
    labels = torch.tensor([[1.0, NAN], [0.0, NAN], [NAN, 1.0]])
    first = (math.log(2) + math.log(1 + math.e)) / 2
    assert masked_bce(logits, {"labels": labels}).tolist() == pytest.approx([first, math.log(2)], rel=1e-6)


def test_an_unknown_label_gives_no_gradient():
    logits = torch.zeros(2, 2, requires_grad=True)
    masked_bce(logits, {"labels": torch.tensor([[1.0, NAN], [0.0, NAN]])}).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.25, 0.0], [0.25, 0.0]]


def test_segment_log_softmax_agrees_with_a_softmax_per_segment():
    scores, segment = torch.randn(9) * 30, torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    expected = torch.cat([F.log_softmax(scores[segment == number], 0) for number in range(3)])
    torch.testing.assert_close(segment_log_softmax(scores, segment, 3), expected)


def test_listwise_distillation_is_least_where_student_and_teacher_agree():
    teacher, request = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5]), torch.tensor([0, 0, 0, 1, 1])
    student = teacher.clone().requires_grad_()
    loss = listwise_distillation(student, teacher, request, temperature=0.5)
    loss.backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros(5), atol=1e-6, rtol=0)
    entropy = sum(
        torch.distributions.Categorical(logits=teacher[request == number] / 0.5).entropy() for number in (0, 1)
    )
    assert loss.item() == pytest.approx(float(entropy) / 2, rel=1e-5)
    assert listwise_distillation(-teacher, teacher, request, temperature=0.5) > loss


def test_masked_bce_with_weights_is_a_weighted_mean():
    """Losses ln 2 and ln(1 + e), weighed 3 and 1; the unknown row's weight of 100 does not count."""
    logits, labels = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[1.0], [0.0], [NAN]])
    loss = masked_bce(logits, {"labels": labels, "weight": torch.tensor([3.0, 1.0, 100.0])})
    assert loss.item() == pytest.approx((3 * math.log(2) + math.log(1 + math.e)) / 4, rel=1e-6)


def test_pairwise_logistic_on_paper():
    """Group 7 has the pairs 2 > 1 and 2 > 0, group 8 the pair 1 > 3; the unknown row and group 9 have none."""
    logits = torch.tensor([[2.0], [1.0], [0.0], [1.0], [3.0], [5.0], [5.0]])
    labels = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.0], [NAN], [1.0]])
    group = torch.tensor([7, 7, 7, 8, 8, 8, 9])
    expected = sum(math.log(1 + math.exp(-margin)) for margin in (1, 2, -2)) / 3
    assert pairwise_logistic(logits, labels, group).tolist() == pytest.approx([expected], rel=1e-6)


def test_pairs_against_a_loop():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (60, 3), generator=random).float()
    labels[torch.rand(60, 3, generator=random) < 0.2] = NAN
    group = torch.randint(9, (60,), generator=random) * 1_000_003
    expected = {
        (i, j, task)
        for task in range(3)
        for i in range(60)
        for j in range(60)
        if labels[i, task] == 1 and labels[j, task] == 0 and group[i] == group[j]
    }
    found = list(zip(*(part.tolist() for part in pairs(labels, group)), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_pairwise_logistic_without_a_pair_is_zero(rows):
    logits = torch.randn(rows, 2, requires_grad=True)
    loss = pairwise_logistic(logits, torch.ones(rows, 2), torch.zeros(rows, dtype=torch.long))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_ranking_loss_pulls_harder_at_negatives_where_positives_are_rare():
    """One positive in 1,000 and logits at the base rate. Cross-entropy pulls at each negative by p / 1,000 with p =
    .001; a pair of equal logits by a half, over 999 pairs."""
    labels, logits = torch.zeros(1_000, 1), torch.full((1_000, 1), math.log(0.001 / 0.999))
    labels[0] = 1
    batch = {"labels": labels, "domain": torch.zeros(1_000, dtype=torch.long)}
    assert negatives_gradient(masked_bce, logits, batch).item() == pytest.approx(1e-6, rel=1e-3)
    both = with_ranking(masked_bce, "domain", 2.0)
    assert negatives_gradient(both, logits, batch).item() == pytest.approx(1e-6 + 2 * 0.5 / 999, rel=1e-3)
    plain, ranked = masked_bce(logits, batch), both(logits, batch)
    torch.testing.assert_close(ranked - plain, torch.tensor([2 * math.log(2)]), atol=1e-4, rtol=1e-4)


def minimised(criterion, batch, steps=200):
    """The constant logit at which the criterion is least, by Newton's method on numbers."""
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        loss = criterion(logit.expand(len(batch["labels"]), 1), batch).sum()
        (slope,) = torch.autograd.grad(loss, logit, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, logit)
        logit = (logit - (slope / curvature).clamp(-1, 1)).detach().requires_grad_()
    return logit.item()


@pytest.mark.parametrize("watched", [50, 900, 1_000])
def test_watch_time_serves_the_mean_seconds_of_a_constant_world(watched):
    """Of 1,000 impressions some were watched, for 40 seconds each, and of 7 nothing is known."""
    seconds = torch.cat([torch.full((watched,), 40.0), torch.zeros(1_000 - watched), torch.full((7,), NAN)]).double()
    served = math.exp(minimised(with_watch_time(masked_bce, 0), {"labels": seconds[:, None]}))
    assert served == pytest.approx(40 * watched / 1_000, rel=1e-6)


def test_watch_time_on_paper():
    """At logit 1 a second weighs ln(1 + 1/e) and an impression ln(1 + e): 3 seconds in two impressions."""
    expected = (3 * math.log(1 + 1 / math.e) + 2 * math.log(1 + math.e)) / 5
    assert watch_time(torch.ones(3), torch.tensor([3.0, 0.0, NAN])).item() == pytest.approx(expected, rel=1e-6)
    assert watch_time(torch.ones(2), torch.full((2,), NAN)).item() == 0


def test_watch_time_beside_other_tasks():
    """Each task keeps its own loss, and a second is no positive of a pairwise loss."""
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 17.5, NAN], [0, NAN, 1], [NAN, 1, 0], [0, 0, 0]])
    batch = {"labels": labels, "user": torch.zeros(6, dtype=torch.long)}
    both = with_watch_time(with_ranking(masked_bce, "user", 1.0), 1)(logits, batch)
    other = {"labels": labels[:, [0, 2]], "user": batch["user"]}
    torch.testing.assert_close(both[[0, 2]], with_ranking(masked_bce, "user", 1.0)(logits[:, [0, 2]], other))
    torch.testing.assert_close(both[1], watch_time(logits[:, 1], labels[:, 1]))


def test_a_model_of_sampled_negatives_is_calibrated_where_it_is_corrected():
    """Groups with click rates from .01 to .3 and a tenth of the negatives: a logit a group, trained to the minimum."""
    random = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.01, 0.03, 0.1, 0.3])
    group = torch.randint(4, (400_000,), generator=random)
    clicked = torch.bernoulli(truth[group], generator=random)
    kept = (clicked == 1) | (torch.rand(400_000, generator=random) < 0.1)
    for g in range(4):
        labels = clicked[kept & (group == g)][:, None].double()
        observed = clicked[group == g].mean().item()
        corrected = 1 / (1 + math.exp(-minimised(corrected_for_sampling(masked_bce, [0.1]), {"labels": labels}, 30)))
        assert corrected == pytest.approx(observed, rel=0.02)
        uncorrected = 1 / (1 + math.exp(-minimised(masked_bce, {"labels": labels}, 30)))
        assert uncorrected > 2 * observed
