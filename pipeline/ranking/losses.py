"""Losses on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_bce(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy of (B, T) logits, averaged per task over the rows whose label is known: (T,).

    A NaN in `batch["labels"]` means that the task was not observed on that row: no loss, no gradient.
    """
    labels = batch["labels"]
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    return (loss * known).sum(0) / known.sum(0).clamp(min=1)


def listwise_distillation(student: Tensor, teacher: Tensor, request: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy between the teacher's and the student's softmax over each request's candidates (ListNet, Cao et
    al. 2007, with a teacher's scores in the place of graded labels, as in Ranking Distillation, Tang & Wang 2018).

    `student` and `teacher` are (N,) logits, `request` (N,) int64 in 0 … R-1; returns the mean over the R requests.
    """
    count = int(request.max()) + 1 if len(request) else 0
    target = segment_softmax(teacher / temperature, request, count)
    log_probability = segment_log_softmax(student / temperature, request, count)
    return -(target * log_probability).sum() / max(count, 1)


def segment_log_softmax(scores: Tensor, segment: Tensor, count: int) -> Tensor:
    """log softmax of (N,) scores within each of `count` segments."""
    highest = scores.new_full((count,), -torch.inf).scatter_reduce(0, segment, scores.detach(), "amax")
    shifted = scores - highest[segment]
    total = scores.new_zeros(count).index_add(0, segment, shifted.exp())
    return shifted - total.log()[segment]


def segment_softmax(scores: Tensor, segment: Tensor, count: int) -> Tensor:
    return segment_log_softmax(scores, segment, count).exp()
