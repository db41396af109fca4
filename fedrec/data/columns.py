"""Which column of somebody's table means what: by its usual name, or as the user says."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from fedrec.errors import ConfigError, DataError

Names = tuple[tuple[str, ...], ...]

EVENT_COLUMNS: dict[str, Names] = {
    "shopper": (
        (
            "userid",
            "shopperid",
            "customerid",
            "clientid",
            "visitorid",
            "reviewerid",
            "buyerid",
            "memberid",
            "accountid",
            "consumerid",
            "customerno",
            "customernumber",
            "usernumber",
            "userno",
        ),
        ("user", "shopper", "customer", "client", "visitor", "reviewer", "buyer", "member", "consumer", "uid"),
        ("householdid", "householdkey", "household", "sessionid", "session"),
    ),
    "item": (
        (
            "itemid",
            "productid",
            "articleid",
            "stockcode",
            "asin",
            "parentasin",
            "sku",
            "skuid",
            "movieid",
            "artistid",
            "bookid",
            "songid",
            "trackid",
            "gameid",
            "isbn",
            "productno",
            "productnumber",
            "itemno",
            "itemnumber",
            "articleno",
            "articlenumber",
            "businessid",
            "recipeid",
            "newsid",
        ),
        ("item", "product", "article", "movie", "artist", "book", "song", "track", "game", "iid", "gtin", "ean", "upc"),
    ),
    "timestamp": (
        (
            "timestamp",
            "unixtimestamp",
            "unixtime",
            "unixreviewtime",
            "datetime",
            "eventtime",
            "eventtimestamp",
            "eventdate",
            "ts",
            "invoicedate",
            "orderdate",
            "purchasedate",
            "purchasetime",
            "transactiondate",
            "transactiontime",
            "createdat",
            "orderedat",
            "ordertime",
            "saledate",
        ),
        ("date", "time", "day", "reviewtime", "reviewdate"),
    ),
    "order": (("seq", "sequence", "sequencenumber", "sequenceno", "seqno"), ("position", "step")),
    "rating": (("rating", "stars", "score", "overall", "starrating", "ratingvalue", "reviewrating", "rate"),),
    "quantity": (("quantity", "qty", "units", "playcount", "plays"), ("count", "weight")),
    "price": (("unitprice", "price", "itemprice", "productprice"),),
    "basket": (
        (
            "basketid",
            "orderid",
            "invoiceid",
            "invoiceno",
            "invoicenumber",
            "invoice",
            "orderno",
            "ordernumber",
            "transactionid",
            "receiptid",
            "cartid",
            "receiptno",
            "receiptnumber",
            "basketno",
        ),
        ("basket", "order", "transaction", "receipt", "cart"),
    ),
    "shop": (
        ("shopid", "storeid", "merchantid", "sellerid", "branchid", "marketplaceid"),
        ("shop", "store", "merchant", "seller", "branch", "marketplace", "shopname", "storename", "market"),
    ),
    "event": (
        ("eventtype", "actiontype", "behaviortype", "behaviourtype"),
        ("event", "action", "behavior", "behaviour"),
    ),
    "title": (
        ("title", "itemtitle", "producttitle", "movietitle", "booktitle"),
        ("itemname", "productname", "articlename", "name", "artistname"),
        ("description", "itemdescription", "productdescription", "desc"),
    ),
    "category": (
        ("category", "categories", "genre", "genres", "itemcategory", "productcategory", "categoryname"),
        ("categorycode", "categoryid", "department", "producttype", "productgroup", "attributes"),
    ),
    "is_cancel": (
        (
            "iscancel",
            "iscancelled",
            "iscanceled",
            "cancelled",
            "canceled",
            "iscancellation",
            "isreturn",
            "isreturned",
            "isrefund",
        ),
    ),
}
"""Role -> its usual names, written without spaces, underscores, hyphens and capitals; the earlier group wins."""

ITEM_COLUMNS: dict[str, Names] = {
    "item": (*EVENT_COLUMNS["item"], ("id", "code")),
    **{role: EVENT_COLUMNS[role] for role in ("shop", "title", "category", "price")},
}
"""The same for a file of items."""

INVOICE_NAMES = frozenset({"invoice", "invoiceid", "invoiceno", "invoicenumber"})
"""Baskets under these names mark cancellations by a leading C."""

STOCK_CODE_NAMES = frozenset({"stockcode"})
"""Items under these names are stock codes, among which postage, fees and the like have codes of their own."""

GTIN_NAMES = frozenset(
    {"gtin", "gtin8", "gtin12", "gtin13", "gtin14", "ean", "ean8", "ean13", "upc", "upca", "barcode"}
)
"""Keys under these names are GTINs of 8, 12, 13 or 14 digits, which are the same number with zeros in front."""


def simple_name(name: str) -> str:
    """A column's name without capitals, spaces, underscores, hyphens and dots."""
    return re.sub(r"[\s_\-.]+", "", str(name)).casefold()


def find_columns(
    names: Sequence[str],
    usual: Mapping[str, Names],
    *,
    where: str,
    given: Mapping[str, str] | None = None,
    required: Iterable[str] = (),
    apart: Iterable[str] = (),
    elsewhere: Iterable[str] = (),
) -> dict[str, str]:
    """Find the column of each role.

    Args:
        names: the table's columns.
        usual: `EVENT_COLUMNS` or `ITEM_COLUMNS`.
        where: what the table is called in messages.
        given: role -> column, as the user says; wins over the usual names.
        required: roles that must be found.
        apart: columns that have a meaning already (an item key) and stand for a role only if nothing else does.
        elsewhere: columns of another table in which a column of ``given`` may be instead.
    Returns:
        Role -> column, for the roles found. A column has one role, unless ``given`` says otherwise.
    Raises:
        ConfigError: ``given`` names a role that there is not.
        DataError: a given column is missing, two columns claim one role, or a required role has none.
    """
    found = {}
    for role, column in (given or {}).items():
        if role not in usual:
            continue
        match = match_column(column, names)
        if match is not None:
            found[role] = match
        elif match_column(column, elsewhere) is None:
            raise missing_column(column, names, where=where, what=f"the column given for {role}")
    taken = set(found.values())
    for role, groups in usual.items():
        if role not in found:
            free = [name for name in names if name not in taken]
            first = _usual_column(role, groups, [name for name in free if name not in set(apart)], where)
            if first is None and role == "item":
                first = _usual_column(role, groups, free, where)
            if first is not None:
                found[role] = first
                taken.add(first)
    for role in required:
        if role not in found:
            raise DataError(
                f"{where}: no column is the {role} by its name; columns are {listed(names)}; "
                f'say which with --columns {role}=NAME, or in a file columns = {{ {role} = "NAME" }} under [data]'
            )
    return found


def check_roles(given: Mapping[str, str]) -> dict[str, str]:
    """The user's mapping with roles by their own names ("user_id" is the shopper).

    Raises:
        ConfigError: a role is unknown, or named twice.
    """
    by_name = {name: role for role, groups in EVENT_COLUMNS.items() for group in groups for name in group}
    roles: dict[str, str] = {}
    for name, column in given.items():
        role = name if name in EVENT_COLUMNS else by_name.get(simple_name(name))
        if role is None:
            known = ", ".join(EVENT_COLUMNS)
            raise ConfigError(
                f"--columns {name}={column}: there is no '{name}'{_near(name, EVENT_COLUMNS)}; known: {known}"
            )
        if role in roles:
            raise ConfigError(f"--columns names the {role} twice: {roles[role]} and {column}; name it once")
        roles[role] = str(column)
    return roles


def match_column(column: str, names: Iterable[str]) -> str | None:
    """The column of that name: exactly, else the only one that differs in capitals, spaces or underscores alone."""
    names = list(names)
    if column in names:
        return column
    alike = [name for name in names if simple_name(name) == simple_name(column)]
    return alike[0] if len(alike) == 1 else None


def missing_column(column: str, names: Iterable[str], *, where: str, what: str) -> DataError:
    """The error for a column that is not there."""
    names = list(map(str, names))
    return DataError(f"{where}: {what}, '{column}', is not there{_near(column, names)}; columns are {listed(names)}")


def listed(names: Iterable[str], limit: int = 40) -> str:
    """Column names for a message of one line."""
    texts = [" ".join(str(name).split()) for name in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def _usual_column(role: str, groups: Names, names: Sequence[str], where: str) -> str | None:
    for group in groups:
        matches = [name for name in names if simple_name(name) in group]
        if len(matches) > 1:
            listed = " and ".join(f"'{name}'" for name in matches)
            raise DataError(
                f"{where}: {listed} could each be the {role}; say which with --columns {role}={matches[0]} "
                f"or --columns {role}={matches[1]}"
            )
        if matches:
            return matches[0]
    return None


def _near(word: str, known: Iterable[str]) -> str:
    simple = {simple_name(name): name for name in known}
    close = difflib.get_close_matches(simple_name(word), list(simple), n=1, cutoff=0.5)
    return f"; did you mean '{simple[close[0]]}'?" if close else ""
