"""The named public sets: what they are, under which licence, where they lie, and how they are read or fetched."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pandas as pd

from fedrec.data import originals
from fedrec.data.files import Choose, RawTable, read_file
from fedrec.data.originals import Opened, SetTables
from fedrec.errors import ConfigError, DataError

_TIMEOUT_S = 60
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A file at its public origin.

    Attributes:
        url: of a zip file.
        md5: the checksum that the origin publishes.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Original:
    """One layout of the public original.

    Attributes:
        required: files, relative to the data folder or to a folder in it named as the set or its archive.
        optional: files that add text where they are there.
        read: makes tables of the opened files.
    """

    required: tuple[str, ...]
    read: Callable[[Opened], SetTables]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublicSet:
    """A named set.

    Attributes:
        name: what ``source`` takes.
        file: our Parquet form is <file>.parquet, with <file>_items.parquet beside it where items have text.
        summary: one line: what it is, and its size.
        licence: in short.
        homepage: where the original comes from.
        originals: layouts of the original that can be read.
        archive: what may be downloaded; None: not without the user's own visit to the homepage.
        archive_names: zip files that hold the original, read without being unpacked.
        split_column: of our Parquet form, says which rows are "train" and which "test".
        has_stock_codes: items are stock codes with service codes among them, cancelled invoices begin with C.
    """

    name: str
    file: str
    summary: str
    licence: str
    homepage: str
    originals: tuple[Original, ...]
    archive: Archive | None = None
    archive_names: tuple[str, ...] = ()
    split_column: str | None = None
    has_stock_codes: bool = False


@dataclass(frozen=True)
class FoundSet:
    """A set's tables as they were read."""

    events: RawTable
    items: RawTable | None
    test: RawTable | None
    notes: tuple[tuple[str, int], ...]
    is_original: bool


_MOVIELENS = (
    "GroupLens: research use; no redistribution, no commercial use without permission; cite Harper & Konstan 2015"
)
_AMAZON = "no licence granted: Amazon reviews collected for research (McAuley et al.); no redistribution"
_GROUPLENS = "https://files.grouplens.org/datasets"

PUBLIC_SETS = (
    PublicSet(
        "xmarket-electronics",
        "xmarket-electronics",
        "five Amazon marketplaces (ca, uk, fr, de, mx) as shops; 107,421 ratings, 14,852 shoppers, 7,658 items",
        "no licence granted: collected for research (Bonab et al. 2021); no redistribution",
        "https://xmrec.github.io",
        tuple(
            Original(
                tuple(f"ratings_{shop}_Electronics.txt{end}" for shop in originals.XMARKET_SHOPS), originals.xmarket
            )
            for end in (".gz", "")
        ),
    ),
    PublicSet(
        "amazon-shops",
        "amazon-shops",
        "four category shops that share shoppers; 932,463 reviews, 103,446 shoppers, 64,695 items",
        _AMAZON,
        "https://jmcauley.ucsd.edu/data/amazon",
        tuple(
            Original(
                tuple(f"reviews_{name}_5.json{end}" for name in originals.AMAZON_CATEGORIES), originals.amazon_shops
            )
            for end in (".gz", "")
        ),
    ),
    PublicSet(
        "online-retail-ii",
        "uci-online-retail-ii",
        "invoices of a British wholesaler, countries as shops; 1,044,847 lines, 5,942 shoppers, 5,131 codes",
        "CC BY 4.0; cite Chen 2019, UCI Machine Learning Repository",
        "https://archive.ics.uci.edu/dataset/502/online+retail+ii",
        (
            Original(("online_retail_II.csv",), originals.online_retail),
            Original(("online_retail_II.xlsx",), originals.online_retail),
        ),
        archive_names=("online_retail_ii.zip", "online+retail+ii.zip"),
        has_stock_codes=True,
    ),
    PublicSet(
        "ml-100k",
        "ml-100k",
        "MovieLens 100K; 100,000 ratings, 943 shoppers, 1,682 films",
        _MOVIELENS,
        "https://grouplens.org/datasets/movielens/100k",
        (Original(("u.data",), originals.movielens_100k, ("u.item", "u.genre")),),
        archive=Archive(f"{_GROUPLENS}/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
    ),
    PublicSet(
        "ml-1m",
        "ml-1m",
        "MovieLens 1M; 1,000,209 ratings, 6,040 shoppers, 3,706 films",
        _MOVIELENS,
        "https://grouplens.org/datasets/movielens/1m",
        (Original(("ml-1m/ratings.dat",), originals.movielens_1m, ("ml-1m/movies.dat",)),),
        archive=Archive(f"{_GROUPLENS}/movielens/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
    ),
    PublicSet(
        "lastfm-2k",
        "hetrec-lastfm-2k",
        "Last.fm play counts; 92,834 pairs, 1,892 listeners, 17,632 artists",
        "non-commercial use, Last.fm terms; cite Cantador et al., HetRec 2011",
        "https://grouplens.org/datasets/hetrec-2011",
        (Original(("user_artists.dat",), originals.lastfm, ("artists.dat",)),),
        archive_names=("hetrec2011-lastfm-2k.zip",),
    ),
    PublicSet(
        "gowalla",
        "lightgcn-gowalla",
        "check-ins with the graph papers' split; 810,128 train and 217,242 test, 29,858 shoppers, 40,981 places",
        "no licence granted: collected for research (Cho et al. 2011); split of He et al. 2020; no redistribution",
        "https://github.com/gusye1234/LightGCN-PyTorch/tree/master/data/gowalla",
        (Original(("gowalla/train.txt", "gowalla/test.txt"), originals.gowalla),),
        split_column="split",
    ),
    PublicSet(
        "amazon-instant-video",
        "pfedrec-amazon-instant-video",
        "the personalised federated papers' e-commerce set; 63,836 ratings, 8,072 shoppers, 11,830 items",
        _AMAZON,
        "https://github.com/Zhangcx19/IJCAI-23-PFedRec",
        (Original(("amazon/ratings.dat",), originals.instant_video),),
    ),
    PublicSet(
        "video-games",
        "sasrec-video-games",
        "sequence papers' Amazon video games; 287,107 reviews in order, 31,013 shoppers, 23,715 items",
        _AMAZON,
        "https://github.com/kang205/SASRec/tree/master/data",
        (Original(("Video.txt",), originals.sequences), Original(("Video_Games.txt",), originals.sequences)),
    ),
)
"""All named sets but the generated marketplace."""


def named_set(name: str) -> PublicSet:
    """The set of that name, or of that file name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    names = {one.name: one for one in PUBLIC_SETS}
    found = names.get(name) or {one.file: one for one in PUBLIC_SETS}.get(name)
    if found is None:
        known = ["synthetic", *names]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"source = '{name}': there is no such set{hint} (known: {', '.join(known)})")
    return found


def is_here(one: PublicSet, folder: str | Path | None = None) -> bool:
    """Whether a set can be read without a download."""
    return any(_parquet(one, place) or _find_original(one, place) for place in data_folders(folder))


def read_set(one: PublicSet, folder: str | Path | None, *, choose_events: Choose, choose_items: Choose) -> FoundSet:
    """Read a set from the local folder, in our Parquet form or as the public original; else download it.

    Args:
        folder: None: the folder that FEDREC_DATA names, then the cache of downloads.
        choose_events, choose_items: pick the columns of our Parquet form.
    Raises:
        DataError: it is not there and may not be downloaded, or the download fails; the message says where to get it
            and where to put it.
    """
    asked = folder if folder is not None else os.environ.get("FEDREC_DATA")
    if asked and not Path(asked).is_dir():
        raise DataError(
            f"{one.name}: the data folder {asked} does not exist; set FEDREC_DATA to the folder with the sets"
        )
    for place in data_folders(folder):
        if (path := _parquet(one, place)) is not None:
            return _read_parquet(one, path, choose_events, choose_items)
        if (found := _find_original(one, place)) is not None:
            return _read_original(*found)
    target = download(one, _cache())
    found = _find_original(one, target.parent)
    if found is None:
        raise DataError(f"{target}: the archive does not hold what {one.name} needs: {_wanted(one)}")
    return _read_original(*found)


def download(one: PublicSet, folder: Path) -> Path:
    """Fetch a set's archive into a folder, showing its licence; a file with another checksum is thrown away.

    Raises:
        DataError: the set has no published checksum, the origin does not answer, or the checksum differs.
    """
    asked = os.environ.get("FEDREC_DATA")
    put = f"put {_wanted(one)} or {one.file}.parquet into {asked or 'a folder and set FEDREC_DATA to it'}"
    if one.archive is None:
        raise DataError(
            f"{one.name} is not on this machine, and its origin publishes no checksum to download it by; get it from "
            f"{one.homepage} ({one.licence}), then {put}"
        )
    print(f"downloading {one.name} from {one.archive.url}; licence: {one.licence}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / one.archive.name, folder / f"{one.archive.name}.{os.getpid()}.part"
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(one.archive.url, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:
            while block := answer.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != one.archive.md5:
            raise DataError(
                f"{one.archive.url}: the checksum is {digest.hexdigest()}, not {one.archive.md5}; try again, or {put}"
            )
        shutil.move(part, target)
    except (urllib.error.URLError, OSError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(f"{one.archive.url}: cannot be downloaded ({error}); {put}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _read_parquet(one: PublicSet, path: Path, choose_events: Choose, choose_items: Choose) -> FoundSet:
    items_path = path.with_name(f"{one.file}_items.parquet")
    items = read_file(items_path, choose_items) if items_path.is_file() else None
    events = read_file(path, choose_events)
    if one.split_column is None:
        return FoundSet(events, items, None, (), False)
    part = pd.read_parquet(path, columns=[one.split_column])[one.split_column]
    halves = [
        dataclasses.replace(events, frame=events.frame[(part == name).to_numpy()].reset_index(drop=True))
        for name in ("train", "test")
    ]
    return FoundSet(halves[0], items, halves[1], (), False)


def _read_original(layout: Original, opened: Opened) -> FoundSet:
    tables = layout.read(opened)
    events, items, test = (
        None if frame is None else RawTable(frame, {str(name): str(name) for name in frame}, tuple(map(str, frame)))
        for frame in (tables.events, tables.items, tables.test)
    )
    assert events is not None
    return FoundSet(events, items, test, tables.notes, True)


def data_folders(folder: str | Path | None = None) -> list[Path]:
    """Where sets are looked for, in order: the given folder, else FEDREC_DATA's and the cache of downloads."""
    if folder is not None:
        return [Path(folder)]
    asked = os.environ.get("FEDREC_DATA")
    return [*([Path(asked)] if asked else []), _cache()]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedrec"


def _parquet(one: PublicSet, folder: Path) -> Path | None:
    path = folder / f"{one.file}.parquet"
    return path if path.is_file() else None


def _find_original(one: PublicSet, folder: Path) -> tuple[Original, Opened] | None:
    """A layout whose files are all there, in the folder, in a folder of the set's in it, or in its zip file."""
    archives = [*one.archive_names, *([one.archive.name] if one.archive else [])]
    places = [folder, *(folder / name for name in (one.name, one.file, *(Path(name).stem for name in archives)))]
    zips = [folder / name for name in archives if (folder / name).is_file()]
    for layout in one.originals:
        for place in places:
            if all((place / name).is_file() for name in layout.required):
                names = [*layout.required, *(name for name in layout.optional if (place / name).is_file())]
                return layout, {name: _open_file(place / name) for name in names}
        for path in zips:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
            held = {name: _member(members, name) for name in (*layout.required, *layout.optional)}
            if all(held[name] for name in layout.required):
                return layout, {name: _open_member(path, member) for name, member in held.items() if member}
    return None


def _member(members: list[str], name: str) -> str | None:
    return next((member for member in members if f"/{member}".endswith(f"/{name}")), None)


def _open_file(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _open_member(path: Path, member: str) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(member))

    return opened


def _wanted(one: PublicSet) -> str:
    return " or ".join(", ".join(layout.required) for layout in one.originals)
