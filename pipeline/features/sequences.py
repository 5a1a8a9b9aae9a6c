"""F8: what a user did before a moment, as a pointer into one long table instead of a list in every row.

A behaviour (clicked, liked, …) is a table of events sorted by user and time. A row's history is the slice
[end - length, end) of it: the user's last events strictly before the row's own time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.features.timeline import Integers, Timeline

GAPS = 16
MINUTE = 60_000_000


def pointers(
    behaviour: Timeline, users: Integers, times: Integers, longest: int
) -> tuple[Integers, npt.NDArray[np.int32]]:
    """End (Q,) and length (Q,) of each user's last `longest` events before `times`.

    `behaviour` is the timeline of the behaviour's users and times, which are stored in the timeline's own order.
    """
    questions = behaviour.ask(users, times)
    ends = questions.before()
    lengths = np.minimum(ends - questions.first(), longest).astype(np.int32)
    return ends[questions.inverse], lengths[questions.inverse]


def gap_bucket(times: Integers, events: Integers) -> Integers:
    """min(15, ⌊log2(1 + minutes)⌋) of the time between an event and the row that looks back at it."""
    minutes = np.maximum(times - events, 0) / MINUTE
    buckets: Integers = np.minimum(np.log2(1 + minutes), GAPS - 1).astype(np.int64)
    return buckets
