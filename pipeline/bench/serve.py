"""The service under load, which the same machine makes: a market of a million items, ten routes, 2,000 merged
items a request, 300 of them for the fine ranker, 50 for the list.

First weights are as fast as trained ones, so that nothing is trained. The service runs as `recfunnel serve` does, in a
process of its own, and is asked over HTTP: first one request at a time, then by so many clients as fast as they get
answers (closed loop), then as requests come (open loop, Poisson arrivals), of which a latency counts from the moment at
which a request was due, so that waiting is not left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import aiohttp
import numpy as np
import torch

from models import RANKERS
from models.coarse import Coarse
from pipeline import config
from pipeline.bench.market import features_of
from pipeline.features.store import FeatureStore
from pipeline.lake import write_json
from pipeline.ranking import coarse, fine
from pipeline.recall import candidates, trained, two_tower
from pipeline.serving import bundle, registry

ROUTES = ("two_tower", "item_cf", "swing", "tag", "follow", "similar_author", "content", "hot", "fresh", "cache")
WARM_UP = 300
STARTED = 60.0


def bench(
    users: int = 100_000,
    items: int = 1_000_000,
    impressions: int = 1_000_000,
    length: int = 50,
    per_route: int = 500,
    merged: int = 2_000,
    keep: int = 300,
    requests: int = 1_000,
    clients: int = 16,
    rate: int = 0,
    seconds: int = 20,
    processes: int = 1,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Latencies of `requests` asked one at a time; requests a second of `clients` in `seconds`; latencies of as long
    with `rate` requests a second on average, by default 70 % of what the clients reached. `processes` and `threads` are
    those of `[serve]`.

    A tenth of all users asked are strangers. `cold_start_s` is from the command to the first answer; the load comes
    when all processes are there. `rss_gib` is the memory of all of them, pages that several share divided among these.
    `service_ms` and `load_ms` are processor time a request of the closed loop, of the service and of this load.
    """
    settings = config.Config(
        name="bench",
        seed=seed,
        features=config.Features(length=length),
        recall=config.Recall(routes=ROUTES, per_route=per_route, merged=merged),
        coarse=config.Coarse(keep=keep),
        fine=config.Fine(model="composed", options={"encoder": "din", "epnet": True, "ppnet": True}),
    )
    market = features_of(users=users, items=items, impressions=impressions, seed=seed, features=settings.features)
    with (
        market as made,
        tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place,
    ):
        folder = Path(place)
        written = bundled(made, folder, settings)
        random = np.random.default_rng(seed)
        asked = bodies(FeatureStore.open(made), random, 50_000)
        settled = (f"processes={processes}", f"threads={threads}")
        with served(folder, "--bundle", str(written), *settled) as (address, began, process):
            while _ready(address) < processes:
                time.sleep(0.05)
            figures = asyncio.run(_measure(address, process.pid, asked, requests, clients, rate, seconds, random))
            figures |= {"cold_start_s": began, "rss_gib": resident(process.pid), **_stages(address)}
        on_disk = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    return {"items": items, "routes": len(ROUTES), **figures, "bundle_gib": on_disk / 2**30}


def bundled(features: Path, folder: Path, settings: config.Config) -> Path:
    """The bundle of a market whose models have their first weights, of the settings' seed."""
    torch.manual_seed(settings.seed)
    store = FeatureStore.open(features)
    places = {name: folder / name for name in ("two_tower", "fine", "coarse")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    content = two_tower.content_width(store)
    tower = two_tower.make(store.schema, 32, content)
    trained.save(tower, places["two_tower"], two_tower.SETTINGS, {"width": 32, "content": content})
    schema = fine.outputs(store.schema, settings.fine)
    schema = replace(schema, labels=(*schema.labels[:2], fine.RELEVANCE))
    model = fine.Calibrated(
        RANKERS[settings.fine.model](schema, **settings.fine.options), *_unbounded(len(schema.labels))
    )
    weights = np.ones((len(schema.domains), len(schema.labels) + 1))
    fine.save(fine.Ranker(model.eval(), schema, weights), places["fine"], settings.fine)
    student = Coarse(store.schema, width=settings.coarse.width, content=content)
    coarse.save(coarse.CoarseRanker(student, 0.0), store.schema, places["coarse"], settings.coarse)
    write_json(folder / candidates.QUOTA, {})
    made = bundle.Made(
        features=features,
        coarse=places["coarse"],
        fine=places["fine"],
        quota=folder / candidates.QUOTA,
        routes={"two_tower": places["two_tower"]},
    )
    return bundle.write(folder / registry.FOLDER, made, settings)


def _unbounded(labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(labels), torch.full((labels,), torch.inf)


def bodies(store: FeatureStore, random: np.random.Generator, count: int) -> list[bytes]:
    """Bodies of requests of users at random, a tenth of them strangers."""
    known = random.integers(1, len(store.users["code_user_id"]), count)
    strange = random.random(count) < 0.1
    domains = random.choice(store.schema.domains, count)
    return [
        json.dumps({"user": f"stranger{user}" if odd else str(user), "domain": domain, "k": 50}).encode()
        for user, odd, domain in zip(known.tolist(), strange.tolist(), domains.tolist(), strict=True)
    ]


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[str, float, subprocess.Popen[str]]]:
    """The address of a service on a data folder, the seconds until its first answer, and its process."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", "from flows.cli import main; main()", "serve", "--folder", str(folder)]
    command += [*arguments, "--port", "0", 'rate="1000000/second"']
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "served.log").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise RuntimeError(f"the service did not start: {(folder / 'served.log').read_text()}")
            while not _ready(found[0]):
                if process.poll() is not None or time.perf_counter() - begun > STARTED:
                    raise RuntimeError(f"the service did not come up: {(folder / 'served.log').read_text()[-2_000:]}")
                time.sleep(0.05)
            yield found[0], time.perf_counter() - begun, process
        finally:
            process.terminate()
            process.communicate(timeout=STARTED)


def _ready(address: str) -> int:
    """How many workers are in service."""
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=1) as answer:
            return int(json.loads(answer.read())["workers"])
    except OSError:
        return 0


async def _measure(
    address: str,
    process: int,
    asked: Sequence[bytes],
    requests: int,
    clients: int,
    rate: int,
    seconds: int,
    random: np.random.Generator,
) -> dict[str, float]:
    bodies = cycle(asked)
    errors = 0
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(address, connector=connector, headers=headers) as session:

        async def ask(due: float) -> float:
            nonlocal errors
            async with session.post("/recommend", data=next(bodies)) as answer:
                told = await answer.read()
                errors += answer.status != 200 or b'"degraded":[]' not in told
            return 1e3 * (time.perf_counter() - due)

        for _ in range(WARM_UP):
            await ask(time.perf_counter())
        alone = [await ask(time.perf_counter()) for _ in range(requests)]
        closed: list[float] = []

        async def keep_asking(until: float) -> None:
            while time.perf_counter() < until:
                closed.append(await ask(time.perf_counter()))

        until = time.perf_counter() + seconds
        taken = processor(process), time.process_time()
        await asyncio.gather(*(keep_asking(until) for _ in range(clients)))
        took_service, took_load = processor(process) - taken[0], time.process_time() - taken[1]
        reached = len(closed) / seconds
        arrivals = np.cumsum(random.exponential(1, int((rate or 0.7 * reached) * seconds)) / (rate or 0.7 * reached))
        begun = time.perf_counter()
        tasks = []
        for arrival in arrivals.tolist():
            await asyncio.sleep(max(0.0, begun + arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(begun + arrival)))
        loaded = await asyncio.gather(*tasks)
        took = time.perf_counter() - begun
    figures = {f"p{percent}_ms": float(np.percentile(alone, percent)) for percent in (50, 95, 99)}
    figures |= {"qps_closed": reached, "p99_ms_closed": float(np.percentile(closed, 99)), "qps": len(loaded) / took}
    figures |= {"service_ms": 1e3 * took_service / len(closed), "load_ms": 1e3 * took_load / len(closed)}
    figures |= {f"p{percent}_ms_at_qps": float(np.percentile(loaded, percent)) for percent in (50, 95, 99)}
    return {**figures, "errors": errors}


def _stages(address: str) -> dict[str, float]:
    """Mean milliseconds of each stage, by the service's own metrics."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    sums = dict(re.findall(r'recfunnel_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text))
    counts = dict(re.findall(r'recfunnel_stage_seconds_count\{stage="(\w+)"\} (\S+)', text))
    return {f"{stage}_ms": 1e3 * float(total) / float(counts[stage]) for stage, total in sums.items()}


def resident(process: int) -> float:
    """GiB of a process and those that it began that are in memory; what several share counts once."""
    told = (Path(f"/proc/{one}/smaps_rollup").read_text() for one in _family(process))
    shares: list[int] = [int(kib) for one in told for kib in re.findall(r"^Pss:\s+(\d+) kB", one, re.MULTILINE)]
    return sum(shares) / 2**20


def processor(process: int) -> float:
    """Processor seconds that a process and those that it began have taken."""
    told = (Path(f"/proc/{one}/stat").read_text().rpartition(") ")[2].split() for one in _family(process))
    return sum(int(one[11]) + int(one[12]) for one in told) / os.sysconf("SC_CLK_TCK")


def _family(process: int) -> list[int]:
    """A process and all that it began, and they."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(one for child in children for one in _family(int(child)))]
