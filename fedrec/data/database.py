"""Events from a database: the result of a query, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.data.files import RawTable
from fedrec.errors import DataError

_CHUNK_ROWS = 50_000
ChooseFrom = Callable[[str, list[str]], Mapping[str, str]]
"""From where a table is and its columns to the column of each role."""


def read_sql(url: str, query: str, choose: ChooseFrom) -> tuple[RawTable, str]:
    """Read the wanted columns of a query's result, and the database's URL without its password.

    Raises:
        DataError: the URL, driver, database or query does not work.
    """
    with _answer(url, query, choose) as (origin, names, roles, chunks):
        coded = {role: _Coded() for role in roles}
        for cells in chunks:
            for role, column in roles.items():
                coded[role].extend(cells[names.index(column)])
    return RawTable(pd.DataFrame({role: one.column() for role, one in coded.items()}), roles, tuple(names)), origin


def sql_parts(url: str, query: str, choose: ChooseFrom, part_rows: int) -> Iterator[tuple[RawTable, str]]:
    """As `read_sql`, in parts of at most so many rows.

    Raises:
        DataError: as `read_sql`.
    """
    with _answer(url, query, choose, part_rows) as (origin, names, roles, chunks):
        for cells in chunks:
            coded = {role: _Coded() for role in roles}
            for role, column in roles.items():
                coded[role].extend(cells[names.index(column)])
            frame = pd.DataFrame({role: one.column() for role, one in coded.items()})
            yield RawTable(frame, roles, tuple(names)), origin


_Answer = tuple[str, list[str], dict[str, str], Iterator[list[tuple[Any, ...]]]]


@contextmanager
def _answer(url: str, query: str, choose: ChooseFrom, chunk_rows: int = _CHUNK_ROWS) -> Iterator[_Answer]:
    """Where it is from, the result's columns, the roles among them, and its cells by column, chunk by chunk."""
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(url)
        origin = address.render_as_string(hide_password=True)
        if address.get_backend_name() == "sqlite" and address.database and not Path(address.database).is_file():
            raise DataError(f"{origin}: there is no such database file")
        engine = sqlalchemy.create_engine(address)
    except sqlalchemy.exc.ArgumentError as error:
        raise DataError(
            "the database URL cannot be read; write it as sqlite:///sales.db or postgresql://host/name"
        ) from error
    except ImportError as error:
        raise DataError(f"{origin}: the driver {error.name} is not installed; pip install it") from error
    try:
        with engine.connect() as connection:
            result = connection.execution_options(stream_results=True).execute(sqlalchemy.text(query))
            if not result.returns_rows:
                raise DataError(f"{origin}: the query returns no rows; give a SELECT")
            names = list(result.keys())
            if len(set(names)) < len(names):
                raise DataError(f"{origin}: two columns of the query have one name ({', '.join(names)}); rename one")
            chunks = (list(zip(*rows, strict=True)) for rows in result.partitions(chunk_rows))
            yield origin, names, dict(choose(origin, names)), chunks
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise DataError(f"{origin}: the query failed ({reason})") from error
    finally:
        engine.dispose()


class _Coded:
    """A column that grows chunk by chunk and holds each distinct value once."""

    def __init__(self) -> None:
        self._code: dict[Any, int] = {}
        self._chunks: list[np.ndarray] = []

    def extend(self, cells: Sequence[Any]) -> None:
        code = self._code
        cells = [cell if cell is None or isinstance(cell, Hashable) else str(cell) for cell in cells]
        self._chunks.append(
            np.array([-1 if cell is None else code.setdefault(cell, len(code)) for cell in cells], np.int32)
        )

    def column(self) -> pd.Categorical:
        codes = np.concatenate([np.zeros(0, np.int32), *self._chunks])
        return pd.Categorical.from_codes(codes, categories=pd.Index(list(self._code), dtype=object))
