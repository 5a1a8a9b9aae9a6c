"""Crosses of columns: what a pair tells beyond its parts, admission, and one definition wherever rows come from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import log

import numpy as np
import polars as pl
import pytest
from event_tables import CONTRACT, FEATURES, write_events
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schema import Field
from pipeline.config import Crosses, Split
from pipeline.features import crosses, identity
from pipeline.features.build import build
from pipeline.features.pairs import Pair
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking.batches import Encoder

FIELDS = {
    "gender": Field("gender", 3, "user"),
    "age": Field("age", 5, "user"),
    "category": Field("category", 7, "item"),
    "author": Field("author", 400, "item"),
    "hour": Field("hour", 25, "context"),
}
VALUES = crosses.values_of(FIELDS.values(), [], ())


def chosen(
    settings: Crosses,
    codes: dict[str, np.ndarray],
    labels: np.ndarray,
    *,
    users: np.ndarray | None = None,
    items: np.ndarray | None = None,
    times: np.ndarray | None = None,
    admit_after: int = 20,
    evict_before: int = 0,
) -> crosses.Crosses:
    """Of rows of users and items that are all different, unless `users` and `items` say whose they are."""
    numbers = np.arange(len(labels), dtype=np.int64)
    rows = pl.LazyFrame(
        {
            "user": numbers if users is None else users,
            "item": numbers if items is None else items,
            "time": numbers if times is None else times,
            "click": labels,
            **{f"code_{name}": column for name, column in codes.items()},
        }
    )
    fields = {name: FIELDS[name] for name in codes}
    return crosses.choose(rows, fields, VALUES, settings, "click", admit_after=admit_after, evict_before=evict_before)


def information(cells: np.ndarray, labels: np.ndarray) -> float:
    return crosses.information(np.bincount(cells), np.bincount(cells[labels > 0], minlength=len(np.bincount(cells))))


def judged(left: np.ndarray, right: np.ndarray, labels: np.ndarray, *groups: np.ndarray) -> tuple[float, float]:
    rows = pl.DataFrame({"left": left, "right": right, "label": labels.astype(np.int64)})

    def table(*by: str) -> pl.DataFrame:
        counted = named.group_by("left", "right", *by).agg(
            shown=pl.len().cast(pl.Int64), positive=pl.col("label").sum()
        )
        return counted.sort("left", "right", *by)

    named = rows.with_columns(pl.Series(f"group {place}", group) for place, group in enumerate(groups))
    return crosses.interaction(table(), {name: table(name) for name in named.columns[3:]})


def interaction(*columns: np.ndarray) -> float:
    return judged(*columns)[0]


def draw(random: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {name: random.integers(1, field.size, rows) for name, field in FIELDS.items()}


def test_information_on_paper():
    """Two cells that tell a fair label: log 2, less (2 − 1)(2 − 1) / 8. Cells that do not: nothing, less the same."""
    labels = np.array([0, 1, 0, 1])
    assert information(np.array([5, 2, 5, 2]), labels) == pytest.approx(log(2) - 1 / 8)
    assert information(np.array([0, 0, 1, 1]), labels) == pytest.approx(-1 / 8)
    assert information(np.array([1, 2, 3, 4]), np.ones(4, int)) == 0
    assert information(np.empty(0, int), np.empty(0, int)) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=60))
def test_information_against_a_loop(rows):
    cells, labels = map(Counter, zip(*rows, strict=True))
    plain = sum(k / len(rows) * log(k * len(rows) / (cells[c] * labels[y])) for (c, y), k in Counter(rows).items())
    bias = (len(cells) - 1) * (len(labels) - 1) / (2 * len(rows))
    assert information(*map(np.array, zip(*rows, strict=True))) == pytest.approx(plain - bias, abs=1e-12)


def test_without_the_correction_noise_would_look_informative():
    """The mean of many estimates for independent cells is 0, where the plain estimate's is the bias."""
    random = np.random.default_rng(0)
    found = [information(random.integers(0, 50, 2_000), random.integers(0, 2, 2_000)) for _ in range(200)]
    bias = 49 / 4_000
    assert abs(np.mean(found)) < 0.05 * bias


def test_interaction_on_paper():
    """Labels are 1 where the two parts are equal, which neither part tells: log 2, less 1 of 4 · 2 cells free."""
    left, right = np.array([1, 1, 2, 2] * 5), np.array([7, 8, 7, 8] * 5)
    labels = (left == 2) == (right == 8)
    assert interaction(left, right, labels.astype(int)) == pytest.approx(log(2) - 1 / 40)
    assert interaction(left, right, (left == 2).astype(int)) == pytest.approx(-1 / 40, abs=1e-4)
    assert interaction(left, right, np.zeros(20, int)) == 0


def test_no_interaction_is_left_of_what_a_logistic_regression_fits():
    """An independent twin: Newton's method on one-hot columns; its deviance and the saturated model's."""
    random = np.random.default_rng(4)
    left, right = random.integers(1, 4, 3_000), random.integers(1, 5, 3_000)
    labels = (random.random(3_000) < 1 / (1 + np.exp(left - 0.7 * right - 0.5 * left * right % 3))).astype(int)
    x = np.concatenate([np.eye(4)[left][:, 2:], np.eye(5)[right][:, 2:], np.ones((3_000, 1))], axis=1)
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]), x.T @ (labels - p))
    cells = left * 5 + right
    rate = (np.bincount(cells, labels) / np.maximum(np.bincount(cells), 1))[cells]
    saturated, additive = (np.where(labels, np.log(q), np.log(1 - q)).mean() for q in (rate, p))
    free = (12 - 3 - 4 + 1) / 6_000
    assert interaction(left, right, labels) == pytest.approx(saturated - additive - free, abs=1e-6)


def test_a_pair_that_only_tells_users_apart_has_little_interaction():
    """Users differ, the pair does not matter, and each of its 400 cells holds two users with 20 rows."""
    random = np.random.default_rng(5)
    user = np.repeat(np.arange(800), 20)
    left, right = (random.permutation(np.repeat(np.arange(20), 40))[user] for _ in range(2))
    labels = (random.random(len(user)) < random.beta(2, 2, 800)[user]).astype(int)
    naive, found = (interaction(left, right, labels, *groups) for groups in ([], [user]))
    assert naive > 0.02
    assert abs(found) < 0.25 * naive
    strangers = random.permutation(len(user))
    assert interaction(left, right, labels, strangers) == pytest.approx(naive, abs=1e-3)


@pytest.mark.parametrize("sample", [1 << 20, 4_000])
def test_likeness_is_measured_on_some_of_the_users(monkeypatch, sample):
    """The same world, of 16,000 rows: a quarter of the users tell it as well as all."""
    monkeypatch.setattr(crosses, "SAMPLE", sample)
    random = np.random.default_rng(5)
    user = np.repeat(np.arange(800), 20)
    codes = {name: 1 + random.permutation(np.repeat(np.arange(20), 40))[user] for name in ("hour", "author")}
    labels = (random.random(len(user)) < random.beta(2, 2, 800)[user]).astype(int)
    naive, found = (
        chosen(Crosses(pairs=("hour*author",)), codes, labels, users=users).judged["interaction"].item()
        for users in (None, user)
    )
    assert naive > 0.02
    assert abs(found) < 0.25 * naive


def noise(seed: int, rows: int = 6_000) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Five columns of which none matters, with users and items that differ: a few of either have most rows."""
    random = np.random.default_rng(seed)
    user, item = ((count * random.random(rows) ** 2).astype(int) for count in (400, 150))
    codes = {}
    for name, field in FIELDS.items():
        owner, size = {"user": (user, 400), "item": (item, 150), "context": (np.arange(rows), rows)}[field.role]
        codes[name] = random.integers(1, min(field.size, 30), size)[owner]
    logit = random.normal(0, 1, 400)[user] + random.normal(0, 1, 150)[item] - 2
    return codes, (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64), user, item


def test_noise_is_not_kept():
    """Of 100 pairs of 10 worlds none, though the interaction of many is above zero; the deviations are of size one."""
    tables = []
    for seed in range(10):
        codes, labels, user, item = noise(seed)
        found = chosen(Crosses(columns=tuple(codes), keep=20), codes, labels, users=user, items=item)
        assert not found.fields
        tables.append(found.judged)
    table = pl.concat(tables)
    assert (table["interaction"] > 0).mean() > 0.2
    assert abs(table["deviations"].mean()) < 0.6
    assert table["deviations"].std() < 1.5


def test_a_weak_interaction_among_noise_is_kept():
    for seed in range(5):
        codes, labels, user, item = noise(seed, rows=20_000)
        agree = (codes["gender"] == 1) == (codes["category"] > 3)
        random = np.random.default_rng(100 + seed)
        labels = np.where(random.random(len(labels)) < 0.1, agree, labels)
        found = chosen(Crosses(columns=tuple(codes), keep=20), codes, labels, users=user, items=item)
        assert [field.name for field in found.fields] == ["gender*category"]


def test_deviations_of_many_sparse_cells_are_those_of_a_normal_distribution():
    """A positive to a cell on average: the likelihood ratio would be half too great, Pearson's statistic is not."""
    random = np.random.default_rng(7)
    found = np.array(
        [
            judged(*random.integers(0, 40, (2, 30_000)), (random.random(30_000) < 0.05).astype(np.int64))
            for _ in range(40)
        ]
    )
    assert abs(found[:, 1].mean()) < 0.5
    assert 0.6 < found[:, 1].std() < 1.4
    assert (found[:, 0] > 0).mean() > 0.9


def test_deviations_on_paper():
    """2 × 2 cells of 100 rows, half of all positive: X² = 4 · 20² / 25 = 64 of one degree of freedom, and of these
    cells the variance is 2 + 1 / 25 - 6 / 100, that of 2 / 1.98 degrees: 3 (64 ^ ⅓ - 1) √(shape / 2) and a little."""
    left, right = np.repeat([1, 1, 2, 2], 100), np.repeat([1, 2, 1, 2], 100)
    labels = np.concatenate([np.arange(100) < count for count in (70, 30, 30, 70)]).astype(int)
    shape = 2 / 1.98
    assert judged(left, right, labels)[1] == pytest.approx((3 + 2 / (9 * shape)) * (9 * shape / 2) ** 0.5, rel=1e-3)
    assert judged(left, right, (np.arange(400) % 2))[1] < 0
    assert judged(left, right, (left == 2).astype(int))[1] == 0


def test_more_pairs_than_a_vocabulary_holds(monkeypatch):
    monkeypatch.setattr(identity, "MOST_DISTINCT", 1_000)
    codes = draw(np.random.default_rng(6), 20_000)
    with pytest.raises(InputError, match=r"column 'hour\*author' has about \d,\d{3} different values"):
        chosen(Crosses(pairs=("hour*author",)), codes, codes["gender"] % 2)
    assert chosen(Crosses(pairs=("hour*category",)), codes, codes["gender"] % 2).fields


def test_the_interacting_pair_is_chosen_not_the_strong_parts():
    """Gender and hour each matter much, gender with category together, authors have many cells and say nothing."""
    random = np.random.default_rng(1)
    codes = draw(random, 20_000)
    together = np.where((codes["gender"] == 1) == (codes["category"] > 3), 0.6, -0.6)
    logit = together + np.where(codes["gender"] == 1, 0.8, -0.8) + (codes["hour"] - 12) / 8
    labels = (random.random(20_000) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    found = chosen(Crosses(columns=tuple(codes), keep=1), codes, labels)
    assert [field.name for field in found.fields] == ["gender*category"]
    by_name = {row["field"]: row for row in found.judged.iter_rows(named=True)}
    assert len(by_name) == 10
    assert by_name["gender*hour"]["information"] > by_name["gender*category"]["information"]
    assert by_name["gender*hour"]["interaction"] < 0.1 * by_name["gender*category"]["interaction"]
    assert by_name["category*author"]["interaction"] < 0.1 * by_name["gender*category"]["interaction"]
    assert found.metrics()["vocabulary_gender_x_category"] == 13


def test_a_pair_without_interaction_is_not_kept_unless_it_is_listed():
    random = np.random.default_rng(2)
    codes = draw(random, 3_000)
    labels = (codes["gender"] == 1).astype(np.int64)
    assert not chosen(Crosses(columns=("gender", "age"), keep=3), codes, labels).fields
    listed = chosen(Crosses(pairs=("age*gender",), columns=("gender", "age"), keep=3), codes, labels)
    assert [field.name for field in listed.fields] == ["age*gender"]
    assert listed.judged.height == 1


def test_roles():
    codes = draw(np.random.default_rng(3), 500)
    pairs = ("gender*age", "author*category", "gender*category", "hour*gender")
    found = chosen(Crosses(pairs=pairs), codes, np.arange(500) % 2, admit_after=1)
    assert [field.role for field in found.fields] == ["user", "item", "cross", "cross"]


def test_admission_by_hand():
    """(1, 2) twice, (2, 1) twice but long ago, (1, 1) once, and three rows with an unknown part."""
    codes = {"gender": np.array([1, 2, 2, 1, 1, 0, 1, 0]), "age": np.array([2, 1, 1, 2, 1, 1, 0, 0])}
    times = np.array([5, 1, 2, 8, 9, 9, 9, 9])
    settings = Crosses(pairs=("gender*age",))
    found = chosen(settings, codes, np.arange(8) % 2, times=times, admit_after=2, evict_before=3)
    (vocabulary,) = found.vocabularies
    assert vocabulary.table.select("value", "code", "count", "last_seen").rows() == [("part 1 * part 2", 1, 2, 8)]
    assert (vocabulary.rare, vocabulary.evicted, vocabulary.size) == (1, 1, 2)
    assert found.codes.rows() == [("gender*age", 1, 2, 1)]
    assert found.judged["share"].item() == 0.25


def test_fids_of_pairs():
    """Fixed for all machines; in the field's own slot; the order counts; few collisions."""
    left, right = identity.fids("gender", pl.Series(["m", "f"])), identity.fids("category", pl.Series(["a", "b"]))
    found = crosses.pair_fids("gender*category", left.to_numpy(), right.to_numpy())
    assert found.tolist() == [5853043400345694945, 5853191605288853284]
    assert (found >> identity.VALUE_BITS == identity.slot("gender*category")).all()
    assert not (found == crosses.pair_fids("gender*category", right.to_numpy(), left.to_numpy())).any()
    many = crosses.pair_fids("a*b", np.repeat(np.arange(1_000), 1_000), np.tile(np.arange(1_000), 1_000))
    assert len(np.unique(many)) == 1_000_000


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 299)), unique=True, max_size=20), st.data())
def test_a_pair_is_a_dictionary(admitted, data):
    codes = {pair: number + 1 for number, pair in enumerate(admitted)}
    columns = np.array([(*pair, code) for pair, code in codes.items()], np.int32).reshape(-1, 3)
    pair = Pair.of("a*b", {"a": 6, "b": 300}, *columns.T)
    some = st.sampled_from(admitted) if admitted else st.nothing()
    asked = data.draw(st.lists(some | st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=30))
    left, right = np.array(asked, np.int32).reshape(-1, 2).T
    assert pair.encode(left, right).tolist() == [codes.get(one, 0) for one in asked]


def test_values_read_as_people_write_them():
    fields = [Field("hour", 25, "context"), Field("position", 21, "context"), Field("domain", 3, "context")]
    values = crosses.values_of([*fields, Field("age", 3, "user")], [], ("home", "live"))
    assert values["hour"]["value"].to_list()[::23] == ["0:00", "23:00"]
    assert values["position"]["value"].to_list()[18:] == ["19", "20 or later"]
    assert values["domain"]["value"].to_list() == ["home", "live"]
    assert values["age"]["value"].to_list() == ["part 1", "part 2"]
    assert values["age"]["fid"].to_list() == identity.fids("age", pl.Series(["1", "2"])).to_list()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Crosses(columns=("gender", "shoe")),
            r"features\.crosses\.columns: no column 'shoe' to cross; use age, author",
        ),
        (Crosses(pairs=("gender*shoe",)), r"features\.crosses\.pairs: no column 'shoe'"),
        (Crosses(pairs=("gender",)), "'gender' is no pair of two columns"),
        (Crosses(pairs=("gender*gender",)), "is no pair of two columns"),
    ],
)
def test_a_wrong_setting_names_its_key(settings, message):
    with pytest.raises(InputError, match=message):
        crosses.candidates(settings, FIELDS)


PAIRS = ("segment*age", "author_id*category", "segment*category", "age*device", "domain*hour", "position*width")
SETTINGS = replace(FEATURES, context=("hour", "device"), admit_after=5, crosses=Crosses(pairs=PAIRS))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("features")
    events = write_events(tmp_path_factory.mktemp("root") / "events")
    build(events, folder, features=SETTINGS, contract=CONTRACT, split=Split())
    return FeatureStore.open(folder)


def test_fields_of_one_side_lie_in_its_table(store):
    roles = {field.name: field.role for field in store.schema.fields[-len(PAIRS) :]}
    assert roles == dict(zip(PAIRS, ["user", "item", *["cross"] * 4], strict=True))
    assert store.users["code_segment*age"].max() == store.schema.fields[-6].size - 1
    assert store.items["code_author_id*category"].shape == store.items["code_category"].shape
    assert [pair.name for pair in store.crosses] == list(PAIRS[2:])


def test_every_row_has_the_code_of_its_values(store):
    """Against the vocabulary's own texts."""
    vocabulary = pl.read_parquet(store.folder / "vocabulary.parquet")
    codes = dict(vocabulary.filter(field="segment*category").select("value", "code").rows())
    values = {
        name: dict(vocabulary.filter(field=name).select("code", "value").rows()) for name in ("segment", "category")
    }
    log = store.log()
    place = [field.name for field in store.schema.fields if field.role in ("context", "cross")].index(
        "segment*category"
    )
    for row in range(0, len(log), 53):
        segment = values["segment"].get(int(store.users["code_segment"][log.user[row]]))
        category = values["category"].get(int(store.items["code_category"][log.item[row]]))
        assert log.context[row, place] == codes.get(f"{segment} * {category}", 0)
    assert len(np.unique(log.context[:, place])) > 10


def test_log_and_rows_have_one_definition(store):
    log = store.log()
    names = [field.name for field in store.schema.fields if field.role == "context"]
    context = {name: log.context[:, place] for place, name in enumerate(names)}
    rows = store.rows(log.user, log.item, log.domain, log.time, context)
    np.testing.assert_array_equal(rows.context, log.context)
    batch = Encoder(store)(rows)
    own = batch["fields"].numpy() - store.schema.offsets
    for place, field in enumerate(store.schema.fields):
        assert 0 <= own[:, place].min() <= own[:, place].max() < field.size, field.name
    assert own[:, store.schema.position("age*device")].tolist() == log.context[:, len(names) + 1].tolist()


def test_a_build_is_the_same_every_time(store, tmp_path):
    events = write_events(tmp_path / "events")
    (tmp_path / "out").mkdir()
    build(events, tmp_path / "out", features=SETTINGS, contract=CONTRACT, split=Split())
    files = [path.relative_to(store.folder) for path in sorted(store.folder.rglob("*.*")) if path.is_file()]
    assert {"crosses.parquet", "cross_codes.parquet", "index_tags.arrow", "user-00.parquet"} <= {p.name for p in files}
    for path in files:
        assert (store.folder / path).read_bytes() == (tmp_path / "out" / path).read_bytes(), path


def test_the_file_of_candidates_tells_what_was_chosen(store):
    judged = pl.read_parquet(store.folder / "crosses.parquet")
    assert sorted(judged["field"]) == sorted(PAIRS)
    assert judged["chosen"].all()
    assert judged["interaction"].is_sorted(descending=True)


def test_later_rows_choose_nothing(store, tmp_path):
    """Labels of the last two days turned around: the same crosses with the same codes."""
    events = write_events(tmp_path / "events")
    log = pl.read_parquet(events / "events.parquet")
    later = pl.col("time").dt.epoch("us") >= store.slices["validation"]
    log.with_columns(click=pl.when(later).then(1 - pl.col("click")).otherwise("click")).write_parquet(
        events / "events.parquet"
    )
    (tmp_path / "out").mkdir()
    build(events, tmp_path / "out", features=SETTINGS, contract=CONTRACT, split=Split())
    for name in ("crosses.parquet", "cross_codes.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (store.folder / name).read_bytes()
