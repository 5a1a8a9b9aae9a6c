// The page of the service: it asks for a list and shows how the funnel made it.
// What the service tells becomes text and nothing else: ids and facts may hold anything.

const STAGES = ["recall", "exposure", "merge", "coarse", "fine", "final"];
const CLOCKS = { recall: "routes", merge: "merge", coarse: "coarse", fine: "fine", final: "final" };
const ROW = 32; // pixels
const PAIRED = 44;
const MOST = 60; // suggestions at once
const STRANGER =
  "This bundle does not know the user: routes that go by a profile or an earlier history stay empty, " +
  "and the rankers read the unknown user.";
const PATIENCE = 20_000; // milliseconds
const AGAIN = 2_000;

const $ = (id) => document.getElementById(id);
const grid = document.querySelector(".grid");

let about = { domains: [], tasks: [], users: [], contexts: [], beside: null };
let sides = []; // what was told for the last request: by the bundle in service, and by the one beside it
let looked = 0; // whose funnel is on view
let before = null; // ranks of the list that the same user had before: item → rank
let marks = new Map(); // item → the tasks that the user is said to have done
let chosen = null; // { item, opener, told, trouble }
let asking = new AbortController();
let asked = "";

// ---- elements and numbers

function fill(made, traits, inside) {
  for (const [key, value] of Object.entries(traits)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...parts(inside));
  return made;
}

const parts = (inside) => inside.flat(Infinity).filter((one) => one != null && one !== false && one !== "");
const put = (into, ...inside) => into.replaceChildren(...parts(inside));

const el = (name, traits = {}, ...inside) => fill(document.createElement(name), traits, inside);
const svg = (name, traits = {}, ...inside) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), traits, inside);

const cell = (kind, ...inside) => el("span", { role: "gridcell", class: kind }, inside);
const header = (kind, text) => el("span", { role: "columnheader", class: kind }, text);

const signed = (text) => text.replace("-", "−");
const count = (x) => (x == null ? "–" : signed(x.toLocaleString("en")));
const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;
const half = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

function score(x) {
  if (x == null) return "–";
  const size = Math.abs(x);
  if (size >= 1000) return count(Math.round(x));
  return signed(x === 0 ? "0" : size < 1e-4 ? x.toExponential(1) : x.toPrecision(size < 0.01 ? 2 : 3));
}

function took(ms) {
  return ms == null ? "–" : `${ms.toFixed(ms < 1 ? 2 : ms < 100 ? 1 : 0)} ms`;
}

function span(time, since) {
  const seconds = (Date.parse(since) - Date.parse(time)) / 1000;
  if (!Number.isFinite(seconds)) return null;
  const size = Math.abs(seconds);
  if (size < 1) return "now";
  const [unit, name] = size < 120 ? [1, "s"] : size < 7200 ? [60, "min"] : size < 172800 ? [3600, "h"] : [86400, "d"];
  return `${count(Math.round(seconds / unit))} ${name}`;
}

const filled = (value) => value != null && value !== "" && value.length !== 0;
const plain = (value) => (Array.isArray(value) ? value.join(", ") : String(value));

function facts(known, time) {
  const { published, ...rest } = known ?? {};
  const age = published && span(published, time);
  return [
    ...Object.entries(rest).filter(([name, value]) => filled(value) && !(name === "tag" && rest.tags?.includes(value)))
      .map(([name, value]) => el("span", {}, el("i", {}, `${name.replace(/_id$/, "")} `), `${plain(value)} `)),
    age && el("span", { title: `published ${published}` }, age, el("i", {}, " old ")),
  ];
}

// ---- the service

class Refused extends Error {
  constructor(message, status = 0, field = null) {
    super(message);
    Object.assign(this, { status, field });
  }
}

async function call(path, { body, signal } = {}) {
  const late = AbortSignal.timeout(PATIENCE);
  const key = $("key").value;
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { "X-API-Key": key }) };
  let reply, told;
  try {
    reply = await fetch(path, {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, late]) : late,
    });
    told = await reply.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (late.aborted) throw new Refused(`The service gave no answer within ${PATIENCE / 1000} seconds.`);
    if (!reply) throw new Refused("The service cannot be reached. Is it still running?");
    if (reply.ok) throw new Refused("The answer of the service broke off. Ask again.");
  }
  if (!reply.ok) throw refusal(reply, told);
  return told;
}

function refusal(reply, told) {
  const wait = Number(reply.headers.get("Retry-After")) || null;
  const later = wait ? `Try again in ${many(wait, "second")}.` : "Try again in a moment.";
  const why = typeof told?.error === "string" ? told.error : "";
  const words = {
    401: "The service wants an API key.",
    403: "The service does not take this API key.",
    404: "The service no longer remembers this answer: ask again.",
    413: "This is longer than the service takes.",
    422: `The service does not take this${why && `: ${why}`}.`,
    429: `Too many requests. ${later}`,
    503: `The service is not ready or has too much to do${why && ` (${why})`}. ${later}`,
    507: "The service has no room for more events; nothing of these was kept.",
  }[reply.status] ?? `The service failed with status ${reply.status}${why && `: ${why}`}.`;
  return new Refused(words, reply.status, told?.field ?? null);
}

function complain(error) {
  const field = error && $({ user: "user", domain: "domain", k: "k" }[String(error.field).split(".").pop()] ?? "none");
  for (const one of [$("user"), $("domain"), $("k")]) one.toggleAttribute("aria-invalid", one === field);
  $("problem").hidden = !error;
  $("view").classList.toggle("stale", error != null);
  $("problem").textContent = error ? error.message : "";
  if (error?.status === 401 || error?.status === 403) {
    $("keyed").hidden = false;
    $("key").focus();
  } else if (field) field.focus();
}

// ---- asking

function question() {
  const context = {};
  for (const field of $("contexts").querySelectorAll("input")) {
    const text = field.value.trim();
    if (text) context[field.name] = String(Number(text)) === text ? Number(text) : text;
  }
  return { user: $("user").value.trim(), domain: $("domain").value, k: $("k").valueAsNumber, context };
}

function address({ user, domain, k, context }) {
  const search = new URLSearchParams({ user, domain, k });
  for (const [name, value] of Object.entries(context)) search.set(`context.${name}`, value);
  if ($("beside").checked) search.set("beside", "1");
  if (chosen) search.set("item", chosen.item);
  return `?${search}`;
}

function restore() {
  const search = new URLSearchParams(location.search);
  const domain = search.get("domain") ?? about.domains[0] ?? "";
  if (domain && !about.domains.includes(domain)) $("domain").append(el("option", {}, domain));
  $("user").value = search.get("user") ?? "";
  $("domain").value = domain;
  $("k").value = search.get("k") ?? 20;
  $("beside").checked = search.has("beside") && about.beside != null;
  for (const field of $("contexts").querySelectorAll("input")) field.value = search.get(`context.${field.name}`) ?? "";
  return search;
}

async function ask({ push = true, item = null, told = "" } = {}) {
  asking.abort();
  const { signal } = (asking = new AbortController());
  const what = question();
  document.body.setAttribute("aria-busy", "true");
  try {
    const both = $("beside").checked ? [false, true] : [false];
    const answers = await Promise.all(both.map((beside) => told_by(what, beside, signal)));
    const same = JSON.stringify([what.user, what.domain, what.k]);
    before = same === asked ? new Map(sides[0].list.map((row) => [row.item, row.rank])) : null;
    [asked, sides, marks, looked] = [same, answers, new Map(), Math.min(looked, answers.length - 1)];
    complain(null);
    if (!item) close({ refocus: false });
    if (push && address(what) !== location.search) history.pushState(null, "", address(what));
    document.title = `${what.user} in ${what.domain} · recfunnel`;
    draw(told);
    if (item) look(item);
  } catch (error) {
    if (signal.aborted) return;
    complain(error);
    if (!sides.length) greet();
  } finally {
    if (asking.signal === signal) document.body.removeAttribute("aria-busy");
  }
}

async function told_by(what, beside, signal) {
  const began = performance.now();
  const answer = await call("recommend", { body: { ...what, beside }, signal });
  const here = performance.now() - began;
  let trail = null, trouble = null;
  try {
    trail = await call(`explain/${encodeURIComponent(answer.request)}`, { signal });
  } catch (error) {
    if (signal.aborted) throw error;
    trouble = error.message;
  }
  const sizes = Object.fromEntries((trail?.stages ?? []).map(({ stage, items }) => [stage, items]));
  const merged = (trail?.items ?? []).map((row) => ({ ...row, reach: reached(row, sizes) }));
  merged.sort((a, b) => b.reach - a.reach || standing(a) - standing(b));
  const byItem = new Map(merged.map((row) => [row.item, row]));
  const list = answer.items.map((row) => ({ ...byItem.get(row.item), ...row }));
  const most = {}, middle = {};
  for (const row of [...merged, ...list])
    for (const [task, value] of Object.entries(row.scores ?? {})) most[task] = Math.max(most[task] ?? 0, value);
  const scored = list.filter((row) => row.scores);
  for (const task of Object.keys(most)) middle[task] = half(scored.map((row) => row.scores[task] ?? 0));
  const tasks = Object.keys(most), whys = new Map();
  return { answer, trail, trouble, here, sizes, merged, byItem, list, most, middle, tasks, whys };
}

const standing = (row) => row.final_rank ?? row.fine_rank ?? row.coarse_rank ?? row.position;

// The last stage that kept a merged item, by its place in STAGES.
function reached(row, sizes) {
  if (row.final_rank != null) return 5;
  if (row.stage === "merge") return 2;
  return standing(row) <= sizes.fine ? 4 : 3;
}

const side = () => sides[looked];
const bare = (task) => task.replaceAll("_", " ");

function draw(told) {
  $("start").hidden = true;
  $("view").hidden = false;
  drawStatus();
  drawFunnel();
  drawList(told);
  drawUser();
  table.fill(side());
}

function drawStatus() {
  const { answer, here, trouble } = sides[0];
  put($("status"),
    el("span", {}, `${many(answer.items.length, "item")} in `, el("b", {}, took(answer.ms.total)),
      el("i", {}, `, ${took(here)} seen from here`)),
    el("span", {}, el("i", {}, "at "), answer.time.replace("T", " ").replace(/(\.\d+)?(Z|\+00:00)$/, " UTC")),
    el("span", {}, el("i", {}, "by "), sides.map((one) => one.answer.bundle).join(" and ")),
    !$("key").value && el("a", { href: `explain/${encodeURIComponent(answer.request)}`, target: "_blank" }, "JSON"),
    trouble && el("b", { class: "warn" }, `How the list came about cannot be shown. ${trouble}`));
}

// ---- the funnel: stages from left to right, below them what each route has in them, and their time

function plainly(name, trail) {
  const route = name.startsWith("route:") && name.slice(6);
  const state = route && trail.routes.find((one) => one.route === route)?.state;
  if (route) return `route ${route}${state && state !== "ok" ? ` (${state})` : ""}`;
  return {
    coarse: "coarse ranking (the order of the merge stands)",
    fine: "fine ranking (the order before it stands)",
    diversity: "re-ranking for diversity",
    cache: "the cache",
  }[name] ?? name;
}

function drawFunnel() {
  const one = side(), { trail } = one;
  $("funnel").hidden = !trail;
  $("sides").hidden = sides.length < 2;
  put($("sides"), sides.map(({ answer }, n) =>
    el("button", { type: "button", "aria-pressed": String(n === looked), onclick: () => turn(n) }, answer.bundle)));
  if (!trail) return;
  const out = trail.degraded.map((name) => plainly(name, trail));
  $("left").className = out.length ? "note warn" : "note";
  $("left").textContent = out.length ? `Left out of this answer: ${out.join(", ")}.` : "No stage was left out.";
  const picture = el("td", { colspan: trail.stages.length }, shape(trail.stages));
  put(
    document.querySelector(".stages"),
    el("table", {},
      el("caption", {}, "Items in each stage, of each route, and milliseconds"),
      el("thead", {},
        el("tr", {}, el("td"), heads(trail)),
        el("tr", { class: "shape", "aria-hidden": "true" }, el("td", {}, el("small", {}, "root scale")), picture)),
      el("tbody", {}, byRoute(one)),
      el("tfoot", {}, times(trail))));
}

function heads({ stages, degraded }) {
  return stages.map(({ stage, items, taken }, n) => {
    const lost = n ? stages[n - 1].items - items : 0;
    const only = () => table.only(`reached ${stage}`, "");
    const note = degraded.includes(stage)
      ? el("small", { class: "warn" }, "left out")
      : el("small", {}, lost ? `${lost > 0 ? "−" : "+"}${count(Math.abs(lost))}` : " ",
          taken > 0 && el("span", { class: "far" }, " shown lately"));
    return el("th", { scope: "col", class: stage },
      STAGES.indexOf(stage) < 2
        ? el("span", {}, stage)
        : el("button", { type: "button", title: `Show the items that reached ${stage}`, onclick: only }, stage),
      el("b", {}, count(items)), note);
  });
}

function byRoute({ trail, merged }) {
  const keys = { recall: "recalled", exposure: "exposed", merge: "merged" };
  const kept = (route, stage) =>
    merged.filter((row) => row.route === route && row.reach >= STAGES.indexOf(stage)).length;
  const columns = trail.stages.map(({ stage }) => {
    const held = trail.routes.map((row) => row[keys[stage] ?? stage] ?? kept(row.route, stage));
    return { stage, held, most: Math.max(1, ...held) };
  });
  return trail.routes.map(({ route, state, ms }, n) => {
    const title = `Show the items of ${route}`, told = state === "ok" ? took(ms) : `${state}, ${took(ms)}`;
    return el("tr", {},
      el("th", { scope: "row" },
        el("button", { type: "button", title, onclick: () => table.only("", route) }, route),
        el("small", { class: state === "late" || state === "failed" ? "warn" : "" }, told)),
      columns.map(({ stage, held, most }) =>
        el("td", { class: `${stage} bar`, "--share": held[n] / most },
          held[n] ? `${stage === "exposure" ? "−" : ""}${count(held[n])}` : "·")));
  });
}

function times({ stages, ms }) {
  const known = [...Object.values(CLOCKS), "total"];
  const rest = Object.keys(ms).filter((name) => !known.includes(name)).map((name) => `${bare(name)} ${took(ms[name])}`);
  const slowest = Math.max(0.001, ...stages.map(({ stage }) => ms[CLOCKS[stage]] ?? 0));
  return el("tr", { class: "times" },
    el("th", { scope: "row" }, "time",
      el("small", {}, took(ms.total), rest.length > 0 && `, of it ${rest.join(", ")}`)),
    stages.map(({ stage }) => {
      const value = ms[CLOCKS[stage]];
      if (value == null) return el("td");
      const unit = el("span", { class: "far" }, " ms");
      return el("td", { class: `${stage} bar`, "--share": value / slowest }, took(value).replace(" ms", ""), unit);
    }));
}

// The picture: a block for each stage, as high as the root of its items, that flows into the next.
function shape(stages) {
  const most = Math.max(1, ...stages.map(({ items }) => items));
  const highs = stages.map(({ items }) => Math.max(0.6, 48 * Math.sqrt(items / most)));
  const blocks = stages.map(({ stage }, n) => {
    const x = 100 * n, end = x + 70, [top, low] = [50 - highs[n], 50 + highs[n]];
    const block = svg("path", { d: `M${x} ${top}H${end}V${low}H${x}z` });
    if (n === stages.length - 1) return svg("g", { class: stage }, block);
    const next = x + 100, bend = x + 85, [nextTop, nextLow] = [50 - highs[n + 1], 50 + highs[n + 1]];
    const down = `M${end} ${top}C${bend} ${top} ${bend} ${nextTop} ${next} ${nextTop}`;
    const back = `V${nextLow}C${bend} ${nextLow} ${bend} ${low} ${end} ${low}z`;
    return svg("g", { class: stage }, block, svg("path", { class: "flow", d: down + back }));
  });
  return svg("svg", { viewBox: `0 0 ${100 * stages.length} 100`, preserveAspectRatio: "none" }, blocks);
}

function turn(number) {
  looked = number;
  drawFunnel();
  drawUser();
  table.fill(side());
  $("sides").children[number].focus();
  if (chosen) look(chosen.item, chosen.opener, { step: true });
}

// ---- the final list, alone or beside another

function arrow(from, to, none) {
  if (from == null) return el("em", { class: "new" }, none);
  if (from === to) return el("em", { class: "same", title: "the same rank" }, "=");
  const up = from > to, places = Math.abs(from - to);
  const title = `${many(places, "rank")} ${up ? "higher" : "lower"}, ${to} from ${from}`;
  return el("em", { class: up ? "up" : "down", title }, `${up ? "↑" : "↓"}${places}`);
}

const opens = (item) => el("button", {
  type: "button", class: "item", "data-item": item, title: item, "aria-expanded": String(chosen?.item === item),
  onclick: (event) => look(item, event.currentTarget),
}, item);

function drawList(told) {
  $("list").classList.toggle("moved", before != null && sides.length < 2);
  put(document.querySelector(".lists"), sides.length > 1 ? pair() : single());
  $("changes").textContent = [told, sides.length > 1 ? shared() : changes()].filter(Boolean).join(" ");
  for (const rows of document.querySelectorAll(".lists [role=grid]")) roving(rows);
  fit();
  drawFeedback();
}

const named = (row, time) => [opens(row.item), el("span", { class: "facts" }, facts(row.facts, time))];
const found = ({ routes }) => (routes ?? []).map(({ route, rank }) => `${route} ${rank}`).join(", ");
const others = ({ routes }) => routes?.length > 1 && el("i", {}, ` +${routes.length - 1}`);

function single() {
  const { answer, list, most, tasks } = side(), shown = tasks.length ? tasks : about.tasks;
  if (!list.length) return el("p", { class: "note" }, "The list is empty: no route gave an item that may be shown.");
  const head = [
    ...["", "", "item", "route"].map((text) => header("name", text)),
    ...["merge", "coarse", "fine"].map((text) => header("step", text)),
    ...["score", ...shown.map(bare)].map((text) => header("", text)),
  ];
  const rows = list.map((row) => el("div", { role: "row" },
    cell("rank", row.rank),
    cell("moves", before && arrow(before.get(row.item), row.rank, "new")),
    cell("name", named(row, answer.time)),
    el("span", { class: "way" },
      el("span", { role: "gridcell", class: "name", title: found(row) }, row.route ?? "–", others(row)),
      cell("step merge", count(row.position)),
      cell("step coarse", count(row.coarse_rank)),
      cell("step fine", count(row.fine_rank))),
    el("span", { role: "gridcell", class: "score", title: row.score }, score(row.score)),
    el("span", { class: "tasks" }, shown.map((task) => cell("", mark(row, task, most))))));
  const traits = { class: "rows", role: "grid", "aria-label": "The final list", "--tasks": shown.length };
  return el("div", traits, el("div", { role: "row", class: "head" }, head), rows);
}

function changes() {
  const { list } = side(), now = new Set(list.map((row) => row.item));
  if (!before) return list.length && about.tasks.length ? "Press a task to say that the user did it." : "";
  const fresh = list.filter((row) => !before.has(row.item)).length;
  const gone = [...before.keys()].filter((item) => !now.has(item)).length;
  const moved = list.filter((row) => before.has(row.item) && before.get(row.item) !== row.rank).length;
  if (!fresh && !gone && !moved) return "The same as the list before.";
  return `Against the list before: ${fresh} new, ${moved} moved, ${gone} gone.`;
}

// A task's score; where a user can do the task, a button that says so.
function mark(row, task, most) {
  const value = row.scores?.[task], label = el("span", { class: "label" }, bare(task), " ");
  const inside = most ? [label, score(value)] : bare(task), share = value == null ? 0 : value / (most[task] || 1);
  if (!about.tasks.includes(task)) return el("span", { class: "bar", "--share": share }, inside);
  return el("button", {
    type: "button", class: "bar mark", "--share": share, "data-item": row.item, "data-task": task,
    "aria-pressed": String(marks.get(row.item)?.has(task) ?? false), onclick: () => toggle(row.item, task),
    title: `Say that the user did this: ${bare(task)}`,
  }, inside);
}

function shared() {
  const { both, ranks } = twins(), same = both.filter((row) => ranks[1].get(row.item) === row.rank).length;
  const longest = Math.max(ranks[0].size, ranks[1].size);
  return `${both.length} of ${longest} items in both lists, ${same} at the same rank.`;
}

function twins() {
  const ranks = sides.map(({ list }) => new Map(list.map((row) => [row.item, row.rank])));
  return { ranks, both: sides[0].list.filter((row) => ranks[1].has(row.item)) };
}

function pair() {
  const { both, ranks } = twins();
  const column = ({ answer, list }, n) =>
    el("div", { class: "rows compact", role: "grid", "aria-label": `The list of ${answer.bundle}` },
      el("div", { role: "row", class: "head" },
        header("name", answer.bundle), el("span", { class: "far" }, took(answer.ms.total))),
      list.map((row) => el("div", { role: "row", "data-twin": row.item },
        cell("rank", row.rank),
        cell("moves", arrow(ranks[1 - n].get(row.item), row.rank, "only here")),
        cell("name", named(row, answer.time)),
        cell("score", score(row.score)))));
  const middle = (rank) => PAIRED * (rank - 0.5), height = PAIRED * Math.max(ranks[0].size, ranks[1].size);
  const lines = both.map(({ item, rank }) => {
    const [from, to] = [middle(rank), middle(ranks[1].get(item))];
    const way = to < from ? "up" : to > from ? "down" : "same";
    return svg("path", { class: way, d: `M0 ${from}C30 ${from} 30 ${to} 60 ${to}`, "data-twin": item });
  });
  const between = svg("svg", { viewBox: `0 0 60 ${height}`, width: 60, height, "aria-hidden": "true" }, lines);
  const made = el("div", { class: "pair" }, column(sides[0], 0), between, column(sides[1], 1));
  const all = [...made.querySelectorAll("[data-twin]")];
  const light = (item) => all.forEach((one) => one.classList.toggle("lit", one.dataset.twin === item));
  for (const kind of ["pointerover", "focusin"])
    made.addEventListener(kind, (event) => light(event.target.closest?.("[data-twin]")?.dataset.twin));
  made.addEventListener("pointerleave", () => light());
  return made;
}

// Rows of the list take another form where they have not the room.
function fit() {
  const rows = document.querySelector(".lists > .rows");
  if (!rows) return;
  const room = rows.clientWidth / 16 - 4.3 * Number(rows.style.getPropertyValue("--tasks"));
  rows.classList.toggle("short", room >= 26.5 && room < 37);
  rows.classList.toggle("stacked", room < 26.5);
}

// One stop of the tab key for all buttons of a grid; arrows go from one to the next.
function roving(rows) {
  const lines = [...rows.querySelectorAll("[role=row]:not(.head)")].map((row) => [...row.querySelectorAll("button")]);
  const all = lines.flat();
  const only = (button) => all.forEach((one) => { one.tabIndex = one === button ? 0 : -1; });
  if (all.length) only(all[0]);
  rows.addEventListener("focusin", (event) => all.includes(event.target) && only(event.target));
  rows.addEventListener("keydown", (event) => {
    const y = lines.findIndex((line) => line.includes(event.target));
    if (y < 0) return;
    const x = lines[y].indexOf(event.target), last = lines.length - 1;
    const [to, at] = {
      ArrowDown: [Math.min(y + 1, last), x], ArrowUp: [Math.max(y - 1, 0), x], Home: [0, x], End: [last, x],
      ArrowRight: [y, x + 1], ArrowLeft: [y, x - 1],
    }[event.key] ?? [];
    const next = to == null ? null : lines[to][Math.min(at, lines[to].length - 1)];
    if (to != null) event.preventDefault();
    if (!next) return;
    next.focus();
    if (chosen && to !== y) follow(next.dataset.item, next);
  });
}

let following;
function follow(item, opener) {
  clearTimeout(following);
  following = setTimeout(() => chosen && chosen.item !== item && look(item, opener, { step: true }), 120);
}

// ---- what the user did, and the next list

function toggle(item, task) {
  const done = marks.get(item) ?? new Set();
  if (!done.delete(task)) done.add(task);
  if (done.size) marks.set(item, done);
  else marks.delete(item);
  drawFeedback();
}

function drawFeedback() {
  for (const button of document.querySelectorAll("[data-task]"))
    button.setAttribute("aria-pressed", String(marks.get(button.dataset.item)?.has(button.dataset.task) ?? false));
  $("feedback").hidden = !marks.size;
  $("feedback").querySelector("p").textContent = `${many(marks.size, "item")} marked`;
}

async function send() {
  const { answer } = sides[0], events = sides[0].list
    .filter((row) => marks.has(row.item) || $("rest").checked)
    .map(({ item }) => ({
      user: answer.user, item, domain: answer.domain, request: answer.request,
      labels: Object.fromEntries([...(marks.get(item) ?? [])].map((task) => [task, 1])),
    }));
  $("send").disabled = true;
  try {
    const { accepted } = await call("events", { body: { events } });
    await ask({ push: false, told: `${many(accepted, "event")} taken in.` });
    document.querySelector(".lists [tabindex='0']")?.focus({ preventScroll: true });
  } catch (error) {
    complain(error);
  } finally {
    $("send").disabled = false;
  }
}

// ---- why this item, why not that one

async function look(item, opener = document.activeElement, { step = false } = {}) {
  const one = side(), wide = matchMedia("(min-width: 75rem)").matches;
  chosen = { item, opener, told: one.whys.get(item), trouble: null };
  expand(item);
  history.replaceState(null, "", address({ ...question(), user: one.answer.user, domain: one.answer.domain }));
  drawWhy();
  table.paint();
  document.querySelector("aside").scrollTop = 0;
  if (!wide && !step) $("why").focus({ preventScroll: true });
  if (chosen.told) return;
  const mine = chosen;
  try {
    mine.told = await call(`explain/${encodeURIComponent(one.answer.request)}/${encodeURIComponent(item)}`);
    one.whys.set(item, mine.told);
  } catch (error) {
    mine.trouble = error.message;
  }
  if (chosen === mine) drawWhy();
}

function expand(item) {
  for (const button of document.querySelectorAll("button.item"))
    button.setAttribute("aria-expanded", String(button.dataset.item === item));
}

function close({ refocus = true } = {}) {
  if (!chosen) return;
  const { opener } = chosen;
  chosen = null;
  $("why").hidden = true;
  expand(null);
  if (!refocus) return;
  history.replaceState(null, "", address(question()));
  table.paint();
  if (opener?.isConnected) opener.focus({ preventScroll: true });
}

function drawWhy() {
  const { item, told, trouble } = chosen, one = side(), row = one.byItem.get(item);
  const shown = told ? told.shown : row?.final_rank != null;
  const fell = shown ? null : (told?.stage ?? (row && (row.reach > 2 ? "fine" : "coarse")));
  const would = !shown && fell !== "fine" && told?.would_rank != null;
  const title = el("h2", { id: "why-title" }, el("i", {}, shown || !told ? "Why " : "Why not "), item);
  $("why").hidden = false;
  put(
    $("why"),
    el("div", { class: "title" }, title,
      el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => close() }, "×")),
    el("p", {}, verdict(shown ? (row?.final_rank ?? told.rank) : null, fell)),
    el("p", { class: "because" },
      trouble ? el("span", { class: "warn" }, trouble) : (told?.because ?? "Asking…"),
      would && ` By its fine scores it would stand at rank ${count(told.would_rank)}.`),
    el("p", { class: "facts" }, facts(told?.facts ?? row?.facts, one.answer.time)),
    (told || row) && el("ol", { class: "steps" }, steps(one, row, told, fell)),
    judged(one, told?.scores ?? row?.scores),
    one.list.some((listed) => listed.item === item) && about.tasks.length > 0 && [
      el("h3", {}, "The user did"),
      el("p", { class: "did" }, about.tasks.map((task) => mark({ item }, task))),
    ]);
}

function verdict(rank, fell) {
  if (rank != null) return el("span", { class: "pill yes" }, `in the list, rank ${rank}`);
  const words = fell === "recall" ? "not recalled" : STAGES.includes(fell) ? `cut by ${fell}` : (fell ?? "…");
  return el("span", { class: fell ? "pill no" : "pill" }, words);
}

function steps(one, row, told, fell) {
  const end = fell ? STAGES.indexOf(fell) : STAGES.length;
  const routes = told?.routes?.length ? told.routes : (row?.routes ?? []);
  return STAGES.map((stage, n) => {
    const state = n < end ? "passed" : n === end ? "fell" : "never";
    const inside = parts([step[stage]({ one, row, told, routes, state })]);
    return el("li", { class: `${stage} ${state}` }, el("span", { class: "stage" }, stage),
      el("div", {}, inside.length ? inside : "–"));
  });
}

// What an item's way has to tell of each stage.
const step = {
  recall: ({ routes, state }) =>
    routes.length
      ? routes.map(({ route, rank, score: points }) => el("span", { class: "part" },
          route, el("i", {}, " at "), el("b", {}, count(rank)), el("i", {}, ` (${score(points)})`)))
      : state === "fell" && "no route found it",
  exposure: ({ state }) => ({ passed: "not shown lately", fell: "shown lately, so taken out" })[state],
  merge: ({ one, row, state }) =>
    row
      ? [el("b", {}, count(row.position)), el("i", {}, ` of ${count(one.sizes.merge)}, given by `), row.route]
      : state === "fell" && "no place was left",
  coarse: (way) => ranked(way, "coarse", "coarse_rank", "coarse", way.one.sizes.coarse, "go on"),
  fine: (way) => ranked(way, "fine", "fine_rank", "score", way.one.sizes.final, "are shown"),
  final: ({ one, row }) =>
    row?.final_rank != null && [el("b", {}, count(row.final_rank)), el("i", {}, ` of ${count(one.sizes.final)}`)],
};

function ranked({ one, row, told, state }, stage, rank, value, limit, kept) {
  if (one.trail?.degraded.includes(stage)) return el("span", { class: "warn" }, "left out of this answer");
  if (row?.[rank] != null) {
    const drawn = curve(one.merged.map((other) => [other[rank], other[value]]), limit, row[rank], row[value]);
    return [el("b", {}, count(row[rank])), el("i", {}, `, ${count(limit)} ${kept}; score `), score(row[value]), drawn];
  }
  if (state !== "fell" || told?.rank == null) return null;
  return [el("b", {}, count(told.rank)), el("i", {}, `, ${count(told.limit)} ${kept}`)];
}

function judged({ most, middle, tasks }, scores) {
  if (!scores) return null;
  const bars = Object.entries(scores).map(([task, value]) => {
    const end = Math.max(most[task] ?? Infinity, value) || 1, usual = middle[task];
    const tick = usual != null && el("span", { class: "tick", "--share": Math.min(1, usual / end) });
    const title = usual == null ? null : `the middle of the list: ${score(usual)}`;
    const bar = el("dd", { class: "bar fine", "--share": value / end, title }, score(value), tick);
    return [el("dt", {}, bare(task)), bar];
  });
  const note = "Bars end at the highest score of this request; the tick is the middle of the list.";
  const told = tasks.length > 0 && el("p", { class: "note" }, note);
  return [el("h3", {}, "Fine scores"), el("dl", { class: "scores" }, bars), told];
}

// Scores by rank, the cut and where the item stands.
function curve(pairs, cut, rank, value) {
  const points = pairs.filter(([r, s]) => r != null && s != null).sort(([a], [b]) => a - b);
  if (points.length < 2) return null;
  const last = points.at(-1)[0], scores = points.map(([, s]) => s);
  const low = Math.min(...scores), high = Math.max(...scores);
  const x = (r) => (300 * (r - 1)) / Math.max(1, last - 1);
  const y = (s) => 33 - (30 * (s - low)) / (high - low || 1);
  const line = points.map(([r, s]) => `${x(r).toFixed(1)} ${y(s).toFixed(1)}`).join("L");
  const end = x(cut + 0.5);
  return svg("svg", { class: "curve", viewBox: "0 0 300 36", preserveAspectRatio: "none", "aria-hidden": "true" },
    cut < last && svg("rect", { x: end, y: 0, width: 300 - end, height: 36 }),
    svg("path", { d: `M${line}` }),
    svg("path", { class: "here", d: `M${x(rank)} 0V36` }),
    svg("path", { class: "dot", d: `M${x(rank)} ${y(value)}h.01` }));
}

// ---- the user

function drawUser() {
  const { answer, trail } = side(), past = trail?.history ?? [];
  put($("about"),
    el("h2", { id: "about-title" }, el("i", {}, "User "), answer.user),
    !answer.known_user && el("p", { class: "note" }, STRANGER),
    listed(trail?.user_facts),
    el("h3", {}, past.length ? `History, the latest ${past.length}` : "No history"),
    el("ol", { class: "past" }, past.map((one) => el("li", {},
      el("time", { datetime: one.time, title: one.time }, span(one.time, answer.time)), opens(one.item),
      el("span", { class: "facts" }, facts(one.facts, answer.time))))),
    Object.keys(answer.arms ?? {}).length > 0 && [el("h3", {}, "Arms of experiments"), listed(answer.arms)]);
}

function listed(values) {
  const known = Object.entries(values ?? {}).filter(([, value]) => filled(value));
  const lines = known.map(([name, value]) => [el("dt", {}, bare(name)), el("dd", {}, plain(value))]);
  return known.length > 0 && el("dl", {}, lines);
}

// ---- all merged items: only the rows in sight are in the page

const text = ({ item, facts: known, routes }) =>
  [item, ...Object.values(known ?? {}), ...(routes ?? []).map(({ route }) => route)].join(" ").toLowerCase();

function options(select, all) {
  const kept = select.value;
  put(select, all.map(([value, name]) => el("option", { value }, name)));
  select.value = all.some(([value]) => value === kept) ? kept : "";
}

const table = {
  rows: [], all: [], columns: [], sort: null, down: false, active: 0, made: new Map(), body: null,

  fill(one) {
    this.all = one.merged.map((row) => ({ ...row, text: text(row) }));
    const rank = (key, name, wide) => ({ key, name, wide, of: (row) => row[key], cell: (row) => count(row[key]) });
    const points = (key, name, wide) => ({ ...rank(key, name, wide), cell: (row) => score(row[key]), down: true });
    this.columns = [
      { key: "item", name: "item", wide: "7rem", kind: "name key", of: (row) => row.item, cell: (row) => row.item },
      { key: "route", name: "route", wide: "8rem", kind: "name", of: (row) => row.route,
        cell: (row) => el("span", { title: found(row) }, row.route, others(row)) },
      rank("position", "merge", "3.9rem"),
      rank("coarse_rank", "coarse", "4.1rem"),
      points("coarse", "coarse score", "6.6rem"),
      rank("fine_rank", "fine", "3.4rem"),
      rank("final_rank", "final", "3.4rem"),
      points("score", "score", "5.3rem"),
      ...one.tasks.map((task) => ({
        key: task, name: bare(task), wide: "5.3rem", kind: "bar fine", down: true, of: (row) => row.scores?.[task],
        cell: (row) => score(row.scores?.[task]), share: (row) => (row.scores?.[task] ?? 0) / (one.most[task] || 1),
      })),
      { key: "facts", name: "facts", wide: "minmax(16rem, 1fr)", kind: "name facts",
        cell: (row) => facts(row.facts, one.answer.time) },
    ];
    const size = (test) => count(one.merged.filter((row) => test(row.reach)).length);
    options($("stage"), [
      ["", "every stage"],
      ...STAGES.slice(2).map((stage, n) => [`reached ${stage}`, `reached ${stage}: ${size((at) => at >= n + 2)}`]),
      ["cut by coarse", `cut by coarse: ${size((at) => at === 2)}`],
      ["cut by fine", `cut by fine: ${size((at) => at === 3 || at === 4)}`],
    ]);
    options($("route"), [["", "every route"], ...(one.trail?.routes ?? []).map(({ route }) => [route, route])]);
    $("all").hidden = !one.merged.length;
    this.choose();
  },

  only(stage, route) {
    $("stage").value = stage;
    $("route").value = route;
    $("find").value = "";
    this.choose();
    $("all").scrollIntoView({ block: "start" });
    grid.focus({ preventScroll: true });
  },

  choose() {
    const [, how, stage] = /^(.*?) ?(\w*)$/.exec($("stage").value), route = $("route").value;
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const place = STAGES.indexOf(stage), cut = stage === "coarse" ? [2] : [3, 4];
    const fits = (row) =>
      (!how || (how === "reached" ? row.reach >= place : cut.includes(row.reach))) &&
      (!route || row.route === route || row.routes?.some((one) => one.route === route)) &&
      words.every((word) => row.text.includes(word));
    this.rows = this.all.filter(fits);
    const column = this.columns.find(({ key }) => key === this.sort);
    if (column) {
      const way = this.down ? -1 : 1;
      this.rows.sort((a, b) => {
        const [x, y] = [column.of(a), column.of(b)];
        if (x == null || y == null) return (x == null) - (y == null);
        return way * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
      });
    }
    const some = this.rows.length < this.all.length ? `${count(this.rows.length)} of ` : "";
    $("found").textContent = `${some}${count(this.all.length)}`;
    this.active = 0;
    this.build();
  },

  build() {
    const focused = document.activeElement?.closest?.(".grid .head") && document.activeElement.dataset.key;
    grid.style.setProperty("--columns", this.columns.map(({ wide }) => wide).join(" "));
    grid.setAttribute("aria-rowcount", this.rows.length + 1);
    const way = this.down ? "descending" : "ascending";
    const head = el("div", { role: "row", class: "head", "aria-rowindex": 1 },
      this.columns.map(({ key, name, kind, of, down }) =>
        el("span", { role: "columnheader", class: kind, "aria-sort": this.sort === key ? way : null },
          of ? el("button", { type: "button", "data-key": key, onclick: () => this.by(key, down) }, name) : name)));
    this.made.clear();
    this.body = el("div", { class: "body", role: "rowgroup" });
    this.body.style.height = `${this.rows.length * ROW}px`;
    put(grid, head, this.rows.length ? this.body : el("p", { class: "note" }, "No merged item fits."));
    grid.scrollTop = 0;
    if (focused) head.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    this.paint();
  },

  by(key, down = false) {
    if (this.sort !== key) [this.sort, this.down] = [key, down];
    else if (this.down === down) this.down = !down;
    else this.sort = null;
    this.choose();
  },

  paint() {
    if (!this.body) return;
    const from = Math.max(0, Math.floor(grid.scrollTop / ROW) - 6);
    const to = Math.min(this.rows.length, from + Math.ceil(grid.clientHeight / ROW) + 12);
    for (const [n, line] of this.made) {
      if (n >= from && n < to) continue;
      line.remove();
      this.made.delete(n);
    }
    for (let n = from; n < to; n++) {
      if (!this.made.has(n)) this.make(n);
      const line = this.made.get(n);
      line.classList.toggle("active", n === this.active);
      line.setAttribute("aria-selected", String(this.rows[n].item === chosen?.item));
    }
    if (this.made.has(this.active)) grid.setAttribute("aria-activedescendant", `row-${this.active}`);
    else grid.removeAttribute("aria-activedescendant");
  },

  make(n) {
    const row = this.rows[n], onclick = () => this.go(n, true);
    const line = el("div", { role: "row", id: `row-${n}`, "aria-rowindex": n + 2, class: STAGES[row.reach], onclick },
      this.columns.map(({ kind, cell: inside, share }) =>
        el("span", { role: "gridcell", class: kind, "--share": share?.(row) }, inside(row))));
    line.style.top = `${n * ROW}px`;
    this.body.append(line);
    this.made.set(n, line);
  },

  go(n, open = false) {
    if (!this.rows.length) return;
    this.active = Math.max(0, Math.min(this.rows.length - 1, n));
    const top = this.active * ROW, room = grid.clientHeight - ROW;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + ROW > grid.scrollTop + room) grid.scrollTop = top + ROW - room;
    this.paint();
    const { item } = this.rows[this.active];
    if (open) look(item, grid);
    else if (chosen) follow(item, grid);
  },
};

grid.addEventListener("scroll", () => requestAnimationFrame(() => table.paint()), { passive: true });
grid.addEventListener("keydown", (event) => {
  if (event.target !== grid) return;
  const page = Math.max(1, Math.floor(grid.clientHeight / ROW) - 2);
  const to = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
  if (to != null) table.go(table.active + to);
  else if (event.key === "Enter" || event.key === " ") table.go(table.active, true);
  else return;
  event.preventDefault();
});
new ResizeObserver(() => table.paint()).observe(grid);
new ResizeObserver(fit).observe(document.querySelector(".lists"));
for (const name of ["stage", "route"]) $(name).addEventListener("change", () => table.choose());
$("find").addEventListener("input", () => table.choose());

// ---- suggestions of users

const suggestions = {
  at: -1,

  show(all = false) {
    const part = all ? "" : $("user").value.trim().toLowerCase();
    const begins = (user) => user.toLowerCase().startsWith(part);
    const fit = about.users.filter((user) => user.toLowerCase().includes(part)).sort((a, b) => begins(b) - begins(a));
    const take = (user) => {
      $("user").value = user;
      this.hide();
      $("ask").requestSubmit();
    };
    put($("users"), fit.slice(0, MOST).map((user, n) => el("li", {
      role: "option", id: `user-${n}`, "aria-selected": "false",
      onpointerdown: (event) => event.preventDefault(), onclick: () => take(user),
    }, user)));
    this.move(-1);
    $("users").hidden = !fit.length;
    $("user").setAttribute("aria-expanded", String(fit.length > 0));
  },

  hide() {
    $("users").hidden = true;
    $("user").setAttribute("aria-expanded", "false");
    this.move(-1);
  },

  move(to) {
    const all = [...$("users").children];
    this.at = all.length ? Math.max(-1, Math.min(all.length - 1, to)) : -1;
    all.forEach((one, n) => one.setAttribute("aria-selected", String(n === this.at)));
    if (this.at < 0) return $("user").removeAttribute("aria-activedescendant");
    $("user").setAttribute("aria-activedescendant", `user-${this.at}`);
    all[this.at].scrollIntoView({ block: "nearest" });
  },

  keys(event) {
    const open = !$("users").hidden;
    if (event.key === "ArrowDown" && !open) this.show(true);
    if (event.key === "ArrowDown") this.move(this.at + 1);
    else if (event.key === "ArrowUp" && open) this.move(this.at - 1);
    else if (event.key === "Escape" && open) this.hide();
    else if (event.key === "Enter" && open && this.at >= 0) {
      $("user").value = $("users").children[this.at].textContent;
      return this.hide();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  },
};

$("user").addEventListener("input", () => suggestions.show());
$("user").addEventListener("click", () => suggestions.show(true));
$("user").addEventListener("keydown", (event) => suggestions.keys(event));
$("user").addEventListener("blur", () => suggestions.hide());

// ---- the rest of the controls

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  suggestions.hide();
  $("context").open = false;
  ask();
});
for (const name of ["beside", "domain"]) $(name).addEventListener("change", () => {
  if (sides.length || document.body.hasAttribute("aria-busy")) $("ask").requestSubmit();
});
$("whynot").addEventListener("submit", (event) => {
  event.preventDefault();
  if (sides.length) look($("other").value.trim(), $("other"));
});
$("send").addEventListener("click", send);
$("clear").addEventListener("click", () => { marks.clear(); drawFeedback(); });
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("context").open) $("context").open = false;
  else if (event.key === "Escape") close();
});
addEventListener("popstate", () => begin());

function begin() {
  const search = restore();
  if ($("user").value) return ask({ push: false, item: search.get("item") });
  [sides, asked] = [[], ""];
  $("view").hidden = true;
  put($("status"));
  document.title = "recfunnel";
  greet();
  if (matchMedia("(min-width: 40rem)").matches) $("user").focus();
}

function greet() {
  $("start").hidden = false;
  put(document.querySelector(".chips"), about.users.slice(0, 24).map((user) => el("li", {}, el("a", {
    href: `?${new URLSearchParams({ user, domain: $("domain").value, k: $("k").value })}`,
  }, user))));
}

async function open() {
  try {
    about = { ...about, ...(await call("about")) };
    complain(null);
  } catch (error) {
    complain(error);
    if (!error.status || error.status === 503) setTimeout(open, AGAIN);
    return;
  }
  put($("domain"), about.domains.map((name) => el("option", {}, name)));
  $("besides").hidden = about.beside == null;
  $("besides").querySelector("b").textContent = about.beside ?? "";
  $("context").hidden = !about.contexts.length;
  put($("contexts"), about.contexts.map((name) =>
    el("label", {}, el("span", {}, name), el("input", { name, maxlength: 200, spellcheck: "false" }))));
  begin();
}

$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); open(); });
open();
