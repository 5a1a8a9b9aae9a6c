"""A bundle: all that the service answers from, in one folder that is named after its content.

    config.json  recall.json  parity.parquet  manifest.json
    features/    what the store knows of users and items, the last events of every user, what was counted (`live`)
    routes/      one folder a route, as of the log's end; history/ what users took, exposure/ what they were shown
    coarse/      the ranker, and the items' vectors as of the log's end
    fine/        the ranker with its fusion weights

It is written under a temporary name and renamed. The manifest has every file's SHA-256, which is checked before
anything is read; nothing in it is a pickle. `parity.parquet` holds what batch scoring makes of ten thousand users,
items and times: a service that does not come to the same refuses the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import xxhash

from pipeline import lake
from pipeline.config import Config
from pipeline.features import indexes
from pipeline.features.identity import canonical
from pipeline.features.store import DAY, Events, FeatureStore, delayed
from pipeline.lake import InputError
from pipeline.ranking import coarse, explore, fine
from pipeline.ranking.batches import Encoder
from pipeline.recall import candidates, exposure
from pipeline.recall.snapshot import Snapshot, take
from pipeline.serving import registry
from pipeline.serving.tallies import Tally

FORMAT = 1
TOLD, PARITY, POSTERIOR = "recall.json", "parity.parquet", "posterior.safetensors"
HISTORY = ("user", "item", "time")
STORED = ("schema.json", "encoders.json", "slices.json", "items.parquet", "cross_codes.parquet")
ASKING, ASKED_FOR = 200, 50
LEARNT = 50_000
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Made:
    """The folders of a run that a bundle is made of; `routes` are those of the trained ones."""

    features: Path
    coarse: Path
    fine: Path
    quota: Path
    routes: dict[str, Path]

    @classmethod
    def of_run(cls, root: Path) -> Made:
        """Those of a run's latest finish. Raises `InputError` where there is none."""
        try:
            folders = json.loads((root / "latest.json").read_text())["folders"]
        except FileNotFoundError:
            raise InputError(f"{root}: no finished run; recfunnel run CONFIG first") from None
        routes = {name: Path(path) for name, path in folders.items() if name in candidates.ROUTES}
        named = {name: Path(folders[name]) for name in ("features", "coarse", "fine")}
        return cls(**named, quota=Path(folders["recall_validation"]) / candidates.QUOTA, routes=routes)


def write(place: Path, made: Made, settings: Config) -> Path:
    """Write the bundle of a run into the folder `place`; returns its folder, whose name begins with "bundle-".

    The same run and settings give the same bytes, and so the same name.
    """
    with lake.unfinished(place, "bundle") as folder:
        _fill(folder, made, settings)
        files = _hashes(folder)
        lake.write_json(folder / lake.MANIFEST, {"format": FORMAT, "files": files})
        return lake.finish(folder, place / f"bundle-{lake.hash_value(files)[:16]}")


def verify(folder: Path) -> None:
    """Raise `InputError` where a bundle's files are not those that were written, or of another format."""
    manifest = lake.read_manifest(folder)
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{folder}: a bundle of format {manifest.get('format')}, not {FORMAT}; make it anew, recfunnel bundle"
        )
    there, told = _hashes(folder), manifest["files"]
    for name in sorted({*there, *told}):
        if name not in there:
            raise InputError(f"{folder}/{name}: missing; copy the bundle again, or make it anew")
        if there[name] != told.get(name):
            raise InputError(f"{folder}/{name}: not the file that was written (SHA-256 differs); copy the bundle again")


@dataclass(frozen=True)
class Ids:
    """The rows of raw ids: `hashes` (N,) ascend, `rows` (N,) are theirs, and `names` the ids by row."""

    hashes: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int32]
    names: pa.Array

    @classmethod
    def open(cls, folder: Path, side: str) -> Ids:
        hashes, rows = (lake.mapped(folder / f"{side}_{name}.npy") for name in ("hashes", "rows"))
        names = pa.ipc.open_file(pa.memory_map(str(folder / f"{side}_names.arrow"))).get_batch(0)
        return cls(hashes, rows, names.column(0))

    def row(self, text: str) -> int:
        """The row of an id, 0 for one that is unknown."""
        place = int(self.hashes.searchsorted(np.uint64(_hash(text))))
        if place == len(self.hashes) or self.hashes[place] != _hash(text):
            return 0
        row = int(self.rows[place])
        return row if self.name(row) == text else 0

    def name(self, row: int) -> str:
        """The id of a row, as its text."""
        return str(self.names[row].as_py())

    def named(self, rows: npt.NDArray[np.integer]) -> list[str]:
        """The ids of rows (N,)."""
        return [str(name) for name in self.names.take(pa.array(rows)).to_pylist()]


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _write_ids(features: Path, folder: Path, side: str) -> None:
    texts = canonical(pl.read_parquet(features / f"{side}s.parquet", columns=[f"{side}_id"]).to_series())
    known = np.flatnonzero(texts.is_not_null().to_numpy())
    hashes = np.array([_hash(text) for text in texts.gather(known).to_list()], np.uint64)
    order = np.argsort(hashes, kind="stable")
    indexes.write_table(pl.DataFrame({"name": texts}), folder / f"{side}_names.arrow")
    np.save(folder / f"{side}_hashes.npy", hashes[order])
    np.save(folder / f"{side}_rows.npy", known[order].astype(np.int32))


def _fill(folder: Path, made: Made, settings: Config) -> None:
    lake.write_json(folder / registry.CONFIG, settings.to_dict())
    store = FeatureStore.open(made.features)
    end = store.slices["end"]
    write_features(store, folder / "features", settings.serve.live_users)
    snapshot = take(store, end, settings.contract.positive)
    _write_recall(snapshot, folder, made, settings)
    for name in ("coarse", "fine"):
        (folder / name).mkdir()
        for path in getattr(made, name).iterdir():
            if path.suffix in (".safetensors", ".json") and path.name not in (lake.MANIFEST, "returned.json"):
                shutil.copyfile(path, folder / name / path.name)
    encoder = Encoder(store)
    student = coarse.load(made.coarse).model
    np.save(folder / "coarse" / "items.npy", coarse.item_vectors(student, encoder, store, end).numpy())
    ranker = fine.load(made.fine)
    rows = store.log("validation")
    rows = rows.take(np.random.default_rng(0).permutation(len(rows))[:LEARNT])
    posterior = explore.fit(rows.numbers, fine.probabilities(ranker.model, encoder, rows), seed=settings.seed)
    explore.save(posterior, folder / "fine" / POSTERIOR)
    _write_parity(store, encoder, ranker, folder / PARITY)


def write_features(store: FeatureStore, folder: Path, spare: int) -> None:
    """The store's tables, with rows for `spare` users who are yet to come, and the ends of the histories."""
    folder.mkdir()
    for path in sorted(store.folder.iterdir()):
        if path.name in STORED or path.name.startswith("index_"):
            shutil.copyfile(path, folder / path.name)
    users = pl.read_parquet(store.folder / "users.parquet")
    pl.concat([users, pl.concat([users[:1]] * spare)]).write_parquet(folder / "users.parquet", compression="zstd")
    contexts = [store.schema.fields[place].name for place in store.schema.positions("context")]
    vocabulary = pl.read_parquet(store.folder / "vocabulary.parquet").filter(pl.col("field").is_in(contexts))
    vocabulary.write_parquet(folder / "vocabulary.parquet", compression="zstd")
    for side in ("user", "item"):
        _write_ids(store.folder, folder, side)
    for name, length in store.recipe.lengths.items():
        last = pl.int_range(pl.len()).reverse().over("user") < length
        behaviour = pl.DataFrame(dict(store.behaviours[name])).filter(last)
        behaviour.write_parquet(folder / f"behaviour_{name}.parquet", compression="zstd")
    opened = FeatureStore.open(folder)
    events: Events = store.events
    values = np.stack([events[name] for name in ("shows", *store.recipe.rates)], axis=1)
    for entity in store.recipe.statistics:
        keys = opened.entity_keys(entity, events["user"], events["item"], events["domain"])
        Tally.of(keys, events["time"], values).save(folder / "tallies" / entity)


def _write_recall(snapshot: Snapshot, folder: Path, made: Made, settings: Config) -> None:
    """Every route, what users took and how often they were shown something, the quotas, and which tasks come late."""
    (folder / "routes").mkdir()
    for route in settings.recall.routes:
        candidates.fit(snapshot, folder / "routes", route, made.routes, settings.recall)
    (folder / "history").mkdir()
    for name in HISTORY:
        np.save(folder / "history" / f"{name}.npy", snapshot.history[name].to_numpy())
    np.save(folder / "history" / "available.npy", snapshot.items["item"].to_numpy())
    (folder / "exposure").mkdir()
    recall = settings.recall
    shown = exposure.fit(snapshot, folder / "exposure", days=recall.exposure_days, error=recall.exposure_error)
    lately = exposure.lately(snapshot, shown.since)
    for side, rows in (
        ("user", len(snapshot.store.users["code_user_id"])),
        ("item", len(snapshot.store.items["code_item_id"])),
    ):
        counts = np.bincount(lately[side].to_numpy(), minlength=rows + (side == "user") * settings.serve.live_users)
        np.save(folder / "exposure" / f"{side}s.npy", counts)
    told = {
        "quota": json.loads(made.quota.read_text()),
        "delayed": delayed(snapshot.store.folder, settings.contract.tasks),
    }
    lake.write_json(folder / TOLD, told)


def _write_parity(store: FeatureStore, encoder: Encoder, ranker: fine.Ranker, path: Path) -> None:
    """Ten thousand triples: 200 users of all kinds, each at a moment of the day after the log, with 50 items each."""
    random = np.random.default_rng(0)
    end, people, things = store.slices["end"], len(store.users["code_user_id"]), len(store.items["code_item_id"])
    user = np.repeat(random.permutation(people)[:ASKING], ASKED_FOR)
    user[:ASKED_FOR] = 0
    time = np.repeat(end + random.integers(0, DAY, len(user) // ASKED_FOR), ASKED_FOR)
    domain = np.repeat(random.integers(0, len(store.schema.domains), len(user) // ASKED_FOR), ASKED_FOR)
    item = random.integers(0, things, len(user))
    rows = store.rows(user, item, domain, time)
    scores = fine.probabilities(ranker.model, encoder, rows)
    pl.DataFrame(
        {
            **{"user": user.astype(np.int32), "item": item.astype(np.int32)},
            **{"domain": domain.astype(np.int16), "time": time},
            "numbers": pl.Series(rows.numbers, dtype=pl.Array(pl.Float32, rows.numbers.shape[1])),
            "scores": pl.Series(scores, dtype=pl.Array(pl.Float32, scores.shape[1])),
        }
    ).write_parquet(path, compression="zstd", statistics=False)


def _hashes(folder: Path) -> dict[str, dict[str, object]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / lake.MANIFEST]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        digests = threads.map(_sha256, paths)
        return {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
