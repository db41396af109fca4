"""CSV and Parquet files as tables whose columns are named by our roles; texts become categories while they are read."""

from __future__ import annotations

import codecs
import csv
import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fedrec.errors import DataError

Choose = Callable[[list[str]], Mapping[str, str]]
"""From a table's columns to the column of each role that is wanted."""

_SAMPLE_BYTES = 1 << 16
_THREADS_FROM_BYTES = 1 << 24
"""Arrow's reading threads can outlive a process that ends right away, which aborts it; small files need none."""
_BUFFER_BYTES = 1 << 20
_DELIMITERS = ",;\t|"
_NUMBERS = frozenset({"rating", "quantity", "price", "timestamp", "order"})


@dataclass(frozen=True)
class RawTable:
    """Rows as they are in the file.

    Attributes:
        frame: one column per role; texts and ids are categories.
        roles: role -> column of the file.
        columns: all columns of the file.
        broken_lines: lines with another number of fields than the header, left out.
    """

    frame: pd.DataFrame
    roles: Mapping[str, str]
    columns: tuple[str, ...]
    broken_lines: int = 0


def read_file(path: str | Path, choose: Choose) -> RawTable:
    """Read the wanted columns of a CSV (also TSV, gzip) or Parquet file.

    Raises:
        DataError: the file is missing, empty or unreadable; the message names it.
    """
    path = _existing(path)
    try:
        return _read_parquet(path, choose) if _is_parquet(path) else _read_csv(path, choose)
    except (pa.ArrowException, OSError, EOFError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)}); give a CSV or Parquet file") from error


def parquet_parts(path: str | Path, choose: Choose, part_rows: int) -> Iterator[RawTable]:
    """The wanted columns of a Parquet file, or of a folder of such files, in parts of at most so many rows.

    Raises:
        DataError: as `read_file`; it is no Parquet; or folders within say what a column says.
    """
    path = _existing(path)
    if not _is_parquet(path):
        raise DataError(f"{path}: only Parquet and databases are read in parts; convert it, or leave in_parts out")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if any("=" in str(file.relative_to(path)) for file in files):
        raise DataError(f"{path}: folders like shop=north are not read in parts; name one file, or a folder of files")
    try:
        for file in files:
            # Row group by row group, without reading ahead: else Arrow holds several of them.
            with pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as opened:
                names = opened.schema_arrow.names
                roles = dict(choose(list(names)))
                wanted = list(dict.fromkeys(roles.values()))
                for group in range(opened.num_row_groups):
                    for batch in opened.iter_batches(part_rows, [group], wanted, use_threads=False):
                        yield RawTable(by_role(pa.Table.from_batches([batch]), roles), roles, tuple(names))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)}); give a CSV or Parquet file") from error


def column_names(path: str | Path) -> list[str]:
    """The columns of a CSV or Parquet file.

    Raises:
        DataError: the file is missing, empty or unreadable.
    """
    path = _existing(path)
    try:
        return list(pa.parquet.read_schema(path).names) if _is_parquet(path) else _Dialect.of(path).columns
    except (pa.ArrowException, OSError, EOFError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)}); give a CSV or Parquet file") from error


def by_role(table: pa.Table, roles: Mapping[str, str]) -> pd.DataFrame:
    """An Arrow table as a frame of roles; ids keep their exact digits, lists stay lists."""
    columns = {}
    for role, name in roles.items():
        cells = table.column(name)
        if pa.types.is_decimal(cells.type):
            cells = cells.cast(pa.float64())
        is_null = pa.types.is_null(cells.type)
        is_number = role in _NUMBERS and pa.types.is_integer(cells.type)
        is_plain = (
            pa.types.is_floating(cells.type) or pa.types.is_temporal(cells.type) or pa.types.is_nested(cells.type)
        )
        if not (is_null or is_number or is_plain or pa.types.is_dictionary(cells.type)):
            # In one piece first: encoded chunks would each carry the whole dictionary.
            cells = pa.chunked_array([_whole(cells).dictionary_encode()])
        columns[role] = _to_pandas(cells)
    return pd.DataFrame(columns, copy=False)


def _to_pandas(cells: pa.ChunkedArray) -> Any:
    if not pa.types.is_dictionary(cells.type):
        return cells.to_pandas(date_as_object=False)
    whole = _whole(cells.unify_dictionaries() if cells.num_chunks > 1 else cells)
    names = whole.dictionary.to_pandas()
    if names.isna().any():
        return whole.dictionary_decode().to_pandas()
    if _is_text(whole.dictionary.type):
        names = names.astype("str")
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return pd.Categorical.from_codes(codes, categories=pd.Index(names))


def _whole(cells: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if cells.num_chunks == 1:
        return cells.chunk(0)
    return pa.concat_arrays(cells.chunks) if cells.num_chunks else pa.array([], cells.type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _read_parquet(path: Path, choose: Choose) -> RawTable:
    schema = pa.parquet.read_schema(path) if path.is_file() else pa.parquet.ParquetDataset(path).schema
    roles = dict(choose(list(schema.names)))
    wanted = list(dict.fromkeys(roles.values()))
    texts = [name for name in wanted if _is_text(schema.field(name).type)]
    table = pa.parquet.read_table(path, columns=wanted, read_dictionary=texts)
    return RawTable(by_role(table, roles), roles, tuple(schema.names))


def _read_csv(path: Path, choose: Choose) -> RawTable:
    dialect = _Dialect.of(path)
    if len(set(dialect.columns)) < len(dialect.columns):
        twice = next(name for name in dialect.columns if dialect.columns.count(name) > 1)
        raise DataError(f"{path}: two columns are called '{twice}'; give them different names")
    roles = dict(choose(dialect.columns))
    broken: list[int] = []

    def skip(row: Any) -> str:
        broken.append(row.actual_columns)
        return "skip"

    wanted = list(dict.fromkeys(roles.values()))
    table = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(
            encoding=dialect.encoding,
            column_names=dialect.columns,
            skip_rows=dialect.header_line,
            use_threads=path.stat().st_size >= _THREADS_FROM_BYTES,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=dialect.delimiter, newlines_in_values=True, invalid_row_handler=skip
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.dictionary(pa.int32(), pa.string())),
            include_columns=wanted,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )
    return RawTable(by_role(table, roles), roles, tuple(dialect.columns), len(broken))


@dataclass(frozen=True)
class _Dialect:
    """How a CSV file is written; the header is the first line that is not blank, counted from 1."""

    columns: list[str]
    header_line: int
    delimiter: str
    encoding: str

    @classmethod
    def of(cls, path: Path) -> _Dialect:
        """Found from the file's beginning; the encoding from all of it.

        Raises:
            DataError: there is no header.
        """
        with _opened(path) as file:
            sample = file.read(_SAMPLE_BYTES)
        encoding = _encoding(path, sample)
        text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(sample).removeprefix("\ufeff")
        lines = text.splitlines()
        if not lines or not text.strip():
            raise DataError(f"{path}: the file is empty; give a file with a header and rows")
        if "\0" in text:
            raise DataError(f"{path}: is no text file; give a CSV or Parquet file")
        place = next(number for number, line in enumerate(lines) if line.strip())
        delimiter = max(_DELIMITERS, key=lambda mark: (_num_fields(lines[place], mark), -_DELIMITERS.index(mark)))
        header = next(csv.reader(lines[place:], delimiter=delimiter))
        names = [name.strip() or f"column {number}" for number, name in enumerate(header, start=1)]
        return cls(names, place + 1, delimiter, encoding)


def _encoding(path: Path, sample: bytes) -> str:
    """UTF-16 by its mark; UTF-8 if the whole file is; else Windows' Latin-1."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _opened(path) as file:
            while block := file.read(1 << 22):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _num_fields(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter)))


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _is_parquet(path: Path) -> bool:
    if path.is_dir():
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; give a file with a header and rows")
    return path


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
