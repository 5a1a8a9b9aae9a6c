"""What the service is asked, told and answers, as its clients write it: the typed bodies of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_EVENTS = 1_000
MOST_ITEMS = 200

Identifier = Annotated[str, Field(min_length=1, max_length=200)]
Value = Annotated[str, Field(max_length=200)] | float | None


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Ask(Message):
    """A request for `k` items for a user in a domain; `context` gives values of the log's context columns."""

    user: Identifier
    domain: Identifier
    k: Annotated[int, Field(ge=1, le=MOST_ITEMS)] = 20
    context: Annotated[dict[Identifier, Value], Field(max_length=50)] = {}
    beside: Annotated[bool, Field(description="Answer by the bundle that stands beside the one in service.")] = False


class Event(Message):
    """What a user did with an item: an impression with what happened, or (`shown` = false) an engagement alone.

    `labels` are tasks by name, 1 where they happened, or a duration's seconds. Without a `time` it is now.
    """

    user: Identifier
    item: Identifier
    domain: Identifier
    time: datetime | None = None
    shown: bool = True
    labels: Annotated[dict[Identifier, Annotated[float, Field(ge=0)]], Field(max_length=50)] = {}
    context: Annotated[dict[Identifier, Value], Field(max_length=50)] = {}
    request: Annotated[Identifier | None, Field(description="The answer that the item was shown by.")] = None


class Feedback(Message):
    events: Annotated[list[Event], Field(min_length=1, max_length=MOST_EVENTS)]


class Withdrawal(Message):
    """Items that may no longer be shown."""

    items: Annotated[list[Identifier], Field(min_length=1, max_length=MOST_EVENTS)]


class Listed(BaseModel):
    """An item of the list: the route that gave it, its score and its scores by task, null without fine ranking."""

    item: str
    rank: int
    score: float | None
    route: str
    scores: dict[str, float] | None


class Recommendation(BaseModel):
    """The list, best first; `degraded` names stages that were left out, `arms` the user's experiments, `worker` is the
    number of the one that answered."""

    request: str
    bundle: str
    user: str
    domain: str
    known_user: bool
    time: datetime
    items: list[Listed]
    degraded: list[str]
    arms: dict[str, str]
    ms: dict[str, float]
    worker: int


class Accepted(BaseModel):
    """How many events, or withdrawn items, are on the disk and count from now on."""

    accepted: int


class Problem(BaseModel):
    """What went wrong, in plain words, and in which field."""

    error: str
    field: str | None = None
