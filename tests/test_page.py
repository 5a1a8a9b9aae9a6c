from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import Request, urlopen

import pytest

PAGE = Path(__file__).parents[1] / "pipeline/serving/page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = '<img src=x onerror="window.hit = 1">'

try:
    from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
except ImportError:
    sync_playwright = None  # type: ignore[assignment]

in_a_browser = pytest.mark.skipif(
    CHROMIUM is None or sync_playwright is None, reason="needs Playwright and a Chromium in PATH"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages, and at the end finds that none of them had an error; `refused`: of requests there may be."""
    faults: list[str] = []
    pages: list[Page] = []

    def open_page(address: str, *, width: int = 1440, height: int = 900, refused: bool = False) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda one: faults.append(one.text) if one.type in ("error", "warning") else None)
        if refused:
            page.on("console", lambda one: faults.remove(one.text) if "Failed to load resource" in one.text else None)
        page.goto(address)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []


@pytest.fixture(scope="module")
def about(served: str) -> dict[str, Any]:
    return told(served, "about")


def told(served: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    sent = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{served}/{path}", sent, {"Content-Type": "application/json"})) as answer:
        return dict(json.load(answer))


def address(served: str, about: dict[str, Any], user: int | str, *, k: int = 10, **more: str) -> str:
    name = user if isinstance(user, str) else about["users"][user]
    query = {"user": name, "domain": about["domains"][0], "k": str(k), **more}
    return f"{served}/?" + "&".join(f"{key}={quote(value)}" for key, value in query.items())


def trail_of(page: Page, served: str) -> dict[str, Any]:
    """What the service tells of the request that the page shows."""
    page.wait_for_selector("#view:visible")
    return told(served, str(page.get_attribute("#status a", "href")))


def items_of(page: Page) -> list[str]:
    return page.locator(".lists button.item").all_inner_texts()


def changed(path: str, change: Callable[[dict[str, Any]], None], page: Page) -> None:
    """Let the page see the service's real answer with something in it changed."""

    def handle(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        change(body)
        route.fulfill(response=answer, json=body)

    page.route(path, handle)


def refuse(route: Route, *, status: int, headers: dict[str, str]) -> None:
    route.fulfill(status=status, headers=headers, json={"error": "starting", "field": None})


def test_the_page_is_three_files_of_its_own_without_markup_from_data():
    files = {path.name: path.read_text() for path in PAGE.iterdir()}
    assert set(files) == {"index.html", "app.js", "style.css"}
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert forbidden not in files["app.js"]
    addresses = re.findall(r"(?:https?:)?//[\w.]+", "".join(files.values()))
    assert set(addresses) == {"http://www.w3.org"}
    assert not re.search(r"<style|style=|<script>|\son\w+=", files["index.html"])
    sources = re.findall(r'(?:src|href)="([^"]+)"', files["index.html"])
    assert {source for source in sources if source != "./"} == {"page/style.css", "page/app.js"}


@in_a_browser
def test_asking_for_a_user_shows_the_funnel(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(served)
    expect(page.locator("#start")).to_be_visible()
    page.fill("#user", about["users"][0])
    page.fill("#k", "10")
    page.press("#k", "Enter")
    trail = trail_of(page, served)
    assert [trail[key] for key in ("user", "domain", "k")] == [about["users"][0], about["domains"][0], 10]

    heads = [text.split() for text in page.locator(".stages thead th").all_inner_texts()]
    assert [head[:2] for head in heads] == [[one["stage"], f"{one['items']:,}"] for one in trail["stages"]]
    rows = page.locator(".stages tbody tr")
    assert [text.split()[0] for text in rows.all_inner_texts()] == [one["route"] for one in trail["routes"]]
    for row, one in zip(rows.all(), trail["routes"], strict=True):
        cells = [text.replace("·", "0").replace(",", "") for text in row.locator("td").all_inner_texts()]
        counts = [one["recalled"], -one["exposed"], one["merged"], one["coarse"]]
        assert [int(text.replace("−", "-")) for text in cells[:4] + cells[5:]] == [*counts, one["final"]]
    for column, stage in enumerate(one["stage"] for one in trail["stages"]):
        if stage == "fine":
            cells = [row.locator("td").nth(column).inner_text().replace("·", "0") for row in rows.all()]
            assert sum(int(cell) for cell in cells) == trail["stages"][column]["items"]

    final = sorted((one for one in trail["items"] if one["final_rank"]), key=lambda one: one["final_rank"])
    assert items_of(page) == [one["item"] for one in final]
    assert page.locator(".past button.item").all_inner_texts() == [one["item"] for one in trail["history"]]


@in_a_browser
def test_the_address_holds_what_was_asked(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(address(served, about, 1, k=7))
    trail = trail_of(page, served)
    assert (trail["user"], trail["k"], len(items_of(page))) == (about["users"][1], 7, 7)
    page.fill("#user", about["users"][2])
    page.press("#user", "Enter")
    expect(page.locator("#about-title")).to_have_text(f"User {about['users'][2]}")
    query = parse_qs(urlsplit(page.url).query)
    assert query == {"user": [about["users"][2]], "domain": [about["domains"][0]], "k": ["7"]}
    page.go_back()
    expect(page.locator("#about-title")).to_have_text(f"User {about['users'][1]}")


@in_a_browser
def test_why_an_item_is_shown(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(address(served, about, 3))
    trail = trail_of(page, served)
    item = items_of(page)[2]
    why = told(served, f"explain/{trail['request']}/{quote(item, safe='')}")
    page.locator(".lists button.item").nth(2).click()
    expect(page.locator(".because")).to_have_text(why["because"])
    expect(page.locator("#why .pill")).to_have_text("in the list, rank 3")
    row = next(one for one in trail["items"] if one["item"] == item)
    steps = page.locator(".steps li").all_inner_texts()
    assert [text.split()[0] for text in steps] == [one["stage"] for one in trail["stages"]]
    assert all(f"{one['route']} at {one['rank']}" in steps[0] for one in row["routes"])
    assert re.search(rf"\b{row['position']}\b of {len(trail['items'])}\b", steps[2])
    assert page.locator(".steps .passed").count() == 6
    assert page.locator(".scores dt").count() == len(row["scores"])
    assert parse_qs(urlsplit(page.url).query)["item"] == [item]


@in_a_browser
def test_why_other_items_are_not(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(address(served, about, 4))
    trail = trail_of(page, served)
    cut = next(one["item"] for one in trail["items"] if one["stage"] == "merge")
    below = next(one["item"] for one in trail["items"] if one["stage"] == "fine")
    for item, stage in ((cut, "coarse"), (below, "fine")):
        page.fill("#other", item)
        page.press("#other", "Enter")
        why = told(served, f"explain/{trail['request']}/{quote(item, safe='')}")
        assert why["stage"] == stage
        expect(page.locator(".because")).to_contain_text(why["because"])
        expect(page.locator("#why-title")).to_have_text(f"Why not {item}")
        expect(page.locator("#why .pill")).to_have_text(f"cut by {stage}")
        expect(page.locator(".steps .fell .stage")).to_have_text(stage)
    page.fill("#other", PROBE)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#why-title")).to_have_text(f"Why not {PROBE}")
    expect(page.locator("#why .pill")).to_have_text("unknown")


@in_a_browser
def test_the_list_reacts_to_what_the_user_did(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(address(served, about, 5))
    trail_of(page, served)
    before = items_of(page)
    clicked = page.locator(f'.lists [data-task="click"][data-item="{before[1]}"]')
    clicked.click()
    expect(clicked).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#feedback")).to_contain_text("1 item marked")
    page.click("#send")
    expect(page.locator("#changes")).to_have_text(
        f"{len(before)} events taken in. Against the list before: {len(before)} new, 0 moved, {len(before)} gone."
    )
    after = items_of(page)
    assert not set(after) & set(before)
    assert page.locator(".lists .new").count() == len(after)
    expect(page.locator("#feedback")).to_be_hidden()
    expect(page.locator(".past button.item").first).to_have_text(before[1])
    page.fill("#other", before[0])
    page.press("#other", "Enter")
    expect(page.locator("#why .pill")).to_have_text("cut by exposure")


@in_a_browser
def test_two_bundles_side_by_side(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened("about:blank")
    listed: list[dict[str, Any]] = []

    def handle(route: Route) -> None:
        asked = dict(route.request.post_data_json)
        beside = asked.pop("beside")
        answer = route.fetch(post_data=json.dumps(asked))
        listed.extend(answer.json()["items"] if not listed else [])
        other = [{**item, "rank": rank} for rank, item in enumerate(reversed(listed), 1)]
        other[0]["item"] = "another"
        route.fulfill(response=answer, json={**answer.json(), "items": other if beside else listed})

    page.route("**/recommend", handle)
    changed("**/about", lambda body: body.update(beside="bundle-before"), page)
    page.goto(address(served, about, 6, k=5))
    page.get_by_label("Beside bundle-before").check()
    expect(page.locator(".pair .rows")).to_have_count(2)
    left, right = (page.locator(".pair .rows").nth(n).locator(".moves").all_inner_texts() for n in (0, 1))
    assert left == ["↑4", "↑2", "=", "↓2", "only here"]
    assert right == ["only here", "↑2", "=", "↓2", "↓4"]
    expect(page.locator("#changes")).to_have_text("4 of 5 items in both lists, 1 at the same rank.")
    assert "beside=1" in page.url
    page.locator("#sides button").nth(1).click()
    expect(page.locator("#sides button").nth(1)).to_have_attribute("aria-pressed", "true")


@in_a_browser
def test_all_merged_items_can_be_sorted_and_searched(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(address(served, about, 7))
    trail = trail_of(page, served)
    grid = page.locator(".grid")
    expect(page.locator("#found")).to_have_text(f"{len(trail['items'])}")
    first = page.locator('.grid .body [role="row"]').first
    grid.get_by_role("button", name="merge", exact=True).click()
    expect(grid.locator("[aria-sort]")).to_have_text("merge")
    positions = {one["position"]: one["item"] for one in trail["items"]}
    expect(page.locator("#row-0 .key")).to_have_text(positions[1])
    grid.get_by_role("button", name="merge", exact=True).click()
    expect(page.locator("#row-0 .key")).to_have_text(positions[len(positions)])
    assert page.locator('.grid .body [role="row"]').count() < len(trail["items"])

    page.select_option("#stage", "cut by coarse")
    cut = [one["item"] for one in trail["items"] if one["stage"] == "merge"]
    expect(page.locator("#found")).to_have_text(f"{len(cut)} of {len(trail['items'])}")
    page.select_option("#stage", "reached final")
    expect(page.locator("#found")).to_have_text(f"10 of {len(trail['items'])}")
    page.select_option("#stage", "")
    page.fill("#find", cut[0])
    expect(first).to_contain_text(cut[0])
    page.fill("#find", "no such thing")
    expect(grid).to_contain_text("No merged item fits.")

    route = trail["routes"][0]["route"]
    page.locator(".stages").get_by_role("button", name=route, exact=True).click()
    recalled = [one for one in trail["items"] if route in [found["route"] for found in one["routes"]]]
    expect(page.locator("#found")).to_have_text(f"{len(recalled)} of {len(trail['items'])}")


@in_a_browser
def test_the_keyboard_alone_is_enough(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(served)
    keys = page.keyboard
    expect(page.locator("#user")).to_be_focused()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        keys.press(key)
    expect(page.locator("#about-title")).to_have_text(f"User {about['users'][1]}")
    trail, items = trail_of(page, served), items_of(page)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.locator(f"{selector}:focus").count():
                return
            keys.press("Tab")
        raise AssertionError(f"the tab key does not reach {selector}")

    tab_to(".lists button.item")
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    expect(page.locator(".lists button.item").nth(2)).to_be_focused()
    keys.press("Enter")
    expect(page.locator("#why-title")).to_have_text(f"Why {items[2]}")
    keys.press("ArrowDown")
    expect(page.locator("#why-title")).to_have_text(f"Why {items[3]}")
    keys.press("ArrowRight")
    keys.press("Space")
    expect(page.locator(".lists .mark:focus")).to_have_attribute("aria-pressed", "true")
    keys.press("Home")
    keys.press("ArrowLeft")
    expect(page.locator(".lists button.item").first).to_be_focused()
    keys.press("Escape")
    expect(page.locator("#why")).to_be_hidden()

    tab_to(".grid")
    keys.press("End")
    last = len(trail["items"]) - 1
    expect(page.locator(".grid")).to_have_attribute("aria-activedescendant", f"row-{last}")
    name = page.locator(f"#row-{last} .key").inner_text()
    keys.press("Enter")
    expect(page.locator("#why-title")).to_have_text(f"Why not {name}")
    keys.press("Escape")
    expect(page.locator(".grid")).to_be_focused()


@in_a_browser
def test_a_phone_has_no_horizontal_scroll(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(served, width=360, height=740)
    expect(page.locator("#start")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.goto(address(served, about, 8))
    trail_of(page, served)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(".lists button.item").first.click()
    expect(page.locator("#why .pill")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.keyboard.press("Escape")
    expect(page.locator(".lists button.item").first).to_be_focused()


@in_a_browser
def test_names_are_text_and_nothing_else(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened("about:blank")

    def hostile(body: dict[str, Any]) -> None:
        body["user_facts"] = {PROBE: PROBE}
        body["routes"][0]["route"] = body["items"][0]["route"] = PROBE
        for one in body["items"]:
            one["facts"] = {PROBE: PROBE}
        body["degraded"] = [PROBE]

    changed("**/explain/*", hostile, page)
    changed("**/explain/*/*", lambda body: body.update(because=PROBE, facts={PROBE: PROBE}), page)
    page.goto(address(served, about, PROBE))
    expect(page.locator("#about-title")).to_have_text(f"User {PROBE}")
    expect(page.locator("#about")).to_contain_text("does not know the user")
    expect(page.locator("#left")).to_have_text(f"Left out of this answer: {PROBE}.")
    expect(page.locator(".lists .facts").first).to_contain_text(PROBE)
    page.locator(".lists button.item").first.click()
    expect(page.locator("#why .facts")).to_contain_text(PROBE)
    expect(page.locator("#why .because")).to_have_text(PROBE)
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hit") is None


@in_a_browser
def test_a_stage_that_was_left_out_is_named(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened("about:blank")
    late: list[str] = []

    def degrade(body: dict[str, Any]) -> None:
        late.append(body["routes"][0]["route"])
        body["routes"][0] |= {"state": "late", "ms": 100.0}
        body["degraded"] = [f"route:{late[0]}", "fine"]

    changed("**/explain/*", degrade, page)
    page.goto(address(served, about, 9))
    expect(page.locator("#left")).to_have_text(
        re.compile(r"Left out of this answer: route \w+ \(late\), fine ranking \(the order before it stands\)\.")
    )
    expect(page.locator(".stages tbody tr").first).to_contain_text("late, 100 ms")
    expect(page.locator(".stages th.fine")).to_contain_text("left out")
    assert late[0] in page.locator("#left").inner_text()


@in_a_browser
def test_errors_are_told_in_plain_words(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened(f"{served}/?user=u1&domain=nowhere&k=5", refused=True)
    problem = page.locator("#problem")
    expect(problem).to_contain_text("The service does not take this: ")
    expect(problem).to_contain_text("nowhere")
    page.select_option("#domain", about["domains"][0])
    for status, headers, words in (
        (429, {"Retry-After": "3"}, "Too many requests. Try again in 3 seconds."),
        (503, {}, "The service is not ready or has too much to do (starting). Try again in a moment."),
        (500, {}, "The service failed with status 500: starting."),
    ):
        page.route("**/recommend", partial(refuse, status=status, headers=headers))
        page.click("#ask .main")
        expect(problem).to_have_text(words)
    page.route("**/recommend", lambda route: route.abort())
    page.click("#ask .main")
    expect(problem).to_have_text("The service cannot be reached. Is it still running?")
    page.unroute_all()
    page.click("#ask .main")
    expect(problem).to_be_hidden()
    expect(page.locator("#view")).to_be_visible()


@in_a_browser
def test_the_page_waits_for_a_service_that_starts(opened: Callable[..., Page], served: str, about: dict[str, Any]):
    page = opened("about:blank", refused=True)
    page.route("**/about", partial(refuse, status=503, headers={}))
    page.goto(served)
    expect(page.locator("#problem")).to_contain_text("The service is not ready")
    page.unroute_all()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#domain option")).to_have_text(about["domains"])
