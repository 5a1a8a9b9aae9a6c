"""Losses on logits.

A `Criterion` measures (B, T) logits against `batch["labels"]` (B, T), one loss a task. A NaN among the labels means
that the task was not observed on that row: no loss, no gradient. Of several processes (`models.processes`) each has the
losses of its own rows over the average of what all are divided by; pairs and requests are those within its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models import processes
from models.objective import Criterion
from models.sequences import segment_log_softmax


def masked_bce(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy, averaged per task over the rows whose label is known, by `batch["weight"]` (B,) if there
    is one: (T,)."""
    labels = batch["labels"]
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    weight = ~labels.isnan() * (batch["weight"][:, None] if "weight" in batch else 1.0)
    total = processes.average(weight.sum(0))
    return (loss * weight).sum(0) / total.where(total > 0, 1.0)


def watch_time(logits: Tensor, seconds: Tensor) -> Tensor:
    """Weighted logistic regression of logits (B,): an impression is a negative of weight 1 and, watched for `seconds`
    (B,), a positive of that weight; a scalar, 0 where all seconds are NaN.

    The odds e^logit come to Σ seconds / impressions, the expected seconds, so that they are what to serve, not σ.
    Covington et al. (Deep Neural Networks for YouTube Recommendations, RecSys 2016, §4.2) count a watched impression as
    a positive only. Their odds, Σ seconds / negatives, are near that where few impressions are watched; where nine of
    ten are, they are ten times as much.
    """
    known = ~seconds.isnan()
    watched = seconds.nan_to_num(0.0)
    loss = watched * F.softplus(-logits) + F.softplus(logits)
    return (loss * known).sum() / processes.average(((1 + watched) * known).sum()).clamp(min=1.0)


def with_watch_time(criterion: Criterion, task: int) -> Criterion:
    """The criterion for all tasks but one, whose label is in seconds: its loss is that of `watch_time`."""

    def both(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"].clone()
        labels[:, task] = torch.nan
        of_time = watch_time(logits[:, task], batch["labels"][:, task])
        losses = criterion(logits, {**batch, "labels": labels})
        return torch.cat([losses[:task], of_time[None].to(losses.dtype), losses[task + 1 :]])

    return both


def with_ranking(criterion: Criterion, group: str, weight: float) -> Criterion:
    """The criterion and `weight` times the pairwise logistic loss within the rows that share `batch[group]` (B,).

    Where positives are rare, cross-entropy alone leaves negatives next to no gradient (Lin et al., Understanding the
    Ranking Loss for Recommendation with Sparse User Feedback, KDD 2024).
    """

    def both(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return criterion(logits, batch) + weight * pairwise_logistic(logits, batch["labels"], batch[group])

    return both


def corrected_for_sampling(criterion: Criterion, rates: Sequence[float]) -> Criterion:
    """The criterion on f(x) − ln r where negatives were kept with probability r, a task's own, so that σ(f(x)) is the
    probability before they were sampled (McMahan et al., Ad Click Prediction, KDD 2013, §4.5, as a shift)."""

    def shifted(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return criterion(logits - torch.tensor(rates, device=logits.device).log(), batch)

    return shifted


def as_known_by_now(criterion: Criterion) -> Criterion:
    """The criterion on the probability of what can be known: of a positive with probability p the share `known` (B, T)
    is by now, and `gained` (B, T) has become so since the row was last asked (`pipeline.ranking.delay`).

    Of those not known then, gained · p / (1 − (known − gained) p) are now, with odds of gained · e^z / (1 + (1 − known)
    e^z) for the logit z of p.
    """

    def observed(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        logits = logits.float()
        missing = torch.log1p(-batch["known"])
        asked = logits + batch["gained"].clamp(min=1e-9).log() - F.softplus(logits + missing)
        return criterion(asked, batch)

    return observed


def pairwise_logistic(logits: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """The mean of −ln σ(positive − negative) over all pairs of logits in one group (B,): (T,), 0 without a pair."""
    positive, negative, task = pairs(labels, group)
    loss = F.softplus((logits[negative, task] - logits[positive, task]).float())
    total = loss.new_zeros(labels.shape[1]).index_add(0, task, loss)
    return total / task.bincount(minlength=labels.shape[1]).clamp(min=1)


def pairs(labels: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of a positive and a negative row of one group, for each task: rows, rows and tasks, (pairs,) each.

    Negatives are sorted by group and task, so that those of a positive lie side by side. The work grows with the
    number of pairs, not with the square of the batch.
    """
    tasks = labels.shape[1]
    keys = group[:, None] * tasks + torch.arange(tasks, device=group.device)
    rows = torch.arange(len(labels), device=group.device)[:, None].expand_as(keys)
    positives, negatives = labels == 1, labels == 0
    sorted_keys, order = keys[negatives].sort(stable=True)
    begin = torch.searchsorted(sorted_keys, keys[positives])
    count = torch.searchsorted(sorted_keys, keys[positives], right=True) - begin
    pair = torch.repeat_interleave(count)
    within = torch.arange(len(pair), device=group.device) - (count.cumsum(0) - count)[pair]
    negative = rows[negatives][order[begin[pair] + within]]
    return rows[positives][pair], negative, keys[positives][pair] % tasks


def negatives_gradient(criterion: Criterion, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What the criterion pulls negatives down by: the mean of its gradient over their logits, (T,)."""
    leaf = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(leaf, batch).sum(), leaf)
    negative = batch["labels"] == 0
    return (gradient * negative).sum(0) / negative.sum(0).clamp(min=1)


def listwise_distillation(student: Tensor, teacher: Tensor, request: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy between the teacher's and the student's softmax over each request's candidates (ListNet, Cao et
    al. 2007, with a teacher's scores in the place of graded labels, as in Ranking Distillation, Tang & Wang 2018).

    `student` and `teacher` are (N,) logits, `request` (N,) int64 in 0 … R-1; returns the mean over the R requests.
    """
    count = int(request.max()) + 1 if len(request) else 0
    target = segment_log_softmax(teacher / temperature, request, count).exp()
    log_probability = segment_log_softmax(student / temperature, request, count)
    return -(target * log_probability).sum() / max(count, 1)
