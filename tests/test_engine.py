from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import latest, made_by

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking import coarse, fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.coarse import rank_within
from pipeline.ranking.merged import Merged
from pipeline.recall import candidates, exposure
from pipeline.recall.merge import snake_merge
from pipeline.recall.route import Requests, only
from pipeline.recall.snapshot import take
from pipeline.serving import bundle, registry
from pipeline.serving.buffer import Happened
from pipeline.serving.engine import Answer, Engine, Question
from pipeline.serving.stages import Stage

SECOND = 1_000_000


@pytest.fixture(scope="module")
def engine(bundles):
    engine = Engine(bundles / registry.read_alias(bundles, "champion")["bundle"])
    yield engine
    engine.close()


@pytest.fixture
def own(bundles):
    """An engine that a test may change."""
    engine = Engine(bundles / registry.read_alias(bundles, "champion")["bundle"])
    yield engine
    engine.close()


def question(
    engine: Engine,
    user: str,
    request: str = "r",
    *,
    domain: str = "",
    k: int = 10,
    later: int = 0,
    left=None,
    **changed,
):
    parameters = engine.parameters(changed)
    when = engine.end + later * SECOND
    return Question(request, user, domain or engine.domains[0], when, k, parameters, {}, {}, left or {})


def ask(engine: Engine, user: str, **told) -> Answer:
    return engine.answer([question(engine, user, **told)])[0]


def items(answer: Answer) -> list[str]:
    return [one["item"] for one in answer.body["items"]]


def test_an_answer(engine):
    user = engine.users(5)[3]
    body = ask(engine, user, k=7).body
    assert json.loads(json.dumps(body)) == body
    assert body["known_user"]
    assert body["degraded"] == []
    assert [one["rank"] for one in body["items"]] == [1, 2, 3, 4, 5, 6, 7]
    assert len({one["item"] for one in body["items"]}) == 7
    scores = [one["score"] for one in body["items"]]
    assert scores == sorted(scores, reverse=True)
    assert set(body["items"][0]["scores"]) == {*engine.tasks, "relevance"}
    assert body["ms"]["total"] == pytest.approx(
        sum(body["ms"][name] for name in body["ms"] if name != "total"), abs=0.01
    )


def test_the_service_ranks_as_the_flows_do(engine, bundles, small_run, tmp_path):
    """Routes, filter, merge, coarse and fine order of the batch code, for requests at the log's end."""
    folders, settings = latest(small_run), engine.config
    store = FeatureStore.open(folders["features"])
    snapshot = take(store, engine.end, "click")
    asked = snapshot.history["user"].unique().sort().head(40)
    domains = pl.Series("domain", np.arange(len(asked)) % len(engine.domains), pl.Int16)
    requests = pl.DataFrame(
        {"request": pl.int_range(len(asked), dtype=pl.UInt32, eager=True), "user": asked}
    ).with_columns(domains, time=pl.lit(engine.end), fold=pl.lit("test"))
    folder = bundles / engine.name
    told = json.loads((folder / bundle.TOLD).read_text())
    known, parts = Requests.of(snapshot, requests), []
    for route in settings.recall.routes:
        found = candidates.opened(route, folder / "routes" / route, store).recall(known, 2 * settings.recall.per_route)
        kept = only(found, snapshot.items["item"].to_numpy()).frame(requests["request"])
        parts.append(kept.select("request", "item", pl.lit(route).alias("route"), "rank", "score"))
    flagged = candidates.flag(pl.concat(parts), requests, exposure.load(folder / "exposure"))
    users, shown = (np.load(folder / "exposure" / f"{side}s.npy") > 0 for side in ("user", "item"))
    asks = asked.to_numpy()[flagged["request"].to_numpy()]
    sure = users[asks] & shown[flagged["item"].to_numpy()]  # of others the service does not ask the Bloom filter
    assert (flagged["exposed"].to_numpy() & ~sure).mean() < 0.003
    pool = candidates.refill(flagged.with_columns(pl.col("exposed") & pl.Series(sure)), settings.recall.per_route)
    merged = snake_merge(pool, settings.recall.routes, size=settings.recall.merged, quota=told["quota"])
    requests.write_parquet(tmp_path / "requests.parquet")
    merged.write_parquet(tmp_path / "merged.parquet")
    merged.head(0).select("request", "item").write_parquet(tmp_path / "positives.parquet")
    lists = Merged.open(tmp_path)
    cheap = coarse.load(folders["coarse"]).score(Encoder(store), store, lists)
    ranker = fine.load(folders["fine"])
    fused = ranker.fuse(fine.score_candidates(ranker.model, Encoder(store), store, lists), lists)
    cut = rank_within(cheap, lists.request) <= settings.coarse.keep
    for row, user in enumerate(asked.to_list()):
        name = engine.name_of("user", user)
        trace = ask(engine, name, domain=engine.domains[row % len(engine.domains)]).trace
        mine = lists.request == row
        assert trace.merged.tolist() == lists.item[mine].tolist()
        np.testing.assert_allclose(trace.coarse, cheap[mine], atol=1e-4)
        assert set(trace.merged[trace.kept]) == set(lists.item[mine & cut])
        order = lists.item[mine & cut][np.argsort(-fused[mine & cut], kind="stable")]
        assert trace.merged[trace.final].tolist() == order[:10].tolist()


def test_answers_do_not_depend_on_the_company(engine):
    users = engine.users(12)
    together = [
        question(engine, user, f"r{row}", domain=engine.domains[row % 3], k=5 + row, later=row)
        for row, user in enumerate([*users, "nobody"])
    ]
    for row, answer in enumerate(engine.answer(together)):
        alone = engine.answer([together[row]])[0]
        assert items(answer) == items(alone)
        ours, theirs = ([one["score"] for one in each.body["items"]] for each in (answer, alone))
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_ranking_in_parts_changes_no_answer(engine, bundles, monkeypatch):
    """Parts end in the middle of a request's candidates. Both engines are new: neither remembers an earlier answer."""
    folder, users = bundles / engine.name, engine.users(4)
    asked = [question(engine, user, f"r{row}", later=row) for row, user in enumerate([*users, "nobody"])]
    several, alone = Engine(folder, replace(engine.settings, threads=3)), Engine(folder, engine.settings)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.serving.engine.AT_ONCE", 7)
        in_parts = several.answer(asked)
    for ours, theirs in zip(in_parts, alone.answer(asked), strict=True):
        assert ours.body["degraded"] == []
        np.testing.assert_allclose(ours.trace.scores, theirs.trace.scores, rtol=1e-5)
        assert items(ours) == items(theirs)
    several.close()
    alone.close()


def test_one_who_is_unknown_is_told_what_is_hot(engine):
    answer = ask(engine, "nobody")
    assert not answer.body["known_user"]
    assert len(items(answer)) == 10
    assert engine.explain(answer.trace)["user_facts"] == {}
    assert answer.trace.states["item_cf"][0] == "empty"


def test_an_unknown_domain_is_named(engine):
    with pytest.raises(InputError, match="domain: 'moon' is unknown; there are"):
        ask(engine, "nobody", domain="moon")


def test_what_is_shown_is_not_shown_again(own):
    user = own.users(3)[0]
    first = items(ask(own, user))
    own.record([Happened(user, item, own.domains[0], own.end, True, {}) for item in first[:4]])
    second = items(ask(own, user, later=1))
    assert not set(first[:4]) & set(second)
    assert own.why(ask(own, user, later=1).trace, first[0])["stage"] == "exposure"


def test_what_is_withdrawn_is_not_shown(own):
    user = own.users(3)[1]
    first = items(ask(own, user))
    own.withdraw([first[0], "no such item"])
    answer = ask(own, user)
    assert first[0] not in items(answer)
    assert own.why(answer.trace, first[0])["stage"] == "withdrawn"


def test_a_newcomer_is_known_by_what_he_does(own):
    before = ask(own, "newcomer").trace
    assert before.user == 0
    liked = items(ask(own, own.users(9)[8]))[:3]
    own.record([Happened("newcomer", one, own.domains[1], own.end, True, {"click": 1.0}) for one in liked])
    own.recount()
    answer = ask(own, "newcomer", later=5)
    assert answer.trace.user >= len(own.store.users["code_user_id"]) - 50
    assert answer.trace.states["item_cf"][0] == "ok"
    told = own.explain(answer.trace)
    assert [one["item"] for one in told["history"]] == liked[::-1]
    assert answer.body["known_user"]


def test_more_newcomers_than_there_is_room_for(own):
    liked = items(ask(own, own.users(9)[8]))[:1]
    for number in range(60):
        own.record([Happened(f"n{number}", liked[0], own.domains[1], own.end + number, True, {"click": 1.0})])
    assert ask(own, "n0", later=5).trace.user == 0
    assert len(own.history(ask(own, "n59", later=5).trace.user, own.end + SECOND)[0]) == 1


def test_an_event_of_the_log_changes_scores_as_a_rebuilt_log_would(own):
    """The click rate of an item, and a conversion that comes late and alone."""
    user, item = own.users(3)[0], own.name_of("item", 7)
    names = [number.name for number in own.store.schema.numbers]
    asked = [np.array([one]) for one in (own.row("user", user), 7, 0, own.end + 10)]
    before = own.score(*asked)[0].numbers[0]
    own.record([Happened(user, item, own.domains[0], own.end, True, {"click": 1.0})])
    own.record([Happened(user, item, own.domains[0], own.end + 1, False, {"click": 1.0})])
    own.recount()
    after = own.score(*asked)[0].numbers[0]
    shows = names.index("item_shows_all")
    assert np.expm1(after[shows]) == pytest.approx(np.expm1(before[shows]) + 1, rel=1e-4)
    assert after[names.index("clicked_same_item")] == pytest.approx(
        np.log1p(np.expm1(before[names.index("clicked_same_item")]) + 2)
    )
    assert after[names.index("item_click_rate_all")] > before[names.index("item_click_rate_all")]


class Broken:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def recall(self, *_):
        time.sleep(self.seconds)
        raise RuntimeError("broken")


@pytest.fixture
def hasty(bundles):
    """An engine that waits a second for its routes."""
    folder = bundles / registry.read_alias(bundles, "champion")["bundle"]
    usual = registry.read_config(folder).serve
    engine = Engine(folder, replace(usual, deadlines={**usual.deadlines, "routes": 1_000.0}))
    yield engine
    engine.close()


def test_a_route_that_fails_or_is_late_is_left_out(hasty):
    own, user = hasty, hasty.users(3)[0]
    ask(own, user)
    own._routes["hot"] = Broken(0)
    answer = ask(own, user)
    assert answer.body["degraded"] == ["route:hot"]
    assert len(items(answer)) == 10
    own._routes["tag"] = Broken(4.0)
    answer = ask(own, user)
    assert set(answer.body["degraded"]) == {"route:hot", "route:tag"}
    assert ask(own, user).trace.states["tag"][0] == "late"
    assert ask(own, user).trace.ms["routes"] < 1_000


def test_when_all_routes_fail_there_is_still_a_list(own):
    user = own.users(3)[0]
    for route in own._routes:
        own._routes[route] = Broken(0)
    answer = ask(own, user)
    assert len(answer.body["degraded"]) == len(own._routes)
    assert len(items(answer)) == 10
    assert {one["route"] for one in answer.body["items"]} == {"fallback"}
    assert own.why(answer.trace, items(answer)[0])["shown"]


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_a_stage_that_fails_is_left_out(own, stage, monkeypatch):
    user = own.users(3)[0]
    monkeypatch.setattr(own, {"coarse": "_askers", "fine": "_fine"}[stage], lambda *_: 1 / 0)
    answer = ask(own, user)
    assert answer.body["degraded"] == [stage]
    assert len(items(answer)) == 10
    assert (answer.body["items"][0]["scores"] is None) == (stage == "fine")
    told = own.explain(answer.trace)
    assert len(told["items"]) == len(answer.trace.merged)
    last = [one["item"] for one in told["items"] if one["final_rank"] is None][-1]
    assert own.why(answer.trace, last)["because"]


def test_a_slow_stage_is_left_out_until_it_has_ended():
    stage = Stage("slow", milliseconds=20)
    assert stage.run(lambda: 3) == 3
    assert stage.run(lambda: time.sleep(0.3)) is None
    assert stage.run(lambda: 3) is None
    time.sleep(0.4)
    assert stage.run(lambda: 3) == 3
    stage.close()


def test_scores_that_are_no_numbers_are_left_out(own):
    for parameter in own.ranker.model.parameters():
        parameter.data.fill_(float("nan"))
    answer = ask(own, own.users(3)[0])
    assert answer.body["degraded"] == ["fine"]
    assert len(items(answer)) == 10


def test_arms_change_what_they_name(engine):
    user = engine.users(3)[0]
    trace = ask(engine, user, keep=15, quota={"hot": 1}, routes=["hot", "fresh"], k=20).trace
    assert len(trace.kept) == 15
    assert list(trace.found) == ["hot", "fresh"]
    assert (trace.giver[:3] == [0, 1, 1]).all()
    plain = ask(engine, user).trace
    heaviest = engine.ranker.schema.labels[int(engine.ranker.weights[0, :-1].argmax())]
    liked = ask(engine, user, fusion={heaviest: 0.0}).trace
    assert not np.allclose(plain.fused, liked.fused)
    for wrong in ({"speed": 1}, {"quota": {"moon": 1}}, {"fusion": {"moon": 1}}, {"keep": "x"}, {"diversity": "no"}):
        with pytest.raises(InputError, match=r"serve\.layers"):
            engine.parameters(wrong)


def test_a_varied_list(engine):
    user = engine.users(3)[0]
    plain = ask(engine, user)
    for how in ("mmr", "dpp"):
        varied = ask(engine, user, diversity=how, diversity_weight=0.9)
        assert items(varied)[0] == items(plain)[0]
        assert likeness(engine, varied) < likeness(engine, plain)
        assert items(ask(engine, user, diversity=how, diversity_weight=0.0)) == items(plain)


def likeness(engine: Engine, answer: Answer) -> float:
    vectors = engine.store.items["content"][answer.trace.merged[answer.trace.final]]
    return float((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].mean())


def test_exploring_moves_scores_and_is_off_by_default(engine):
    user = engine.users(3)[0]
    plain = ask(engine, user).trace
    assert (ask(engine, user).trace.fused == plain.fused).all()
    drawn = [ask(engine, user, explore=True).trace.fused for _ in range(2)]
    assert not np.allclose(drawn[0], drawn[1])


def test_what_was_ranked_and_not_shown_comes_again(own):
    user = own.users(3)[0]
    first = ask(own, user)
    order = first.trace.kept[np.argsort(-first.trace.fused, kind="stable")]
    left = first.trace.merged[order[~np.isin(order, first.trace.final)]]
    assert first.left.tolist() == left[:100].tolist()
    again = ask(own, user, later=1, left={first.body["domain"]: (first.trace.question.time, first.left)}).trace
    assert again.states["cache"][0] == "ok"
    cached = again.found["cache"].items
    assert cached[cached >= 0].tolist() == left[:100].tolist()[: (cached >= 0).sum()]


def test_the_way_of_a_request(engine):
    answer = ask(engine, engine.users(5)[2], k=8)
    told = engine.explain(answer.trace)
    assert json.loads(json.dumps(told)) == told
    counts = {one["stage"]: one["items"] for one in told["stages"]}
    assert (
        counts["recall"]
        >= counts["exposure"]
        >= counts["merge"]
        >= counts["coarse"]
        >= counts["fine"]
        >= counts["final"]
        == 8
    )
    assert sum(route["merged"] for route in told["routes"]) == counts["merge"] == len(told["items"])
    assert sum(route["final"] for route in told["routes"]) == 8
    shown = sorted((one for one in told["items"] if one["final_rank"]), key=lambda one: one["final_rank"])
    assert [one["item"] for one in shown] == items(answer)
    assert all(one["routes"][0]["rank"] >= 1 for one in told["items"])
    assert {"category", "author_id"} <= set(shown[0]["facts"])


def test_why_and_why_not(engine):
    answer = ask(engine, engine.users(5)[2], k=8)
    trace = answer.trace
    top = engine.why(trace, items(answer)[0])
    assert top["stage"] == "final"
    assert top["shown"]
    assert top["would_rank"] == 1
    order = trace.kept[np.argsort(-trace.fused, kind="stable")]
    ninth = engine.why(trace, engine.name_of("item", int(trace.merged[order[8]])))
    assert (ninth["stage"], ninth["rank"], ninth["limit"]) == ("fine", 9, 8)
    assert ninth["short_by"] == pytest.approx(ninth["cut"] - ninth["value"])
    cut = np.setdiff1d(np.arange(len(trace.merged)), trace.kept)
    best = cut[np.argmax(trace.coarse[cut])]
    first_cut = engine.why(trace, engine.name_of("item", int(trace.merged[best])))
    assert (first_cut["stage"], first_cut["rank"]) == ("coarse", len(trace.kept) + 1)
    assert first_cut["scores"]
    everything = np.unique(np.concatenate([found.items for found in trace.found.values()]))
    absent = np.setdiff1d(np.flatnonzero(engine.available), everything)
    assert engine.why(trace, engine.name_of("item", int(absent[0])))["stage"] == "recall"
    late = np.setdiff1d(everything[everything > 0], [*trace.merged, *trace.exposed])
    assert engine.why(trace, engine.name_of("item", int(late[0])))["stage"] == "merge"
    assert engine.why(trace, "no such item")["stage"] == "unknown"


def copied(bundles: Path, tmp_path: Path) -> Path:
    name = registry.read_alias(bundles, "champion")["bundle"]
    return Path(shutil.copytree(bundles / name, tmp_path / name))


def signed(folder: Path) -> None:
    """Make the manifest fit what is there."""
    manifest = {"format": bundle.FORMAT, "files": bundle._hashes(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_corrupt_bundle_is_refused(bundles, tmp_path):
    folder = copied(bundles, tmp_path)
    weights = folder / "fine" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors: not the file that was written"):
        Engine(folder)
    weights.write_bytes(whole)
    (folder / "extra.bin").write_bytes(b"1")
    with pytest.raises(InputError, match=r"extra\.bin: not the file"):
        Engine(folder)
    (folder / "extra.bin").unlink()
    next((folder / "routes" / "content" / "index").iterdir()).unlink()
    with pytest.raises(InputError, match=r"routes/content/index/.*: missing"):
        Engine(folder)


def test_a_bundle_of_another_format_is_refused(bundles, tmp_path):
    folder = copied(bundles, tmp_path)
    (folder / "manifest.json").write_text(json.dumps({"format": 0, "files": {}}))
    with pytest.raises(InputError, match="of format 0"):
        Engine(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_a_bundle_that_scores_otherwise_than_the_batch_is_refused(bundles, tmp_path, value):
    from safetensors.torch import load_file, save_file

    folder = copied(bundles, tmp_path)
    weights = load_file(folder / "fine" / "model.safetensors")
    name = next(name for name, one in weights.items() if one.ndim == 2 and "table" not in name)
    weights[name] = weights[name].clone().fill_(value)
    save_file(weights, folder / "fine" / "model.safetensors")
    signed(folder)
    with pytest.raises(InputError, match=r"is off by up to .* from batch scoring"):
        Engine(folder)


def test_features_are_part_of_parity(bundles, tmp_path):
    folder = copied(bundles, tmp_path)
    totals = folder / "features" / "tallies" / "item" / "totals.npy"
    np.save(totals, np.load(totals) * 2)
    signed(folder)
    with pytest.raises(InputError, match="is off by up to"):
        Engine(folder)


def test_a_bundle_is_named_after_its_content(bundles, small_run, engine, tmp_path):
    made = made_by(small_run)
    (tmp_path / ".bundle-left-by-a-kill").mkdir()
    again = bundle.write(tmp_path, made, engine.config)
    assert again.name == engine.name
    assert bundle.write(tmp_path, made, engine.config) == again
    other = bundle.write(tmp_path, made, replace(engine.config, seed=1))
    assert other.name != again.name
    assert {path.name for path in tmp_path.iterdir()} == {again.name, other.name}


def test_no_pickle_in_a_bundle(bundles, engine):
    kinds = {path.suffix for path in (bundles / engine.name).rglob("*") if path.is_file()}
    assert kinds <= {".json", ".npy", ".parquet", ".arrow", ".safetensors", ".bloom", ".faiss", ".index"}


def test_an_alias_and_its_past(tmp_path):
    for name in ("bundle-a", "bundle-b", "bundle-c"):
        (tmp_path / name).mkdir()
        registry.promote(tmp_path, "champion", name)
    assert registry.read_alias(tmp_path, "champion") == {"bundle": "bundle-c", "previous": ["bundle-b", "bundle-a"]}
    assert registry.roll_back(tmp_path, "champion") == "bundle-b"
    assert registry.read_alias(tmp_path, "champion")["bundle"] == "bundle-b"
    for name in ("bundle-d", "bundle-e", "bundle-f"):
        (tmp_path / name).mkdir()
        registry.promote(tmp_path, "champion", name)
    there = {path.name for path in tmp_path.glob("bundle-*")}
    assert there == {"bundle-f", "bundle-e", "bundle-d", "bundle-b"}
    with pytest.raises(InputError, match="there is no bundle before"):
        registry.roll_back(tmp_path, "other")


def test_a_run_that_has_not_ended(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        bundle.Made.of_run(tmp_path)
