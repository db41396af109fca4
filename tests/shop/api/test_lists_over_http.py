"""What the lists' routes answer, on a shop small enough to know every list by heart."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from fedrec.shop.api.schemas import RankedOut

Send = Callable[..., dict[str, object]]


def home(api: httpx.Client, shopper: str, **query: object) -> RankedOut:
    answer = api.get(f"/v1/shoppers/{shopper}/recommendations", params=query)
    assert answer.status_code == 200, answer.text
    return RankedOut.model_validate_json(answer.content)


def keys(ranked: RankedOut) -> list[str]:
    return [line.item for line in ranked.items]


def test_a_posted_event_is_in_the_next_list(api: httpx.Client, send: Send) -> None:
    before = home(api, "ann", n=3)
    assert (before.reason, keys(before)) == ("popular", ["a", "b", "c"])
    assert send("ann", "d") == {"accepted": 1, "duplicates": 0, "erased": 0, "refused": []}
    after = home(api, "ann", n=3)
    assert (after.reason, keys(after)[:2]) == ("personal", ["e", "f"])
    assert home(api, "bob", n=3).reason == "popular"


def test_an_answer_says_what_stands_behind_it(api: httpx.Client, send: Send) -> None:
    send("ann", "d")
    found = home(api, "ann", n=1, explain=True)
    assert (found.model_version, found.mode, found.epsilon_outside, found.inside_shop) == (
        "r1",
        "distributed",
        2.0,
        "none",
    )
    (line,) = found.items
    assert (line.item, line.title, line.source, line.position) == ("e", "Title e", "personal", 0)
    assert line.explanation is not None
    (because,) = line.explanation.contributions
    assert because.item == "d"
    total = line.explanation.base + line.explanation.boost + because.value + line.explanation.others
    assert abs(total - line.score) < 1e-9


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("n=0", "n"),
        ("n=ten", "n"),
        ("n=1&n=2", "n"),
        ("shop=other", "shop"),
        ("price_min=nan", "price_min"),
        ("price_min=2&price_max=1", "body"),
        ("diversity=1.1", "diversity"),
        ("category=" + "&category=".join("abc" * 20), "category"),
        ("exclude=%FF", None),
        ("boost=e=lots", None),
        ("boost=1", None),
        ("n=5&" + "x" * 9000, None),
    ],
)
def test_what_is_not_documented_is_refused_with_its_place(api: httpx.Client, query: str, where: str | None) -> None:
    answer = api.get(f"/v1/popular?{query}")
    assert answer.status_code == 422
    found = answer.json()
    assert [one["where"] for one in found.get("errors", [])] == ([] if where is None else [where])


def test_parameters_do_what_they_say(api: httpx.Client, send: Send) -> None:
    def listed(**query: object) -> list[str]:
        answer = api.get("/v1/popular", params={"n": 3, **query})
        return [line["item"] for line in answer.json()["items"]]

    assert listed() == ["a", "b", "c"]
    assert listed(offset=1, exclude=["b", "d"]) == ["c", "e", "f"]
    assert listed(category="odd") == ["b", "d", "f"]
    assert listed(not_category="odd") == ["a", "c", "e"]
    assert listed(price_min=13, price_max=14) == ["d", "e"]
    assert listed(pin=["k", "h"]) == ["k", "h", "a"]
    assert listed(boost=["l=9"])[0] == "l"
    send("ann", "d")
    assert "d" not in keys(home(api, "ann", n=50))
    assert "d" in keys(home(api, "ann", n=50, include_bought=True))
    assert api.post("/v1/cart", json={"items": ["a"], "shopper": "ann", "n": 3}).json()["items"][0]["item"] == "b"
    assert api.get("/v1/items/nothing/similar").status_code == 404


def test_an_unchanged_list_is_the_computed_one(api: httpx.Client, send: Send) -> None:
    send("ann", "d")
    first, second = (home(api, "ann", explain=True, n=5) for _ in range(2))
    assert "fedrec_lists_unchanged_total 1.0" in api.get("/metrics").text
    assert first.model_copy(update={"list_id": ""}) == second.model_copy(update={"list_id": ""})
    assert len({first.list_id, second.list_id}) == 2
