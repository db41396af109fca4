"""What the lists' routes answer, on a shop small enough to know every list by heart."""

from __future__ import annotations

from collections.abc import Callable

import httpx

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
