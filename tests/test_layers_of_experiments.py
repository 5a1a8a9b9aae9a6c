from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2_contingency

from pipeline.config import Arm, Layer
from pipeline.experiments import layers as experiments
from pipeline.experiments.layers import BUCKETS, CONTROL, HELD_BACK, assign, bucket, check, parameters
from pipeline.lake import InputError

RANKING = Layer(
    "ranking",
    "r1",
    (Arm("mmr", 0.3, {"diversity": "mmr", "diversity_weight": 0.3}), Arm("dpp", 0.2, {"diversity": "dpp"})),
    hold_back=0.1,
)
RECALL = Layer("recall", "c1", (Arm("wide", 0.5, {"merged": 800}),))


def split(layer: Layer, step: int = 1) -> list[str]:
    """Who has each `step`-th of the layer's buckets."""
    return [experiments._arm(layer, number) for number in range(0, BUCKETS, step)]


def test_buckets_do_not_change_between_runs() -> None:
    assert [bucket("s1", user) for user in ("u1", "u2", "7")] == [8894, 5882, 840]
    assert bucket("s2", "u1") == 5565


def test_the_first_arm_begins_at_0_the_second_ends_where_the_hold_back_begins() -> None:
    expected = ["mmr"] * 3_000 + [CONTROL] * 4_000 + ["dpp"] * 2_000 + [HELD_BACK] * 1_000
    assert split(RANKING) == expected


def test_more_arms_begin_in_parts_of_their_own() -> None:
    layer = Layer("a", "a", tuple(Arm(name, 0.2) for name in "xyz"), hold_back=0.2)
    expected = [("x", 2_000), ("y", 2_000), ("z", 2_000), (CONTROL, 2_000), (HELD_BACK, 2_000)]
    assert split(layer) == [name for name, size in expected for _ in range(size)]
    check([layer])


def test_a_layer_without_arms_is_a_hold_back() -> None:
    assert Counter(split(Layer("a", "a", (), hold_back=0.25))) == {CONTROL: 7_500, HELD_BACK: 2_500}
    assert set(split(Layer("a", "a", ()))) == {CONTROL}


def test_a_user_stays_where_the_user_is() -> None:
    users = [f"u{number}" for number in range(500)]
    first = [assign([RANKING, RECALL], user) for user in users]
    assert [assign([RECALL, RANKING], user) for user in reversed(users)] == first[::-1]
    assert first[0].keys() == {"ranking", "recall"}
    ranking, recall = split(RANKING), split(RECALL)
    expected = [{"ranking": ranking[bucket("r1", user)], "recall": recall[bucket("c1", user)]} for user in users]
    assert first == expected


def test_shares_are_those_asked_for_over_100_000_users() -> None:
    """Within what a binomial count exceeds once in 10^6."""
    given = Counter(assign([RANKING], f"user {number}")["ranking"] for number in range(100_000))
    for name, share in {"mmr": 0.3, "dpp": 0.2, CONTROL: 0.4, HELD_BACK: 0.1}.items():
        low, high = binom.ppf([5e-7, 1 - 5e-7], 100_000, share)
        assert low <= given[name] <= high


@pytest.mark.parametrize("users", ["{}", "user-{:08d}"])
def test_layers_split_users_independently(users: str) -> None:
    salts = ["r1", "r2", "a", "b", "2026-01"]
    layers = [replace(RANKING, name=salt, salt=salt) for salt in salts]
    given = [assign(layers, users.format(number)) for number in range(30_000)]
    names = ("mmr", "dpp", CONTROL, HELD_BACK)
    for one, other in combinations(salts, 2):
        counts = Counter((arms[one], arms[other]) for arms in given)
        assert chi2_contingency([[counts[a, b] for b in names] for a in names]).pvalue > 0.001


def test_the_test_of_independence_sees_layers_of_one_salt() -> None:
    given = [assign([RANKING, replace(RECALL, salt="r1")], str(number)) for number in range(2_000)]
    counts = Counter((arms["ranking"], arms["recall"]) for arms in given)
    table = [[counts[a, b] for b in ("wide", CONTROL)] for a in ("mmr", "dpp", CONTROL, HELD_BACK)]
    assert chi2_contingency(table).pvalue < 1e-9


@st.composite
def ramps(draw: st.DrawFn) -> tuple[Layer, Layer, str]:
    """A layer, one in which an arm has a larger share, and the arm's name; both pass `check`."""
    arms = draw(st.integers(1, 6))
    hold_back = draw(st.integers(0, 5_000))
    part = (BUCKETS - hold_back) // ((arms + 1) // 2)
    sizes: list[int] = []
    for place in range(arms):
        room = part - sizes[-1] if place % 2 else part
        sizes.append(draw(st.integers(0, room)))
    grown = draw(st.integers(0, arms - 1))
    beside = grown ^ 1
    most = part - (sizes[beside] if beside < arms else 0)
    larger = [*sizes]
    larger[grown] = draw(st.integers(sizes[grown], most))

    def layer(shares: list[int]) -> Layer:
        named = tuple(Arm(f"arm {place}", share / BUCKETS) for place, share in enumerate(shares))
        return Layer("layer", "salt", named, hold_back / BUCKETS)

    return layer(sizes), layer(larger), f"arm {grown}"


@given(ramps())
def test_raising_a_share_only_moves_users_from_the_control_into_the_arm(ramp: tuple[Layer, Layer, str]) -> None:
    before, after, grown = ramp
    check([before])
    check([after])
    moves = {(old, new) for old, new in zip(split(before, 13), split(after, 13), strict=True) if old != new}
    assert moves <= {(CONTROL, grown)}


@settings(max_examples=20)
@given(ramps())
def test_arms_have_their_shares_and_never_the_held_back(ramp: tuple[Layer, Layer, str]) -> None:
    layer, _, _ = ramp
    sizes = {arm.name: round(arm.share * BUCKETS) for arm in layer.arms}
    held = round(layer.hold_back * BUCKETS)
    everyone = split(layer)
    assert everyone[BUCKETS - held :] == [HELD_BACK] * held
    given = Counter(everyone[: BUCKETS - held])
    assert {name: given[name] for name in sizes} == sizes
    assert given[CONTROL] == BUCKETS - held - sum(sizes.values())


def test_an_arm_beside_the_first_takes_from_the_control() -> None:
    alone = replace(RANKING, arms=RANKING.arms[:1])
    assert {pair for pair in zip(split(alone), split(RANKING), strict=True) if pair[0] != pair[1]} == {(CONTROL, "dpp")}


def test_parameters_are_those_of_the_arms() -> None:
    both = [RANKING, RECALL]
    assert parameters(both, {"ranking": "mmr", "recall": "wide"}) == {
        "diversity": "mmr",
        "diversity_weight": 0.3,
        "merged": 800,
    }
    assert parameters(both, {"ranking": "dpp", "recall": CONTROL}) == {"diversity": "dpp"}
    assert parameters(both, {"ranking": HELD_BACK, "recall": CONTROL}) == {}
    assert parameters([], {}) == {}


def test_good_layers_pass() -> None:
    check([])
    check([RANKING, RECALL])
    check([Layer("a", "a", (Arm("x", 0.8), Arm("y", 0.15)), hold_back=0.05)])
    check([Layer("a", "a", tuple(Arm(str(number), 1 / 7) for number in range(6)))])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([RANKING, replace(RECALL, name="ranking")], "two are named 'ranking'; rename one"),
        ([RANKING, replace(RECALL, salt="r1")], "two have the salt 'r1'"),
        ([RANKING, replace(RECALL, arms=(Arm("wide", 0.1, {"diversity": "none"}),))], "two change 'diversity'"),
        ([Layer("a", "a", (Arm("x", 0.1), Arm("x", 0.1)))], "layer a: the name 'x' is taken; rename an arm"),
        ([Layer("a", "a", (Arm("control", 0.1),))], "layer a: the name 'control' is taken; rename an arm"),
        ([Layer("a", "a", (Arm("held_back", 0.1),))], "layer a: the name 'held_back' is taken; rename an arm"),
        (
            [Layer("a", "a", (Arm("x", 0.6), Arm("y", 0.35)), hold_back=0.1)],
            "layer a: beside a hold-back of 0.1, x, y may have 0.9 of the users together, not 0.95; lower a share",
        ),
        (
            [Layer("a", "a", (Arm("x", 0.4), Arm("y", 0.2), Arm("z", 0.1)))],
            "layer a: of 3 arms, so that each can grow, x, y may have 0.5 of the users together, not 0.6",
        ),
    ],
)
def test_bad_layers_are_named(layers: list[Layer], message: str) -> None:
    with pytest.raises(InputError) as error:
        check(layers)
    assert message in str(error.value)
