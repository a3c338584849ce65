"""The one way to ask for records: ``fetch`` computes what the store lacks and reads what is asked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.requests import Request
from tokenshift_utils.store import columns as record_columns
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study

Key = TypeVar("Key", bound=Hashable)


def fetch(
    study: Study,
    requests: Sequence[Request],
    kind: str | None = None,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Records of some requests of one kind, one below the other, computed where the store lacks them.

    Parameters
    ----------
    requests : as made by ``Rollouts.of``, ``Shifts.of``, ``CrossSampling.of``,
        ``SingleToken.of``, ``Precision.of``
    kind : where a request has several (``cross_sampling`` and ``switches``); None for the first
    columns : names to read; None for all (the lists of most probable tokens are large)

    Returns
    -------
    DataFrame with the columns of ``columns.describe(kind)``

    Examples
    --------
    >>> fetch(study, Shifts.of(study, "dapo"), columns=["token", "js"])  # doctest: +SKIP
    """
    return fetch_each(study, {"": requests}, kind, columns)[""]


def fetch_each(
    study: Study,
    wanted: Mapping[Key, Sequence[Request]],
    kind: str | None = None,
    columns: Sequence[str] | None = None,
) -> dict[Key, pd.DataFrame]:
    """``fetch`` for several lists of requests by name, computed together: one pool, one bar."""
    executor.run(study, [request for requests in wanted.values() for request in requests])
    with executor.keys_kept():
        return {name: _read(study, requests, kind, columns) for name, requests in wanted.items()}


def _read(
    study: Study, requests: Sequence[Request], kind: str | None, columns: Sequence[str] | None
) -> pd.DataFrame:
    if not requests:
        raise TokenshiftError("no records are asked for: give at least one request")
    kind = requests[0].kinds[0] if kind is None else kind
    frame = pa.concat_tables([_table(study, r, kind, columns) for r in requests]).to_pandas()
    for column in record_columns.describe(kind):  # whole numbers stay whole beside missing ones
        if column.nullable and pa.types.is_integer(column.type) and column.name in frame:
            frame[column.name] = frame[column.name].astype("Int32")
    order = requests[0].order
    return frame.sort_values([*order], kind="stable", ignore_index=True) if order else frame


def _table(study: Study, request: Request, kind: str, columns: Sequence[str] | None) -> pa.Table:
    if request.first is None:
        return executor.read(study, request, kind, columns)
    needed = None if columns is None else [*dict.fromkeys([*columns, "sample"])]
    table = executor.read(study, request, kind, needed)
    table = table.filter(pc.less(table["sample"], request.first))
    return table if columns is None else table.select(list(columns))
