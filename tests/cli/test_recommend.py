"""``fedrec recommend``: one list, all lists, and names that are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedrec.shop.recommend import recommend


@pytest.fixture(scope="session")
def events(run_dir: Path) -> pd.DataFrame:
    return pd.read_parquet(run_dir / "split.parquet").astype({"shop": str, "shopper": str, "item": str})


def test_a_list_holds_new_items_with_titles_scores_and_reasons(run_dir: Path, events: pd.DataFrame) -> None:
    shop, shopper = events.loc[0, ["shop", "shopper"]]
    bought = set(events.query("shop == @shop and shopper == @shopper")["item"])
    sold = set(events.query("shop == @shop and part != 2")["item"])
    lines = recommend(run_dir, shop, shopper, 5)
    assert [line.rank for line in lines] == [1, 2, 3, 4, 5]
    assert not bought & {line.item for line in lines}
    assert {line.item for line in lines} <= sold
    assert all(line.title for line in lines)
    assert [line.score for line in lines] == sorted((line.score for line in lines), reverse=True)
    reasons = [reason for line in lines for reason in line.because]
    assert reasons
    assert {reason.item for reason in reasons} <= bought
    assert all(0 < reason.share <= 1 for reason in reasons)


def test_the_command_prints_the_same_list(fedrec: Callable[..., Any], run_dir: Path, events: pd.DataFrame) -> None:
    shop, shopper = events.loc[0, ["shop", "shopper"]]
    said = fedrec("recommend", "--run", run_dir, "--shop", shop, "--shopper", shopper, "-n", 4)
    assert said.status == 0
    places = [said.out.index(line.item) for line in recommend(run_dir, shop, shopper, 4)]
    assert places == sorted(places)
    assert "because of" in said.out


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_all_lists_go_to_a_file(
    fedrec: Callable[..., Any], run_dir: Path, events: pd.DataFrame, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"lists.{suffix}"
    assert fedrec("recommend", "--run", run_dir, "--all", "-n", 3, "--out", out).status == 0
    lists = pd.read_csv(out, dtype={"shopper": str}) if suffix == "csv" else pd.read_parquet(out)
    assert list(lists.columns) == ["shop", "shopper", "rank", "item", "title", "score"]
    pairs = events[["shop", "shopper"]].drop_duplicates()
    assert len(lists) == 3 * len(pairs)
    one = lists.iloc[0]
    rows = lists.query("shop == @one.shop and shopper == @one.shopper")
    assert rows["item"].tolist() == [line.item for line in recommend(run_dir, one.shop, one.shopper, 3)]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_one_shop_s_lists_hold_that_shop_only(fedrec: Callable[..., Any], run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.parquet"
    assert fedrec("recommend", "--run", run_dir, "--all", "--shop", "shop-2", "-n", 1, "--out", out).status == 0
    assert set(pd.read_parquet(out)["shop"]) == {"shop-2"}


def test_an_existing_file_is_refused_and_not_touched(fedrec: Callable[..., Any], run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.csv"
    out.write_text("mine")
    assert fedrec("recommend", "--run", run_dir, "--all", "--out", out).status == 2
    assert out.read_text() == "mine"


def test_unknown_names_are_refused_with_similar_ones(
    fedrec: Callable[..., Any], run_dir: Path, events: pd.DataFrame, tmp_path: Path
) -> None:
    shop, shopper = events.loc[0, ["shop", "shopper"]]
    wrong_shop = fedrec("recommend", "--run", run_dir, "--shop", f"{shop}x", "--shopper", shopper)
    assert (wrong_shop.status, wrong_shop.out) == (2, "")
    assert f"did you mean {shop}" in wrong_shop.err
    wrong_shopper = fedrec("recommend", "--run", run_dir, "--shop", shop, "--shopper", f"{shopper}x")
    assert wrong_shopper.status == 2
    assert f"did you mean {shopper}" in wrong_shopper.err
    out = tmp_path / "lists.csv"
    assert fedrec("recommend", "--run", run_dir, "--all", "--shop", "nobody", "--out", out).status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_that_cannot_be_written_is_refused(
    fedrec: Callable[..., Any], run_dir: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"{'x' * 245}.{suffix}"
    said = fedrec("recommend", "--run", run_dir, "--all", "--out", out)
    assert said.status == 2
    assert said.err.startswith("error: --out ")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_shop_that_is_in_the_test_file_alone_has_empty_lists_and_stops_nobody(
    fedrec: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [f"{shop},{shop}{u},i{(u + n) % 7},2024-01-{n + 1:02d}" for shop in "ab" for u in range(6) for n in range(4)]
    (tmp_path / "my.csv").write_text("\n".join(["shop,user_id,item_id,date", *rows]))
    (tmp_path / "later.csv").write_text("shop,user_id,item_id,date\na,a0,i5,2024-02-01\nnew,ann,i1,2024-02-01\n")
    out = tmp_path / "run"
    files = ["--events", tmp_path / "my.csv", "--test", tmp_path / "later.csv"]
    assert fedrec("simulate", *files, "--no-tune", "--set", "evaluation.bootstrap=100", "--out", out).status == 0
    said = fedrec("recommend", "--run", out, "--shop", "new", "--shopper", "ann")
    assert said.status == 0
    assert said.out.startswith("nothing for ann at new")
    assert fedrec("recommend", "--run", out, "--all", "-n", 2, "--out", tmp_path / "all.csv").status == 0
    assert set(pd.read_csv(tmp_path / "all.csv")["shop"]) == {"a", "b"}
