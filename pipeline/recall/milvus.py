"""A collection of a Milvus server, or of milvus-lite in a file, behind the interface of `pipeline.recall.index`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from pipeline.lake import InputError
from pipeline.recall.index import Floats, Integers, finite, numbered, write_header

AT_ONCE = 5_000
ID, VECTOR = "id", "vector"


@dataclass(frozen=True)
class Collection:
    """The vectors lie where the collection is; a folder holds only its address."""

    client: MilvusClient
    address: str
    name: str
    dimension: int
    model: str

    def __len__(self) -> int:
        return int(self.client.query(self.name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def search(self, queries: Floats, k: int) -> tuple[Integers, Floats]:
        queries, known = finite(queries, self.dimension, "queries")
        ids, scores = np.full((len(known), k), -1, np.int64), np.zeros((len(known), k), np.float32)
        rows = np.flatnonzero(known)
        for begin in range(0, len(queries), AT_ONCE):
            part = queries[begin : begin + AT_ONCE]
            found = self.client.search(self.name, data=list(part), limit=k, consistency_level="Strong")
            for row, hits in zip(rows[begin:], found, strict=False):
                ids[row, : len(hits)] = [hit[ID] for hit in hits]
                scores[row, : len(hits)] = [hit["distance"] for hit in hits]
        return ids, scores

    def add(self, vectors: Floats, ids: Integers) -> None:
        vectors, ids, _ = numbered(vectors, ids, self.dimension)
        for begin in range(0, len(ids), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            rows = [{ID: one, VECTOR: vector} for one, vector in zip(ids[part].tolist(), vectors[part], strict=True)]
            self.client.upsert(self.name, rows)

    def remove(self, ids: Integers) -> int:
        before = len(self)
        for part in np.array_split(np.asarray(ids), -(-len(ids) // AT_ONCE)) if len(ids) else []:
            self.client.delete(self.name, ids=part.tolist())
        return before - len(self)

    def save(self, folder: Path) -> None:
        told = {"address": self.address, "collection": self.name}
        write_header(folder, "milvus", self.dimension, self.model, told)


def build(vectors: Floats, ids: Integers, address: str, name: str, *, model: str = "") -> Collection:
    """Make the collection `name` of (N, D) vectors under the numbers `ids` (N,), in place of one of that name.

    `address`: of a server (`http://…`), or a file of milvus-lite (`….db`). The server chooses the kind of index
    (AUTOINDEX). Raises `InputError` where nothing answers.
    """
    client, dimension = _client(address), np.shape(vectors)[1]
    schema = client.create_schema(auto_id=False)
    schema.add_field(ID, DataType.INT64, is_primary=True)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dimension)
    index = client.prepare_index_params()
    index.add_index(VECTOR, index_type="AUTOINDEX", metric_type="IP")
    if client.has_collection(name):
        logging.getLogger(__name__).warning("the collection %s of %s is replaced", name, address)
        client.drop_collection(name)
    client.create_collection(name, schema=schema, index_params=index)
    made = Collection(client, address, name, dimension, model)
    made.add(vectors, ids)
    return made


def connect(address: str, name: str, dimension: int, model: str) -> Collection:
    """Open a collection. Raises `InputError` where nothing answers, or the collection is gone."""
    client = _client(address)
    if not client.has_collection(name):
        raise InputError(f"{address}: there is no collection {name}; fit the route again")
    client.load_collection(name)
    return Collection(client, address, name, dimension, model)


def _client(address: str) -> MilvusClient:
    try:
        return MilvusClient(address)
    except (MilvusException, ValueError) as error:
        raise InputError(f"{address}: no Milvus answers ({error}); start it or choose another index") from None
