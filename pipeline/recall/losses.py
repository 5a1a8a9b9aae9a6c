"""R17: losses of recall, on the vectors of users and of sampled items.

Those of `LOSSES` are called with

* `user` (B, D): the rows' users;
* `item` (S, D): the sampled items, the rows' own first, in the rows' order, and then those drawn;
* `item_id` (S,): their numbers; list- and pair-wise, a copy of the row's own item is no negative (accidental hit);
* `log_q` (S,): the log of how often each item is expected among what a row is set against, up to a constant;
* `temperature`: the logit is user · item / temperature. What corrects for sampling is subtracted outside of it.

List-wise, a row is set against all S. The losses by row deal the drawn items in turn, so that S is a multiple of B:
row r has the drawn ones r, r + B, r + 2 B, …
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.lake import InputError

Name = Literal["listwise", "pointwise", "bpr", "hinge", "full"]

NEGATIVES = {"listwise": 1024, "pointwise": 3, "bpr": 3, "hinge": 3}
MARGIN = 1.0
ROWS = 128


def listwise(user: Tensor, item: Tensor, item_id: Tensor, log_q: Tensor, *, temperature: float) -> Tensor:
    """Sampled softmax: the cross-entropy of each row's own item among the S sampled ones, with the logit less log q
    (Bengio & Senécal 2008; Yi et al., RecSys 2019).

    When every item is sampled once this is the full softmax. What was sampled n times has one vector and one logit,
    plus log n, but for the row's own item: copies of it are no negatives.
    """
    distinct, place, times = item_id.unique(return_inverse=True, return_counts=True)
    order = torch.arange(len(item_id), device=item_id.device)
    first = torch.empty_like(distinct).scatter_reduce_(0, place, order, "amin", include_self=False)
    return _softmax(user, item[first], place[: len(user)], times.log(), log_q[first], temperature)


def pointwise(user: Tensor, item: Tensor, item_id: Tensor, log_q: Tensor, *, temperature: float) -> Tensor:
    """Binary cross-entropy of each row's own item against those dealt to it, summed over them, on the logit less log q.

    So corrected it is noise-contrastive estimation (Gutmann & Hyvärinen, JMLR 2012): the logit learns the log of the
    probability among all items, and with ever more negatives the gradient becomes the full softmax's. A copy of the own
    item is noise like any other.
    """
    own, dealt, _ = _deal(user, item, item_id, temperature)
    positive = softplus(log_q[: len(user)] - own)
    negative = softplus(dealt - log_q[len(user) :].view_as(dealt))
    return (positive + negative.sum(dim=0)).mean()


def bpr(user: Tensor, item: Tensor, item_id: Tensor, log_q: Tensor, *, temperature: float) -> Tensor:  # noqa: ARG001
    """Bayesian personalised ranking: the mean of −ln σ(own − dealt) over pairs of logits (Rendle et al., UAI 2009).

    With one other item this is the softmax of the two.
    """
    own, dealt, hits = _deal(user, item, item_id, temperature)
    return softplus(dealt - own)[~hits].sum() / (~hits).sum().clamp(min=1)


def hinge(user: Tensor, item: Tensor, item_id: Tensor, log_q: Tensor, *, temperature: float) -> Tensor:  # noqa: ARG001
    """The mean of max(0, 1 − own + dealt) over pairs of logits (Weston et al., WSABIE, IJCAI 2011, without its weight
    by rank)."""
    own, dealt, hits = _deal(user, item, item_id, temperature)
    return (MARGIN + dealt - own)[~hits].relu().sum() / (~hits).sum().clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {"listwise": listwise, "pointwise": pointwise, "bpr": bpr, "hinge": hinge}


def full_softmax(user: Tensor, item: Tensor, own: Tensor, *, temperature: float) -> Tensor:
    """The cross-entropy of each row's own item, whose row of `item` (I, D) `own` (B,) tells, among all I of them."""
    nothing = torch.zeros(len(item), device=item.device)
    return _softmax(user, item, own, nothing, nothing, temperature)


def _softmax(user: Tensor, item: Tensor, own: Tensor, log_times: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of the own items, each once, among all I, each as often as `log_times` (I,) says, with the
    logit less `log_q` (I,).

    The gradient is made along with the value, a few rows at a time: no (B, I) matrix is ever held, the few rows stay in
    the processor's cache, and the exponentials are computed once.
    """
    with torch.autocast(user.device.type, enabled=False):
        return _Softmax.apply(user.float() / temperature, item.float(), own, log_times, log_q)  # type: ignore[no-any-return,no-untyped-call]


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user: Tensor, item: Tensor, own: Tensor, log_times: Tensor, log_q: Tensor) -> Tensor:
        of_user, of_item, total = torch.empty_like(user), torch.zeros_like(item), user.new_zeros(())
        offset = log_times - log_q
        for part, target, gradient in zip(user.split(ROWS), own.split(ROWS), of_user.split(ROWS), strict=True):
            logits = torch.addmm(offset, part, item.T)
            logits.scatter_add_(1, target[:, None], -log_times[target, None])
            chosen = logits.gather(1, target[:, None])
            highest = logits.amax(dim=1, keepdim=True)
            mass = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
            total += (mass.log() + (highest - chosen)).sum()
            torch.mm(logits, item, out=gradient)
            gradient.div_(mass).sub_(item[target])
            of_item.addmm_(logits.T, part / mass)
        rows = max(len(user), 1)
        ctx.save_for_backward(of_user.div_(rows), of_item.index_add_(0, own, user, alpha=-1).div_(rows))
        return total / rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        of_user, of_item = ctx.saved_tensors
        return gradient * of_user, gradient * of_item, None, None, None


def drawn(loss: Name, rows: int, negatives: int | None, catalogue: int) -> tuple[int, tuple[int, int]]:
    """How many items are drawn beside so many rows, and for how many own and drawn items `Sampler.log_q` has to be
    asked. By row it is for what a row is dealt, times the size of the catalogue: a logit of 0 then is the probability
    of an item when all are alike, which is where training begins. From elsewhere, point-wise logits that have no bias
    would have to learn the same constant first, and stay there."""
    count = NEGATIVES[loss] if negatives is None else negatives
    return (count, (rows, count)) if loss == "listwise" else (count * rows, (0, count * catalogue))


def check(route: str, loss: str) -> None:
    """Raises `InputError` for a loss that does not exist."""
    if loss not in get_args(Name):
        raise InputError(f"recall.options.{route}.loss: {loss!r} is unknown; it is one of {', '.join(get_args(Name))}")


def _deal(user: Tensor, item: Tensor, item_id: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of the rows' own items (B,) and of the m dealt to each row (m, B), and which of these are hits."""
    with torch.autocast(user.device.type, enabled=False):
        user, item = user.float() / temperature, item.float()
        own = (user * item[: len(user)]).sum(dim=1)
        dealt = (user * item[len(user) :].view(-1, *user.shape)).sum(dim=2)
    return own, dealt, item_id[len(user) :].view(-1, len(user)) == item_id[: len(user)]
