"""R20, the snake merge: routes take turns, and the direction is reversed each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl


def snake_merge(
    candidates: pl.DataFrame, order: Sequence[str], *, size: int, quota: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Merge the routes of each request into one list of at most `size` items.

    `candidates` has request, item, route, rank (1 = best, no gaps within a route) and score; `order` names the routes,
    highest priority first. In round r every route offers its item of rank r: in `order` when r is odd, from its end
    when r is even. A route that offers an item already taken passes: its next item comes with its next turn. A route
    with a `quota` q offers only q items until the others have no more, and then goes on. So the turns are known
    from (route, rank) alone, and a request is merged alike alone and among a million.

    Returns request, item, position (1 = first), route (the giver), rank and score, sorted by request and position.
    Routes outside `order` are left out.
    """
    place = pl.col("route").replace_strict({route: place for place, route in enumerate(order)}, return_dtype=pl.Int32)
    limit = pl.col("route").replace_strict(dict(quota or {}), default=None, return_dtype=pl.Int32)
    return (
        candidates.lazy()
        .filter(pl.col("route").is_in(list(order)))
        .with_columns(place=place, spare=(pl.col("rank") > limit).fill_null(False))
        .with_columns(turn=pl.when(pl.col("rank") % 2 == 1).then("place").otherwise(len(order) - 1 - pl.col("place")))
        .sort("request", "spare", "rank", "turn")
        .unique(["request", "item"], keep="first", maintain_order=True)
        .with_columns(position=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("request"))
        .filter(pl.col("position") <= size)
        .select("request", "item", "position", "route", "rank", "score")
        .collect()
    )
