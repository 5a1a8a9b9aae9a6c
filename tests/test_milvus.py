"""Against milvus-lite, a Milvus in a file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_index import brute_force, clustered

from pipeline.lake import InputError
from pipeline.recall import index as nearest
from pipeline.recall import index_choice

if not (find_spec("pymilvus") and find_spec("milvus_lite")):
    pytest.skip("pymilvus and milvus-lite are not installed (extra `milvus`)", allow_module_level=True)


def test_a_collection_is_an_index(tmp_path: Path) -> None:
    vectors, queries = clustered(300, 1), clustered(4, 2)
    vectors[7, 0] = np.nan
    ids, address = np.arange(300) * 2, str(tmp_path / "vectors.db")
    made = index_choice.make(vectors, ids, address, queries, model="m", name="items")
    made.save(tmp_path)
    index = nearest.load(tmp_path, 16, "m")
    assert len(index) == 299
    order, products = brute_force(np.nan_to_num(vectors), queries, 10)
    found, scores = index.search(queries, 10)
    assert found.tolist() == ids[order].tolist()
    np.testing.assert_allclose(scores, products, atol=1e-4)

    assert index.remove(np.append(found[0, :3], 1)) == 3
    index.add(queries[:1], found[0, 5:6])
    assert index.search(queries[:1], 6)[0][0].tolist() == found[0, [5, 3, 4, 6, 7, 8]].tolist()
    assert index.search(np.full((1, 16), np.nan), 2)[0].tolist() == [[-1, -1]]
    assert (index.search(queries, 400)[0] >= 0).sum() == 4 * len(index)

    for dimension, model in ((8, "m"), (16, "n")):
        with pytest.raises(InputError, match="build it again"):
            nearest.load(tmp_path, dimension, model)
    index.client.drop_collection(index.name)
    with pytest.raises(InputError, match="there is no collection items_m"):
        nearest.load(tmp_path, 16, "m")
