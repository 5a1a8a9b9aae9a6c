import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.ranking.losses import listwise_distillation, masked_bce, segment_log_softmax

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
