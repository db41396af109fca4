"""A model made ready on disk is the model; where it is promised nothing of other shoppers is in it; damage shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from fedrec.data.shops import final_rows
from fedrec.errors import ConfigError, StoreError
from fedrec.models.content import content_features
from fedrec.models.ease import Ease, PrivateEase
from fedrec.models.factors import IalsSettings
from fedrec.models.ials import Ials
from fedrec.models.recommender import PublicInputs, train_alone
from fedrec.shop.adoption import LOCAL, judge_and_keep, scorer_of
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.pairs import own_pairs
from fedrec.shop.lists.ranked import Query
from fedrec.shop.lists.serving_files import PreparationSettings, Serving, open_serving, prepare
from fedrec.shop.lists.serving_model import Dense, ItemItem
from fedrec.shop.lists.shelf import Shelf
from fedrec.shop.lists.trends import Trends
from fedrec.shop.personalise import ShopPersonalisation

from ..town import ITEMS, NUM_ITEMS, small_shop
from .shelves import Item, bought

PUBLIC = PublicInputs(ITEMS, content_features([f"ring {place // 3}" for place in range(NUM_ITEMS)], [""] * NUM_ITEMS))
ALL_PAIRS = ShopPersonalisation(half_share_shoppers=10_000.0, own_statistics_min_shoppers=1)
SHOP = small_shop("ant")
ROWS = final_rows(SHOP.train, SHOP.validation, SHOP.fold_in)
RAW, JOINT = PreparationSettings(), PreparationSettings(Serving.JOINT_DP)


def keep(folder: Path, run_id: str, model: object, mode: str = "distributed") -> None:
    many = small_shop("many", num_shoppers=500, seed=1)
    judge_and_keep(
        folder,
        run_id,
        model,  # type: ignore[arg-type]
        train_alone(model, many.train, PUBLIC),  # type: ignore[arg-type]
        PUBLIC,
        data=SHOP,
        positions=np.arange(NUM_ITEMS),
        shop_public=PUBLIC,
        settings=ALL_PAIRS,
        mode=mode,
    )


def made(folder: Path, version: str, settings: PreparationSettings = RAW, rows: sparse.csr_matrix = ROWS, **more):
    return prepare(
        folder, version, rows, PUBLIC, settings=settings, personalisation=ALL_PAIRS, spent_epsilon=1.5, **more
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    keep(folder, "private", PrivateEase())
    keep(folder, "ials", Ials(IalsSettings(factors=4, sweeps=2)))
    return folder


@pytest.mark.parametrize(("version", "kind"), [(LOCAL, ItemItem), ("private", ItemItem), ("ials", Dense)])
def test_what_is_opened_scores_as_the_version_does(models, version, kind):
    made(models, version)
    model = open_serving(models, version)
    assert isinstance(model, kind)
    history = np.array([3, 17])
    row = sparse.csr_matrix(np.isin(np.arange(NUM_ITEMS), history)[None, :].astype(np.float32))
    expected = scorer_of(models, version, ROWS, PUBLIC, ALL_PAIRS).scores(row)[0]
    assert model.scores(history, np.ones(2)) == pytest.approx(expected, abs=1e-5)
    assert model.popularity.tolist() == np.asarray(ROWS.sum(axis=0)).ravel().tolist()
    assert model.items.tolist() == ITEMS.tolist()
    assert model.served.mode == ("alone" if version == LOCAL else "distributed")
    assert (model.served.epsilon_outside, model.served.inside_shop) == (1.5, "none")


def test_a_version_without_a_promise_bounds_nothing_and_is_not_served_under_joint_dp(tmp_path):
    keep(tmp_path, "open", Ease(), mode="none")
    assert made(tmp_path, LOCAL).served.epsilon_outside is None
    with pytest.raises(ConfigError, match="without a promise"):
        made(tmp_path, "open", JOINT)


@pytest.mark.parametrize("version", [LOCAL, "private", "ials"])
def test_under_joint_dp_another_shoppers_events_change_no_answer(models, version):
    """Every list of shopper 0 stays equal, bit for bit, when shopper 1 is removed from the shop."""
    answers = []
    for rows in (ROWS, ROWS[np.r_[0, 2 : ROWS.shape[0]]]):
        made(models, version, JOINT, rows)
        shelf = Shelf.of(Item(key, f"ring {place // 3}") for place, key in enumerate(ITEMS.tolist()))
        trends = Trends()
        trends.add(rows.indices.astype(np.int64), np.ones(rows.nnz), np.zeros(rows.nnz), now=0.0)
        here = Lists(shelf, open_serving(models, version), None, trends)
        mine = bought(*ITEMS[rows[0].indices])
        query = Query(n=NUM_ITEMS, explain=True)
        answers.append(
            [
                here.home(mine, query),
                here.home([], query),
                here.session([ITEMS[4]], query),
                here.cart([ITEMS[4]], query, mine),
                here.similar(ITEMS[4], query),
                here.bought_together(ITEMS[4], query),
                here.popular(query),
                here.trending(query),
                here.newest(query),
            ]
        )
    assert answers[0] == answers[1]
    assert {one.served.inside_shop for one in answers[0]} == {"joint_dp"}
    assert answers[0][0].items


def test_raw_statistics_do_change_so_the_test_above_could_fail(models):
    first = made(models, LOCAL).scores(np.array([3]), np.ones(1))
    second = made(models, LOCAL, RAW, ROWS[1:]).scores(np.array([3]), np.ones(1))
    assert (first != second).any()


def test_own_pairs_by_hand():
    rows = sparse.csr_matrix(np.array([[1, 1, 0], [1, 1, 1], [1, 0, 1], [0, 0, 1]], np.float32))
    every = own_pairs(rows, least_shoppers=1)
    assert every.items[0].tolist() == [1, 2]
    assert every.weights[0] == pytest.approx([2 / np.sqrt(6), 2 / 3])
    common = own_pairs(rows, least_shoppers=2)
    assert common.weights[1] == pytest.approx([2 / np.sqrt(6), 0])


@pytest.mark.parametrize("damage", ["bytes", "json", "missing", "format", "version", "shape"])
def test_a_damaged_model_is_refused_in_words(tmp_path, damage):
    made(tmp_path, LOCAL)
    folder = tmp_path / LOCAL
    about = json.loads((folder / "serving.json").read_bytes())
    match damage:
        case "bytes":
            path = folder / about["arrays"]
            data = bytearray(path.read_bytes())
            data[-3] ^= 1
            path.write_bytes(data)
        case "json":
            (folder / "serving.json").write_text("{")
        case "missing":
            (folder / about["arrays"]).unlink()
        case "format" | "version" | "shape":
            changed = {"format": {"format": 9}, "shape": {"items": about["items"][1:]}}
            changed["version"] = {"served": {**about["served"], "version": "other"}}
            (folder / "serving.json").write_text(json.dumps({**about, **changed[damage]}))
    with pytest.raises(StoreError, match="fedrec shop refresh"):
        open_serving(tmp_path, LOCAL)
    with pytest.raises(StoreError, match="not made ready"):
        open_serving(tmp_path, "never")


def test_making_ready_again_leaves_one_file_of_arrays(tmp_path):
    made(tmp_path, LOCAL)
    made(tmp_path, LOCAL, rows=ROWS[1:])
    assert len(list((tmp_path / LOCAL).glob("serving-*"))) == 1
    assert open_serving(tmp_path, LOCAL).popularity.sum() == ROWS[1:].nnz
