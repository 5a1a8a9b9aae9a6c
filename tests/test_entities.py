from __future__ import annotations

import numpy as np

from pipeline.features.entities import Entities, is_of_one_user

USER, ITEM, DOMAIN = np.array([1, 2, 1, 2]), np.array([1, 1, 2, 0]), np.array([0, 1, 0, -1])
ENTITIES = Entities(
    users={"user": np.arange(3), "segment": np.array([0, 4, 4])},
    items={"item": np.arange(3), "category": np.array([0, 2, 1])},
    domains=2,
)


def test_keys_by_hand():
    """A part has as many values as its largest key and one more: 5 segments, 3 categories, and 3 domains with none."""
    assert ENTITIES.keys("segment", USER, ITEM, DOMAIN).tolist() == [4, 4, 4, 4]
    assert ENTITIES.keys("user+category", USER, ITEM, DOMAIN).tolist() == [5, 8, 4, 6]
    assert ENTITIES.keys("item+domain", USER, ITEM, DOMAIN).tolist() == [4, 5, 7, 0]


def test_whose_events_a_key_has():
    assert is_of_one_user("user")
    assert is_of_one_user("category+user")
    assert not is_of_one_user("segment+item")
