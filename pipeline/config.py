"""The configuration of a run: frozen dataclasses, read from TOML, overridden by dotted assignments.

The defaults are the small run. Unknown keys, wrong types and misspelt hyper-parameters of a model are reported in
the first second, before any work is done.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from models import RANKERS
from models.schema import Encoding
from pipeline.lake import InputError

STRICT = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]

T = TypeVar("T")


@dataclass(frozen=True, config=STRICT)
class Market:
    """The constants of the simulated market: sizes, weights of the click logit, and the old policy.

    They are set so that models of different worth differ. At a million impressions of 100 000 users and 20 000 items
    the oracle's click AUC is .808 and an item's click rate so far reaches .56; the zoo tells what rankers reach.
    `drifting` is the share of users whose first interest gives way to another during the log, `passing` that
    interest's strength, `task_affinity` the weight of an affinity of segment and category that each task has of its
    own, the same in all domains, `rank` the rank of all affinities, `follows` how many authors a user follows at most,
    `newcomers` the share of users without a history.
    """

    categories: PositiveInt = 24
    segments: PositiveInt = 8
    tags: PositiveInt = 200
    grid: PositiveInt = 8
    content: PositiveInt = 16
    rank: PositiveInt = 2
    items_per_author: PositiveInt = 20
    follows: PositiveInt = 6

    base: float = -2.35
    interest: float = 1.1
    affinity: float = 1.05
    bias: float = 0.45
    appeal: float = 0.3
    eagerness: float = 0.3
    quality: float = 0.25
    freshness: float = 0.5
    taste: float = 0.4
    place: float = 0.4
    user_bias: float = 0.05
    position: float = 0.25
    decay_days: PositiveFloat = 4.0
    task_affinity: float = 0.0

    past_days: Annotated[float, Field(gt=0, lt=1_000)] = 120.0
    history_days: PositiveFloat = 40.0
    drifting: Share = 0.25
    passing: NonNegativeFloat = 0.6
    random_sessions: Share = 0.03
    policy_interest: Share = 0.5
    history_interest: Share = 0.85
    policy_fresh: Share = 0.15
    policy_quality: float = 0.55
    conversion_hours: PositiveFloat = 6.0
    newcomers: Share = 0.05

    def __post_init__(self) -> None:
        if self.history_days >= self.past_days:
            raise ValueError("source.market.history_days: must be less than past_days, the age of the oldest items")


@dataclass(frozen=True, config=STRICT)
class Simulator:
    """The market with known truth; see `pipeline.sources.simulator`."""

    kind: Literal["simulator"] = "simulator"
    users: PositiveInt = 4_000
    items: PositiveInt = 2_000
    impressions: PositiveInt = 60_000
    domains: PositiveInt = 5
    days: PositiveInt = 14
    seed: NonNegativeInt = 0
    market: Market = Market()


@dataclass(frozen=True, config=STRICT)
class KuaiRand:
    """The official release of KuaiRand-Pure, whole or in part; `$REC_DATA` may stand in the folder's name."""

    kind: Literal["kuairand"] = "kuairand"
    folder: str = "$REC_DATA/kuairand-pure"
    minimum_domain_share: float = 0.005


@dataclass(frozen=True, config=STRICT)
class Table:
    """A Parquet or CSV file (or a glob of them) and, for each column of the contract, the column that plays it."""

    path: str
    columns: dict[str, str]


@dataclass(frozen=True, config=STRICT)
class MappedLog:
    """Any log, described by TOML alone."""

    events: Table
    kind: Literal["mapped"] = "mapped"
    items: Table | None = None
    users: Table | None = None
    history: Table | None = None
    time_unit: Literal["s", "ms", "us", "iso"] = "s"
    time_zone: str = "UTC"


Source = Annotated[Simulator | KuaiRand | MappedLog, Discriminator("kind")]


@dataclass(frozen=True, config=STRICT)
class Contract:
    """What the log holds: binary label columns in the order of the user's path, columns that say how long something
    was watched, each with its unit, and how many bad rows are too many."""

    tasks: tuple[str, ...] = ("click", "long_view", "like", "convert")
    durations: dict[str, Literal["s", "ms"]] = field(default_factory=dict)
    positive: str = "click"
    maximum_rejected: float = 0.05

    def __post_init__(self) -> None:
        if self.positive not in self.tasks:
            raise ValueError(f"positive {self.positive!r} is not among the tasks {', '.join(self.tasks)}")


@dataclass(frozen=True, config=STRICT)
class Split:
    """Lengths of the last two slices, counted back from the log's end."""

    validation_days: PositiveFloat = 1.0
    test_days: PositiveFloat = 1.0


Length = Annotated[int, Field(gt=0, le=5_000)]
MATCHED = ("item", "author_id", "category", "tag", "content")


@dataclass(frozen=True, config=STRICT)
class Crosses:
    """F10: pairs of columns that become fields: those listed as `pairs`, such as "gender*category", and of all pairs of
    `columns` the `keep` that tell the most of `contract.positive` beyond their parts."""

    pairs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    keep: PositiveInt = 8


@dataclass(frozen=True, config=STRICT)
class Features:
    """Which columns become which features.

    `user`, `item`, `context`: categorical columns of the three tables (ids are always among them).
    `numbers`: column → encoding, for numeric columns of users and items.
    `statistics`: what events are counted by; "user+category" counts pairs.
    `rates`: tasks whose rate is kept besides the number of impressions.
    `matches`: what a candidate is compared by with the events of a history, of those that the items have.
    `behaviours`: sequence name → the task whose positives make it; the last `length` of them, or as many as `lengths`
    says, such as `{ clicked = 5000 }` for SIM.
    `parts`: into how many parts the users fall for what is computed user by user; more take less memory.
    `engine`, `address`: where that is computed, here or on the Ray cluster at the address ("" starts one here).
    `workers`: how many of these jobs run at once here, each with a part or a few days in memory; 0 for one a core.
    """

    user: tuple[str, ...] = ("segment", "gender", "age", "place")
    item: tuple[str, ...] = ("author_id", "category", "tag")
    context: tuple[str, ...] = ("hour",)
    numbers: dict[str, Literal["log1p", "cdf", "bucket"]] = field(default_factory=dict)
    statistics: tuple[str, ...] = ("user", "item", "author_id", "category", "domain", "user+category", "item+domain")
    windows: tuple[str, ...] = ("1h", "1d", "7d", "all")
    rates: tuple[str, ...] = ("click", "like")
    matches: tuple[str, ...] = MATCHED
    behaviours: dict[str, str] = field(default_factory=lambda: {"clicked": "click", "liked": "like"})
    length: Length = 20
    lengths: dict[str, Length] = field(default_factory=dict)
    admit_after: PositiveInt = 20
    evict_days: PositiveFloat = 30.0
    buckets: PositiveInt = 32
    crosses: Crosses = Crosses()
    parts: PositiveInt = 1
    engine: Literal["local", "ray"] = "local"
    address: str = ""
    workers: NonNegativeInt = 0

    def __post_init__(self) -> None:
        known = (*MATCHED, *self.item)
        for name in self.matches:
            if name not in known:
                raise ValueError(f"matches: {name!r} is no column of features.item; there are {', '.join(known)}")


@dataclass(frozen=True, config=STRICT)
class Recall:
    """Routes in order of priority, how many items each gives, and how many the merge keeps.

    `quota`: route → how many of its items go into the merge before the others have no more; "auto" has them chosen on
    the validation slice.
    `options`: route → keywords of its own functions `train` and `fit`, such as `{ hot = { half_life_days = 1.0 } }`.
    """

    routes: tuple[str, ...] = ("two_tower", "item_cf", "hot", "fresh")
    per_route: PositiveInt = 200
    quota: Literal["auto"] | dict[str, NonNegativeInt] = field(default_factory=dict)
    merged: PositiveInt = 400
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    exposure_days: PositiveFloat = 7.0
    exposure_error: PositiveFloat = 0.001


@dataclass(frozen=True, config=STRICT)
class Coarse:
    """C1 and C2: the coarse ranker keeps `keep` of the merged candidates."""

    keep: PositiveInt = 150
    width: PositiveInt = 32
    epochs: PositiveInt = 4
    batch_size: PositiveInt = 8192
    learning_rate: PositiveFloat = 0.003


@dataclass(frozen=True, config=STRICT)
class Loss:
    """What the fine ranker minimises besides cross-entropy on every impression of the log; all of it is off by default.

    `ranking`: within what a pairwise loss is added, `ranking_weight` times.
    `negative_rate`: the share of negative labels that is trained on; probabilities are corrected for it.
    `repeat_weight`: how much more an item shown again to its user within a day counts, by the logarithm of how often.
    `watch_time`: the duration of `contract.durations` that is one more output, the expected seconds.
    `delay`: tasks whose positives arrive late, at `<task>_time`, so that a negative may be a positive to come.
    `delay_variance`: a row waits until a label over the share known of it varies by no more than that (relative).
    """

    ranking: Literal["none", "user", "domain"] = "none"
    ranking_weight: NonNegativeFloat = 1.0
    negative_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    repeat_weight: NonNegativeFloat = 0.0
    watch_time: str = ""
    delay: tuple[str, ...] = ()
    delay_variance: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        if self.delay and self.repeat_weight:
            raise ValueError("delay needs rows that count alike; leave repeat_weight at 0")
        if self.watch_time and self.negative_rate < 1:
            raise ValueError("watch_time needs every impression; leave negative_rate at 1")


@dataclass(frozen=True, config=STRICT)
class Fine:
    """The fine ranker: `model` is a key of `models.RANKERS`, `options` its own keywords, `encodings` the numbers and
    content that it sees as integers too, such as `[{number = "clicked_content_similarity", low = -1.0}]`.

    `table_optimiser`: what trains the embeddings of the fused tables; Adagrad does so at `table_learning_rate`.
    `processes`: how many train the funnel's ranker together, each a part of every batch and of the fused tables.
    """

    model: str = "pepnet"
    options: dict[str, Any] = field(default_factory=dict)
    encodings: tuple[Encoding, ...] = ()
    keep: PositiveInt = 50
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 0.003
    weight_decay: float = 1e-5
    embedding_decay: float = 0.0
    table_optimiser: Literal["adamw", "adagrad"] = "adamw"
    table_learning_rate: PositiveFloat = 0.05
    patience: PositiveInt = 1
    candidates: NonNegativeInt = 60
    candidate_requests: PositiveInt = 6_000
    trials: PositiveInt = 30
    processes: PositiveInt = 1
    loss: Loss = Loss()

    def __post_init__(self) -> None:
        if self.model not in RANKERS:
            raise ValueError(f"model {self.model!r} is unknown; it is one of {', '.join(sorted(RANKERS))}")
        known = inspect.signature(RANKERS[self.model]).parameters
        for option in self.options:
            if option not in known or option == "schema":
                raise ValueError(f"{self.model} has no option {option!r}; it has {', '.join(list(known)[1:])}")


@dataclass(frozen=True, config=STRICT)
class Refresh:
    """How `recfunnel refresh` trains the fine ranker and the two-tower on the rows since the champion: few rows want
    small batches and short steps. `resamples` is the bootstrap's of the gate."""

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 0.001
    resamples: PositiveInt = 1_000


@dataclass(frozen=True, config=STRICT)
class Space:
    """A range to search, evenly or by the logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low = {self.low}, high = {self.high}: low must not exceed high, nor a log range reach 0")


@dataclass(frozen=True, config=STRICT)
class Choice:
    """Values to choose among, such as `{ values = [[64], [128, 64]] }`."""

    values: Annotated[tuple[Any, ...], Field(min_length=1)]


Search = dict[str, Space | Choice]
"""Settings of `[fine]` by name, such as "learning_rate", "loss.ranking_weight" or "options.dropout"."""


def check_search(search: Search) -> None:
    """Raise ValueError for a name that is no setting of `[fine]`, and for a range of one that is no number."""
    settings = Fine()
    known = {**vars(settings), **{f"loss.{name}": value for name, value in vars(settings.loss).items()}}
    for name in ("model", "options", "encodings", "loss"):
        del known[name]
    for name, space in search.items():
        if name.startswith("options."):
            continue
        if name not in known:
            raise ValueError(f"{name!r} cannot be searched; there are {', '.join(known)} and options.…")
        if isinstance(space, Space) and isinstance(known[name], str):
            raise ValueError(f"{name!r} is no number; give {{ values = […] }}")


@dataclass(frozen=True, config=STRICT)
class Tune:
    """What `recfunnel tune` does: so many trials over `search`, by the AUC of `contract.positive` on the validation
    slice. The first `unpruned` of them are trained to their end; later ones are given up after an epoch in which they
    are behind the median of the others."""

    trials: PositiveInt = 20
    unpruned: NonNegativeInt = 5
    search: Search = field(
        default_factory=lambda: {
            "learning_rate": Space(0.0005, 0.02, log=True),
            "embedding_decay": Space(0.01, 30.0, log=True),
            "batch_size": Choice((256, 512, 1024, 2048)),
        }
    )

    def __post_init__(self) -> None:
        check_search(self.search)


@dataclass(frozen=True, config=STRICT)
class Zoo:
    """The rankers' contest: for each, so many trials over `search`, whose options are those of the rankers that have
    them; then so many seeds."""

    trials: NonNegativeInt = 4
    seeds: PositiveInt = 3
    search: Search = field(
        default_factory=lambda: {
            "learning_rate": Space(0.001, 0.01, log=True),
            "embedding_decay": Space(0.01, 30.0, log=True),
            "options.dropout": Space(0.0, 0.3),
        }
    )

    def __post_init__(self) -> None:
        check_search(self.search)


@dataclass(frozen=True, config=STRICT)
class Quality:
    """What of a day's data warns and, where a stop is set, ends the run; none of it counts what chance explains.

    `psi`: a feature's population stability index against the training rows.
    `unknown`: by how much the share of its null or unknown values is above theirs.
    `vanished`: the share of the training rows whose values a day does not have at all.
    `rate`: by what part of it a label's rate differs from theirs.
    """

    warn_psi: PositiveFloat = 0.25
    warn_unknown: PositiveFloat = 0.1
    warn_vanished: PositiveFloat = 0.05
    warn_rate: PositiveFloat = 0.5
    stop_psi: PositiveFloat | None = None
    stop_unknown: PositiveFloat | None = None
    stop_vanished: PositiveFloat | None = None
    stop_rate: PositiveFloat | None = None


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """How many requests of the test slice are replayed, the cut-offs, and the bootstrap."""

    requests: PositiveInt = 2_000
    cutoffs: tuple[PositiveInt, ...] = (10, 20, 50)
    resamples: PositiveInt = 1_000


@dataclass(frozen=True, config=STRICT)
class Machines:
    """Where `fine.processes` run: evenly on so many hosts, which see the same files and meet at an address of this one,
    such as "10.0.0.1:29400"."""

    hosts: PositiveInt = 1
    rendezvous: str = ""

    def __post_init__(self) -> None:
        if self.hosts > 1 and not self.rendezvous:
            raise ValueError("rendezvous: several hosts need an address of this one to meet at, such as 10.0.0.1:29400")


@dataclass(frozen=True, config=STRICT)
class Arm:
    """A treatment of so large a share of the users, and what of `Serve.parameters` it changes."""

    name: str
    share: Share
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Layer:
    """An experiment's users, drawn by `salt` independently of other layers: `arms`, and the share `hold_back` that no
    arm ever gets; the rest is the control."""

    name: str
    salt: str
    arms: tuple[Arm, ...]
    hold_back: Share = 0.0


@dataclass(frozen=True, config=STRICT)
class Serve:
    """How `recfunnel serve` answers.

    `clock`: what is now, by the "wall" or as if the "log" had ended when the service began.
    `processes`: how many engines answer, each in a process of its own; a single one in a thread of the service.
    `threads`: how many routes are asked, and parts of the candidates ranked, at once; more pay where there are cores to
    spare.
    `deadlines`: after how many milliseconds a stage that is not ready is left out.
    `together`: how many waiting requests are answered at once; `queue`: how many may wait.
    `diversity`: how the list is re-ranked by content, and `diversity_weight`, how much that counts against the score.
    `explore`: whether scores are drawn from their posterior (Thompson sampling).
    `live_users`: of how many users events since the bundle are kept for features; `traces`: how many answers can be
    explained; `keep_days`: how long events stay in the buffer after they were written for training.
    `rate`: how often one client may ask; `body`: how many bytes a body may have.
    `beside`: whether the bundle before is loaded too, to be compared. `layers`: experiments.
    """

    clock: Literal["log", "wall"] = "log"
    processes: PositiveInt = 1
    threads: PositiveInt = 1
    deadlines: dict[Literal["routes", "coarse", "fine", "final"], PositiveFloat] = field(
        default_factory=lambda: {"routes": 100.0, "coarse": 100.0, "fine": 200.0, "final": 50.0}
    )
    together: PositiveInt = 8
    queue: PositiveInt = 256
    diversity: Literal["none", "mmr", "dpp"] = "none"
    diversity_weight: Share = 0.2
    explore: bool = False
    live_users: PositiveInt = 20_000
    traces: PositiveInt = 500
    keep_days: PositiveFloat = 7.0
    rate: str = "1000/second"
    body: PositiveInt = 1 << 20
    beside: bool = False
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Config:
    """A complete named run."""

    name: str = "small"
    seed: NonNegativeInt = 0
    folder: str = "data"
    source: Source = Simulator()
    contract: Contract = Contract()
    split: Split = Split()
    features: Features = Features()
    quality: Quality = Quality()
    recall: Recall = Recall()
    coarse: Coarse = Coarse()
    fine: Fine = Fine()
    machines: Machines = Machines()
    refresh: Refresh = Refresh()
    tune: Tune = Tune()
    zoo: Zoo = Zoo()
    evaluation: Evaluation = Evaluation()
    serve: Serve = Serve()

    def __post_init__(self) -> None:
        watched, durations = self.fine.loss.watch_time, self.contract.durations
        if watched and watched not in durations:
            raise ValueError(
                f"fine.loss.watch_time: {watched!r} is not in contract.durations ({', '.join(durations) or 'none'})"
            )
        if self.fine.processes % self.machines.hosts:
            raise ValueError(
                f"fine.processes: {self.fine.processes} do not fall evenly on {self.machines.hosts} machines.hosts"
            )
        if unknown := [task for task in self.fine.loss.delay if task not in self.contract.tasks]:
            raise ValueError(f"fine.loss.delay: {unknown[0]!r} is no task ({', '.join(self.contract.tasks)})")
        if both := [name for name in durations if name in self.contract.tasks]:
            raise ValueError(f"contract.durations: {both[0]!r} is a task already; a duration is no 0/1 label")

    @property
    def root(self) -> Path:
        """The folder this run's artefacts lie in."""
        return Path(self.folder) / self.name

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a TOML file (the defaults when there is none), with overrides such as `fine.model="star"`.

    Raises `InputError` naming the file, the key and what was expected.
    """
    name = str(path) if path else "the defaults"
    try:
        raw = tomllib.loads(path.read_text()) if path else {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration; see flows/configs/") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _assign(raw, override)
    raw.setdefault("source", {}).setdefault("kind", "simulator")
    return _validated(Config, raw, name)


def changed(serve: Serve, overrides: Sequence[str]) -> Serve:
    """The settings with overrides such as `diversity="mmr"`. Raises `InputError` as `load` does."""
    raw = asdict(serve)
    for override in overrides:
        _assign(raw, override)
    return _validated(Serve, raw, "serve")


def _validated(kind: type[T], raw: dict[str, Any], name: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']} (got {one['input']!r})" for one in error.errors()]
        raise InputError("\n".join([f"{name}: {len(lines)} mistake(s) in the configuration", *lines])) from None


def _assign(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise InputError(f'{override!r} is not an assignment; write key=value, such as fine.model="star"')
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *path, last = key.strip().split(".")
    for part in path:
        raw = raw.setdefault(part, {})
    raw[last] = parsed
