"""A1: layered experiments. A salted hash of the user puts everyone into one of 10 000 buckets of every layer.

Layers have salts of their own, so they split the users independently and many experiments run at once on all of them
(Tang et al., "Overlapping Experiment Infrastructure: More, Better, Faster Experimentation", KDD 2010).

A layer's last buckets are its hold-back, which no arm ever gets. The others, open to arms, are cut into equal parts,
one for two arms: the first takes its share from the part's beginning, the second from its end, and what is left is the
control. So an arm whose share is raised keeps its users and takes new ones from the control alone, never from another
arm. Packed one after another, arms would push each other on. Another arm, or another hold-back, is another experiment
and wants a new salt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import xxhash

from pipeline.config import Arm, Layer
from pipeline.lake import InputError

BUCKETS = 10_000
CONTROL, HELD_BACK = "control", "held_back"


def bucket(salt: str, user: str) -> int:
    """The user's bucket in the layer with this salt, 0 … 9999; the same on every machine and in every run."""
    return xxhash.xxh3_64_intdigest(f"{salt}:{user}".encode()) % BUCKETS


def assign(layers: Sequence[Layer], user: str) -> dict[str, str]:
    """The user's arm in each layer, by the layer's name: an arm's name, "control" or "held_back"."""
    return {layer.name: _arm(layer, bucket(layer.salt, user)) for layer in layers}


def parameters(layers: Sequence[Layer], arms: Mapping[str, str]) -> dict[str, Any]:
    """What the arms that `assign` gave change, by parameter; control and hold-back change nothing."""
    given = [arm for layer in layers for arm in layer.arms if arm.name == arms.get(layer.name)]
    return {name: value for arm in given for name, value in arm.parameters.items()}


def check(layers: Sequence[Layer]) -> None:
    """Raise InputError where layers are not independent or arms do not fit.

    That is: two layers of one name or one salt, a parameter that two layers change, two arms of one name in a layer,
    an arm named "control" or "held_back", and shares beyond what is open to all arms or to the two of a part.
    """
    _unique([layer.name for layer in layers], "layers: two are named {!r}; rename one")
    _unique([layer.salt for layer in layers], "layers: two have the salt {!r} and so split users alike; change one")
    changed = [name for layer in layers for name in dict.fromkeys(chain(*(arm.parameters for arm in layer.arms)))]
    _unique(changed, "layers: two change {!r}; move their arms into one layer")
    for layer in layers:
        names = [CONTROL, HELD_BACK, *(arm.name for arm in layer.arms)]
        _unique(names, f"layer {layer.name}: the name {{!r}} is taken; rename an arm")
        _check_room(layer.arms, _open(layer), f"layer {layer.name}: beside a hold-back of {layer.hold_back:g}")
        for arms, begin, end in _parts(layer):
            _check_room(arms, end - begin, f"layer {layer.name}: of {len(layer.arms)} arms, so that each can grow")


def _arm(layer: Layer, number: int) -> str:
    if number >= _open(layer):
        return HELD_BACK
    for arms, begin, end in _parts(layer):
        for arm, distance in zip(arms, (number - begin, end - 1 - number), strict=False):
            if 0 <= distance < _size(arm):
                return arm.name
    return CONTROL


def _open(layer: Layer) -> int:
    return BUCKETS - round(layer.hold_back * BUCKETS)


def _size(arm: Arm) -> int:
    return round(arm.share * BUCKETS)


def _parts(layer: Layer) -> list[tuple[tuple[Arm, ...], int, int]]:
    """The one or two arms of each part, its first bucket and the one after its last."""
    pairs = [layer.arms[place : place + 2] for place in range(0, len(layer.arms), 2)]
    edges = [_open(layer) * part // max(1, len(pairs)) for part in range(len(pairs) + 1)]
    return list(zip(pairs, edges, edges[1:], strict=False))


def _check_room(arms: Sequence[Arm], room: int, where: str) -> None:
    if sum(map(_size, arms)) > room:
        names, total, most = ", ".join(arm.name for arm in arms), sum(arm.share for arm in arms), room / BUCKETS
        raise InputError(f"{where}, {names} may have {most:g} of the users together, not {total:g}; lower a share")


def _unique(names: Sequence[str], message: str) -> None:
    """Raise InputError with the message about the first name that comes twice."""
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(message.format(name))
