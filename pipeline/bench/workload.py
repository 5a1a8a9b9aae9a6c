"""The speed workload: impressions of 20 categorical and 6 numeric columns with histories of up to 50 events, two labels
with a planted signal and five domains, as files that our rankers and their peers read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.schema import Field, Number, Role, Schema, Sequence
from pipeline.features.store import FeatureStore, Recipe, Rows, read_columns
from pipeline.parquet import read_parquet

Array = npt.NDArray[Any]

DAY = 86_400_000_000
DAYS, BEFORE = 30, 60
LENGTH, GAPS = 50, 16
CLUSTERS, FACTORS = 200, 8
NUMBERS = ("price", "user_rate", "item_rate", "age", "distance", "noise")
ATTRIBUTES: dict[Role, dict[str, int]] = {
    "user": {"gender": 2, "age_group": 8, "city": 300, "job": 20, "device": 50},
    "item": {"category": 1_000, "brand": 10_000, "seller": 20_000, "tag": 5_000, "level": 10},
    "context": {
        "domain": 5, "hour": 24, "weekday": 7, "place": 20, "net": 4, "version": 100, "ad": 2_000, "word": 50_000
    },
}  # fmt: skip
LABELS = ("click", "conversion")
DOMAINS = tuple(f"domain_{number}" for number in range(ATTRIBUTES["context"]["domain"]))
TRAIN, TEST, POSITIVES = "train.parquet", "test.parquet", "positives.parquet"


def write(folder: Path, *, rows: int, seed: int) -> None:
    """Draw a log of 4 `rows` impressions by rows / 5 users of rows / 10 items. Of the first 85 % of its time `rows` are
    to be trained on, shuffled, and all clicks by the two towers; of the rest a fifth as many are the test.

    A file has for every categorical column its codes from 1, and besides `history`, the user's last items before the
    row, filled with 0 to `LENGTH`, for those that read no pointers: `clicked.parquet` holds the events by user and
    time, and those of a row are the `length` before `end`.
    """
    random = np.random.default_rng(seed)
    impressions, users, items = 4 * rows, max(rows // 5, 50), max(rows // 10, 2 * CLUSTERS)
    counts: dict[Role, int] = {"user": users, "item": items, "context": impressions}
    tables = {
        role: {name: _zipf(random, size, counts[role]) for name, size in named.items()}
        for role, named in ATTRIBUTES.items()
    }
    cluster = tables["item"]["category"] % CLUSTERS
    by_cluster = np.argsort(cluster, kind="stable")
    begin = np.searchsorted(cluster[by_cluster], np.arange(CLUSTERS + 1))
    tastes = random.integers(0, CLUSTERS, (users, 3))

    def liked(user: Array) -> Array:
        """An item of one of each user's clusters, more often one of its first."""
        one = tastes[user, random.integers(0, 3, len(user))]
        place = random.random(len(user)) ** 2 * (begin[one + 1] - begin[one])
        return by_cluster[np.minimum(begin[one] + place.astype(np.int64), items - 1)]

    time = np.sort(random.integers(0, DAYS * DAY, impressions))
    user = _zipf(random, users, impressions, 0.6)
    item = random.permutation(items)[_zipf(random, items, impressions, 0.9)]
    item = np.where(random.random(impressions) < 0.5, liked(user), item)
    context = {**tables["context"], "hour": time // (DAY // 24) % 24, "weekday": time // DAY % 7}
    codes = {"user_id": user, "item_id": item}
    for owner, role in ((user, "user"), (item, "item")):
        codes |= {name: values[owner] for name, values in tables[role].items()}  # type: ignore[index]
    codes |= context
    matching = (tastes[user] == cluster[item][:, None]).any(axis=1)
    numbers, click, conversion = _signal(random, codes, matching)

    earlier = np.repeat(np.arange(users), np.minimum(3 + random.geometric(1 / 22, users), 60))
    events = {
        "user": np.concatenate([earlier, user[click]]),
        "item": np.concatenate([liked(earlier), item[click]]),
        "time": np.concatenate([-1 - random.integers(0, BEFORE * DAY, len(earlier)), time[click]]),
    }
    order = np.lexsort((events["time"], events["user"]))
    events = {name: values[order] for name, values in events.items()}
    key = events["user"] * (2 * BEFORE * DAY) + events["time"] + BEFORE * DAY
    end = np.searchsorted(key, user * (2 * BEFORE * DAY) + time + BEFORE * DAY)
    length = np.minimum(end - np.searchsorted(events["user"], user), LENGTH)

    past = int(0.85 * impressions)
    chosen = {
        TRAIN: random.permutation(past)[:rows],
        TEST: past + np.sort(random.permutation(impressions - past)[: rows // 5]),
        POSITIVES: random.permutation(np.flatnonzero(click[:past])),
    }
    for name, index in chosen.items():
        columns = {column: (values[index] + 1).astype(np.int32) for column, values in codes.items()}
        columns |= {column: values[index].astype(np.float32) for column, values in numbers.items()}
        columns |= {"time": time[index], "end": end[index], "length": length[index].astype(np.int32)}
        columns |= {"click": click[index].astype(np.int8), "conversion": conversion[index].astype(np.int8)}
        event = end[index, None] - length[index, None] + np.arange(LENGTH)
        history = np.where(event < end[index, None], events["item"][np.minimum(event, len(key) - 1)] + 1, 0)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(history.astype(np.int32).ravel()), LENGTH)
        pq.write_table(pa.table({**columns, "history": lists}), folder / name, row_group_size=1 << 16)
    for role in ("user", "item"):
        table = {f"{role}_id": np.arange(counts[role]), **tables[role]}  # type: ignore[index]
        coded = {f"code_{name}": np.concatenate([[0], values + 1]) for name, values in table.items()}
        pq.write_table(pa.table(coded), folder / f"{role}s.parquet")
    pq.write_table(
        pa.table({**events, "user": events["user"] + 1, "item": events["item"] + 1}), folder / "clicked.parquet"
    )


def open_store(folder: Path, *, history: bool, labels: tuple[str, ...]) -> FeatureStore:
    """The files as a feature store without statistics."""
    users, items = (read_columns(folder / f"{role}s.parquet") for role in ("user", "item"))
    fields = [
        Field("user_id", len(users["code_user_id"]), "user"),
        Field("item_id", len(items["code_item_id"]), "item"),
    ]
    fields += [Field(name, size + 1, role) for role, named in ATTRIBUTES.items() for name, size in named.items()]
    sequences = (Sequence("clicked", ("item_id",), LENGTH, GAPS),) if history else ()
    schema = Schema(tuple(fields), tuple(Number(name, "cross") for name in NUMBERS), sequences, labels, DOMAINS)
    return FeatureStore(
        folder=folder,
        schema=schema,
        slices={},
        recipe=Recipe((), (), (), (), False, {"clicked": LENGTH}, {}),
        users=users,
        items=items,
        behaviours={"clicked": read_columns(folder / "clicked.parquet")} if history else {},
        events={},
    )


def read_rows(store: FeatureStore, name: str) -> Rows:
    """The rows of a file."""
    schema = store.schema
    context = [schema.fields[place].name for place in schema.positions("context")]
    pointers = ["time", "end", "length"] if schema.sequences else []
    names = ["user_id", "item_id", *context, *NUMBERS, *schema.labels, *pointers]
    table = read_parquet(store.folder / name, names)
    columns = {one: np.array(table[one].to_numpy()) for one in names}
    return Rows(
        user=columns["user_id"],
        item=columns["item_id"],
        domain=(columns["domain"] - 1).astype(np.int16),
        time=columns.get("time", np.zeros(len(table), np.int64)),
        context=np.stack([columns[one] for one in context], axis=1),
        numbers=np.stack([columns[one] for one in NUMBERS], axis=1),
        ends={sequence.name: columns["end"] for sequence in schema.sequences},
        lengths={sequence.name: columns["length"] for sequence in schema.sequences},
        labels=np.stack([columns[one] for one in schema.labels], axis=1).astype(np.float32),
        durations=np.empty((len(table), 0), np.float32),
    )


def _zipf(random: np.random.Generator, size: int, count: int, exponent: float = 1.05) -> Array:
    """Numbers below `size`, of which k has a share ∝ (k + 2)^−exponent."""
    share = np.cumsum((np.arange(size) + 2.0) ** -exponent)
    return np.asarray(np.minimum(np.searchsorted(share, random.random(count) * share[-1]), size - 1))


def _signal(
    random: np.random.Generator, codes: dict[str, Array], matching: Array
) -> tuple[dict[str, Array], Array, Array]:
    """The numbers, and whether a row was clicked and converted: by ids, the attributes' own effects, those of three
    pairs of them, taste, and the numbers."""
    user, item = codes["user_id"], codes["item_id"]
    users, items, rows = user.max() + 1, item.max() + 1, len(user)
    of_user, of_item = random.normal(0, 0.4, users), random.normal(0, 0.5, items)
    price, distance = random.normal(3, 1, items)[item], random.exponential(1, rows)
    numbers = {
        "price": price,
        "user_rate": of_user[user] + random.normal(0, 0.5, rows),
        "item_rate": of_item[item] + random.normal(0, 0.5, rows),
        "age": random.exponential(1, items)[item],
        "distance": distance,
        "noise": random.normal(0, 1, rows),
    }
    affinity = (random.normal(0, 0.4, (users, FACTORS))[user] * random.normal(0, 0.4, (items, FACTORS))[item]).sum(
        axis=1
    )
    logit = -2.1 + 1.5 * matching + affinity + of_user[user] + of_item[item] - 0.15 * distance - 0.06 * price
    for named in ATTRIBUTES.values():
        for name, size in named.items():
            logit += random.normal(0, 0.15, size)[codes[name]]
    for one, other, deviation in (("domain", "place", 0.4), ("domain", "category", 0.5), ("gender", "category", 0.4)):
        sizes = codes[one].max() + 1, codes[other].max() + 1
        logit += random.normal(0, deviation, sizes)[codes[one], codes[other]]
    click = random.random(rows) < 1 / (1 + np.exp(-logit))
    wish = random.normal(0, 0.6, users)[user] + random.normal(0, 0.6, items)[item]
    wish += -1.6 + 0.7 * matching - 0.25 * (price - 3) + 0.5 * affinity
    wish += random.normal(0, 0.5, (len(DOMAINS), 10))[codes["domain"], codes["level"]]
    return numbers, click, click & (random.random(rows) < 1 / (1 + np.exp(-wish)))
