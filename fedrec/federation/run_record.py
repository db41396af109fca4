"""What one run leaves behind in run.json: configuration, data, scores, rounds, costs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.errors import StoreError

RECORD_FORMAT = 2
_RECORDED_PACKAGES = ("fedrec", "flwr", "numpy", "scipy", "pandas")


@dataclass(frozen=True)
class RoundRecord:
    """One finished round.

    Attributes:
        index, name: of the round.
        seconds: from the plan to the new shared arrays.
        shops, failed: how many answered, how many did not.
        bytes_up, bytes_down: of all releases, of all plans sent.
        not_asked: how many shops were left out by the draw of ``shops_per_round``.
        figures: of the federation as a whole after the round, by name: "loss" and what the run measures.
    """

    index: int
    name: str
    seconds: float
    shops: int
    failed: int
    bytes_up: int
    bytes_down: int
    not_asked: int = 0
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """Everything that run.json holds; the field names are its keys.

    Mappings hold JSON values; a figure that does not exist is None, never NaN. ``privacy`` says what the columns under
    differential privacy promise, ``gain_by_epsilon`` what each of them gains over local-only; None and empty without.
    ``rounds`` are those without noise, and ``bytes`` theirs; where no column asks for them, the first draw's of the
    private main column. The ``test_shoppers`` of ``scores`` were scored, those of ``data`` have test items.
    """

    name: str
    seed: int
    complete: bool
    guarantee: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    columns: Sequence[str]
    main_column: str | None
    scores: Mapping[str, Any]
    gain: Mapping[str, Any] | None
    gain_by_epsilon: Sequence[Mapping[str, Any]]
    privacy: Mapping[str, Any] | None
    compatibility: Mapping[str, Any] | None
    rounds: Sequence[RoundRecord]
    learning_curve: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    peak_memory_bytes: int
    versions: Mapping[str, str]
    threads: int
    cores: int
    files: Sequence[str]
    created_utc: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    format: int = RECORD_FORMAT
    fedrec: str = field(default_factory=lambda: package_versions()["fedrec"])

    def to_json(self) -> str:
        """Indented JSON; NaN and infinity become null, numpy scalars plain numbers."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one, never half of one."""
        write_atomically(path, self.to_json().encode())


def noisy_column(family: str, epsilon: float) -> str:
    """Name of a column under differential privacy: ``federated_dp@2``."""
    return f"{family}@{epsilon:g}"


def family_of(column: str) -> str:
    """A column's name without its epsilon: ``federated_dp``."""
    return column.partition("@")[0]


def epsilon_of(column: str) -> str:
    """A column's epsilon as it is written, "" for a column without."""
    return column.partition("@")[2]


def read_record(path: Path) -> RunRecord:
    """Read run.json.

    Raises:
        StoreError: the file is missing, no JSON, of another format, or its keys are not a run record's.
    """
    try:
        fields = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); give the folder of a finished run") from error
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON ({error})") from error
    if not isinstance(fields, dict) or fields.get("format") != RECORD_FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else None
        raise StoreError(f"{path}: run record of format {found!r}, this version reads {RECORD_FORMAT}")
    known = {f.name for f in dataclasses.fields(RunRecord)}
    if wrong := sorted(known.symmetric_difference(fields)):
        raise StoreError(f"{path}: not a run record of format {RECORD_FORMAT}; unknown or missing keys: {wrong}")
    try:
        fields["rounds"] = tuple(RoundRecord(**entry) for entry in fields["rounds"])
    except TypeError as error:
        raise StoreError(f"{path}: the entries of 'rounds' are not round records ({error})") from error
    return RunRecord(**fields)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, then rename over it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)  # there only after an error or an interruption


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left beside their targets, in a folder that nobody else writes to."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def package_versions() -> dict[str, str]:
    """Versions that a run's figures depend on; "unknown" for a package that is not installed."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    if versions["fedrec"] == "unknown":
        versions["fedrec"] = _own_version()
    return versions


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads() -> int:
    """Threads of the linear algebra library, as the environment sets them; else one for each core."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        if (value := os.environ.get(name, "")).isdigit():
            return int(value)
    return num_cores()


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, or of its largest finished child; 0 = unknown."""
    try:
        import resource
    except ImportError:
        return 0
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return int(max(peaks)) * (1 if sys.platform == "darwin" else 1024)


def _own_version() -> str:
    import fedrec

    return str(getattr(fedrec, "__version__", "unknown"))


def _plain(value: Any) -> Any:
    """JSON values only: NaN → None, numpy scalars and arrays → numbers and lists, tuples → lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
