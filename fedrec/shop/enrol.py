"""Joining a federation: a shop makes its keys, answers an invitation, and reads its own events."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from fedrec.data import sources
from fedrec.data.events import Events
from fedrec.data.items import Items
from fedrec.data.shops import ShopData, build_shops
from fedrec.data.sources import DataSettings
from fedrec.data.split import Split, SplitKind, make_split
from fedrec.data.split_kinds import Part
from fedrec.errors import ConfigError, DataError, StoreError
from fedrec.federation.enrolment import Enrolment, Invitation
from fedrec.federation.run_record import write_atomically
from fedrec.models.content import content_features
from fedrec.models.recommender import PublicInputs
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.shop.member import IDENTITY_FILE, INVITATION_FILE, NODE_KEY_FILE


def enrol(
    folder: Path,
    invitation: bytes,
    *,
    name: str,
    public_shoppers: int,
    settings_file: tuple[str, bytes],
    new_node_key: Callable[[], tuple[bytes, bytes]],
) -> tuple[Invitation, Path]:
    """Make a shop's folder and its enrolment file.

    Args:
        folder: must not hold a shop.
        invitation: the coordinator's file.
        name: of the shop on the roster.
        public_shoppers: declared, one significant digit.
        settings_file: name and bytes of the shop's settings.
        new_node_key: makes a node's private and public key, PEM.
    Returns:
        The invitation, whose fingerprint a person compares, and the enrolment file to send back.
    Raises:
        StoreError: the folder holds a shop.
        BadMessage, BadSignature: no invitation, an expired or a changed one.
    """
    found = Invitation.read(invitation, now=datetime.datetime.now(datetime.UTC))
    folder = Path(folder)
    if (folder / IDENTITY_FILE).exists():
        raise StoreError(f"{folder}: holds a shop already; choose another folder")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = IdentityKey.generate()
        private, public = new_node_key()
        answer = Enrolment(found.coordinator, name, key.public.raw.hex(), public.decode(), public_shoppers)
        key.save(folder / IDENTITY_FILE)
        node_key = folder / NODE_KEY_FILE
        node_key.touch(mode=0o600)
        node_key.write_bytes(private)
        write_atomically(folder / INVITATION_FILE, invitation)
        write_atomically(folder / settings_file[0], settings_file[1])
        path = folder / f"{name}.enrolment.json"
        write_atomically(path, answer.sign(key))
    except OSError as error:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"{folder}: cannot be written ({error.strerror})") from error
    return found, path


def read_own_data(
    settings: DataSettings, shop: str, *, validation: str, seed: int = 0
) -> tuple[ShopData, PublicInputs]:
    """A shop's own events, what is held back to judge new models on, and its item space.

    Args:
        shop: its name; events of other shops in the same file are left out, where a column names shops.
        validation: ``leave-last``, ``random-share`` or ``none``.
    Raises:
        DataError, ConfigError: the events cannot be read or used.
    """
    loaded = sources.load(settings, seed=seed)
    events = Events(rows_of_shop(loaded.events.table, shop))
    return own_data(events, loaded.items, shop, validation=validation, seed=seed)


def rows_of_shop(table: pd.DataFrame, shop: str) -> pd.DataFrame:
    """The rows of one shop where a column names shops, else all of them.

    Raises:
        DataError: none of them is the shop's.
    """
    if "shop" not in table:
        return table
    own = table[table["shop"].astype(str) == shop]
    if own.empty:
        names = ", ".join(table["shop"].value_counts().index.astype(str)[:5])
        raise DataError(f"the events have a column of shops, none of them is {shop!r}; the largest are {names}")
    return own


def own_data(
    events: Events, items: Items, shop: str, *, validation: str, seed: int = 0
) -> tuple[ShopData, PublicInputs]:
    """A shop's events, all its own, as `read_own_data` gives them."""
    table = events.table
    own = pd.Categorical.from_codes(np.zeros(len(table), np.int8), categories=pd.Index([shop], dtype="str"))
    events = Events(table.assign(shop=own))
    split = _held_back(events, validation, seed)
    _, (built,) = build_shops(split, items)
    nothing = sparse.csr_matrix(built.test.shape, dtype=np.float32)
    features = content_features(items.table["title"], items.table["category"])
    public = PublicInputs.of(built.items, features, items.table.index)
    return replace(built, validation=built.test, test=nothing), public


def _held_back(events: Events, validation: str, seed: int) -> Split:
    """One part to train on and one to judge on, which stands in the test's place."""
    if validation == "none":
        return Split(events, np.full(len(events), Part.TRAIN, np.int8), {})
    has_order = bool({"order", "timestamp"} & set(events.table))
    if validation == "leave-last" and not has_order:
        raise ConfigError('data.validation = "leave-last" needs times; give "random-share" or "none"')
    if validation == "random-share":
        return make_split(events, SplitKind.RANDOM_SHARE, seed=seed, validation=False, validation_share=0.0)
    return make_split(events, SplitKind.LEAVE_LAST, seed=seed, validation=False)
