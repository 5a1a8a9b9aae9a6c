"""The service over minutes: a steady load, and every so often another bundle in its place. What counts is that no
request fails and that memory does not grow."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
import urllib.request
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from pipeline import config
from pipeline.bench.market import features_of
from pipeline.bench.serve import ROUTES, bodies, bundled, resident, served
from pipeline.features.store import FeatureStore
from pipeline.serving import registry

ALIAS = "champion"


def bench(
    users: int = 20_000,
    items: int = 20_000,
    impressions: int = 200_000,
    seconds: int = 600,
    swap_seconds: int = 60,
    rate: int = 30,
    processes: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """`rate` requests a second, an event after every tenth, two bundles in turn. Memory is the most that was resident
    in the second of four quarters of the time and in the last one, after the service has met both bundles."""
    settings = config.Config(
        name="soak", seed=seed, recall=config.Recall(routes=ROUTES), fine=config.Fine(model="composed")
    )
    market = features_of(users=users, items=items, impressions=impressions, seed=seed, features=settings.features)
    with market as made, tempfile.TemporaryDirectory(prefix="recfunnel-bench-") as place:
        folder = Path(place)
        names = [bundled(made, folder, replace(settings, seed=seed + one)).name for one in range(2)]
        for name in names:
            registry.promote(folder / registry.FOLDER, ALIAS, name)
        random = np.random.default_rng(seed)
        asked = bodies(FeatureStore.open(made), random, seconds * rate)
        with served(folder, f"processes={processes}") as (address, _, process):
            swap = _swapping(folder / registry.FOLDER, names, swap_seconds, seconds)
            figures = asyncio.run(_load(address, asked, rate, swap, process.pid))
            with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
                told = answer.read().decode()
        swaps = re.search(r"^recfunnel_swaps_total (\S+)", told, re.MULTILINE)
        return {"seconds": seconds, **figures, "swaps": float(swaps[1]) if swaps else 0.0}


async def _swapping(place: Path, names: list[str], every: float, seconds: float) -> None:
    until, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() + every < until:
        await asyncio.sleep(every)
        registry.promote(place, ALIAS, names[turn % 2])
        turn += 1


async def _load(
    address: str, asked: list[bytes], rate: int, swap: Coroutine[Any, Any, None], process: int
) -> dict[str, float]:
    taken: list[float] = []
    failed: list[str] = []
    memory: list[float] = []
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(address, headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(body: bytes, tell: bool) -> None:
            begun = time.perf_counter()
            async with session.post("/recommend", data=body) as answer:
                told = await answer.json()
            taken.append(1e3 * (time.perf_counter() - begun))
            if answer.status != 200 or not told["items"]:
                failed.append(f"{answer.status}")
            elif tell:
                event = {name: told[name] for name in ("user", "domain", "request")}
                event |= {"item": told["items"][0]["item"], "labels": {"click": 1}}
                async with session.post("/events", json={"events": [event]}) as answer:
                    if answer.status != 202:
                        failed.append(f"{answer.status}")

        swapping = asyncio.create_task(swap)
        begun = time.perf_counter()
        tasks = []
        for number, body in enumerate(asked):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(body, number % 10 == 0)))
            if number % rate == 0:
                memory.append(resident(process))
        await asyncio.gather(*tasks, swapping)
    quarter = len(memory) // 4
    return {
        "requests": len(taken),
        "errors": len(failed),
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "rss_gib": max(memory[quarter : 2 * quarter]),
        "rss_gib_at_end": max(memory[-quarter:]),
    }
