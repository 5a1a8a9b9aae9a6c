"""Encoders of behaviour sequences: from a user's events, and possibly the candidate, to one vector.

An encoder is any module called with

* `query` (B, Q): the candidate, embedded as an event would be (so Q = D), for those encoders that look at it;
* `events` (S, D): all events of the batch, packed;
* `gap` (S,): each event's bucket of elapsed time;
* `row` (S,): the row each event belongs to;

that returns (B, D). A row without events gets zeros.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


def segment_sum(values: Float[Tensor, "S D"], row: Int[Tensor, " S"], rows: int) -> Float[Tensor, "rows D"]:
    """Sum of the values of each row; zeros for a row that has none."""
    return values.new_zeros(rows, values.shape[1]).index_add(0, row, values)


class MeanPooling(nn.Module):
    """The mean of a row's events (Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016, §3).

    An embedding of the elapsed time is added to each event.
    """

    def __init__(self, width: int, gaps: int) -> None:
        super().__init__()
        self.gap = nn.Embedding(gaps, width)
        nn.init.normal_(self.gap.weight, std=0.01)

    def forward(
        self,
        query: Float[Tensor, "B Q"],
        events: Float[Tensor, "S D"],
        gap: Int[Tensor, " S"],
        row: Int[Tensor, " S"],
    ) -> Float[Tensor, "B D"]:
        total = segment_sum(events + self.gap(gap), row, len(query))
        count = events.new_zeros(len(query)).index_add(0, row, torch.ones_like(row, dtype=events.dtype))
        return total / count.clamp(min=1)[:, None]


class ActivationUnit(nn.Module):
    """DIN's local activation unit (Zhou et al., Deep Interest Network, KDD 2018, §4.3): an event k weighs
    MLP([q ‖ k ‖ q−k ‖ q⊙k]) for the candidate q, and the events are summed with these weights, without a softmax.

    The paper has the outer product in the place of q−k and q⊙k; its authors' code has these two. An embedding of the
    elapsed time is added to each event. PReLU stands for Dice.
    """

    def __init__(self, width: int, gaps: int, hidden: int = 32) -> None:
        super().__init__()
        self.gap = nn.Embedding(gaps, width)
        self.compare = nn.Linear(4 * width, hidden)
        self.activation = nn.PReLU()
        self.weigh = nn.Linear(hidden, 1)
        nn.init.normal_(self.gap.weight, std=0.01)

    def weights(
        self, query: Float[Tensor, "B D"], events: Float[Tensor, "S D"], row: Int[Tensor, " S"]
    ) -> Float[Tensor, "S 1"]:
        """Each event's weight for its row's candidate.

        The first layer is multiplied out, so that the candidate's share is computed once a row and not once an event.
        """
        of_query, of_event, of_difference, of_product = self.compare.weight.chunk(4, dim=1)
        hidden = (
            functional.linear(query, of_query + of_difference, self.compare.bias).index_select(0, row)
            + functional.linear(events, of_event - of_difference)
            + functional.linear(query.index_select(0, row) * events, of_product)
        )
        return self.weigh(self.activation(hidden))  # type: ignore[no-any-return]

    def forward(
        self,
        query: Float[Tensor, "B D"],
        events: Float[Tensor, "S D"],
        gap: Int[Tensor, " S"],
        row: Int[Tensor, " S"],
    ) -> Float[Tensor, "B D"]:
        events = events + self.gap(gap)
        return segment_sum(self.weights(query, events, row) * events, row, len(query))
