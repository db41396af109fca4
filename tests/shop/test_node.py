from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError, StoreError
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.terms import Terms
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import PublicInputs
from fedrec.shop.node import read_shop_files, shop_nodes, write_shop_files

ROSTER = ("north", "south")


@pytest.fixture
def public():
    content = sparse.csr_matrix(np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32))
    return PublicInputs(np.array(["ä", "b", "c"]), content)


@pytest.fixture
def histories():
    return [sparse.csr_matrix(np.eye(3, dtype=np.float32)), sparse.csr_matrix(np.ones((2, 3), dtype=np.float32))]


def test_a_shop_refuses_what_it_did_not_agree_to(public, histories):
    model = Ease(EaseSettings(regularisation=5.0))
    node = shop_nodes(model, public, Terms(ROSTER), histories)[0]
    node.answer(Coordinator(model, public, Terms(ROSTER)).next_plan())
    for other in (
        Coordinator(model, public, Terms(("south", "west"))),
        Coordinator(Ease(EaseSettings(regularisation=6.0)), public, Terms(ROSTER)),
        Coordinator(Popularity(), public, Terms(ROSTER)),
        Coordinator(model, PublicInputs(public.items[::-1]), Terms(ROSTER)),
        Coordinator(model, public, Terms(ROSTER[:1])),
        Coordinator(model, public, Terms(ROSTER, min_shops=2)),
        Coordinator(model, public, Terms(ROSTER, clip_norm=1e9)),
    ):
        with pytest.raises(BadMessage):
            node.answer(other.next_plan())


def test_shops_come_back_from_their_files(tmp_path, public, histories):
    model = Ease(EaseSettings(regularisation=5.0, max_items=2))
    terms = Terms(ROSTER, min_shops=2, run_id="r", clip_norm=1.5)
    write_shop_files(tmp_path, model, public, terms, histories)
    files = read_shop_files(tmp_path)
    assert files.model == model
    assert files.terms == terms
    np.testing.assert_array_equal(files.public.items, public.items)
    np.testing.assert_array_equal(files.public.content.toarray(), public.content.toarray())
    for place, rows in enumerate(histories):
        node = files.node(place)
        assert node.name == ROSTER[place]
        np.testing.assert_array_equal(node.histories.toarray(), rows.toarray())
        assert node.histories.dtype == rows.dtype
    plan = Coordinator(model, public, Terms(ROSTER, min_shops=2, run_id="r", clip_norm=1.5)).next_plan()
    node = shop_nodes(model, public, terms, histories)[1]
    assert files.node(1).answer(plan).to_bytes() == node.answer(plan).to_bytes()


def test_a_shop_opens_its_own_file_alone(tmp_path, public, histories):
    write_shop_files(tmp_path, Popularity(), public, Terms(ROSTER), histories)
    (tmp_path / "federation" / "shop-00000.npz").unlink()
    assert read_shop_files(tmp_path).node(1).name == "south"


def test_a_folder_without_shop_files_is_refused(tmp_path):
    with pytest.raises(StoreError, match="run-dir"):
        read_shop_files(tmp_path)


@pytest.mark.parametrize("place", [-1, 2])
def test_a_place_outside_the_roster_is_refused(tmp_path, public, histories, place):
    write_shop_files(tmp_path, Popularity(), public, Terms(ROSTER), histories)
    with pytest.raises(ConfigError, match="partition-id"):
        read_shop_files(tmp_path).node(place)


def test_a_model_that_other_processes_cannot_import_is_refused(tmp_path, public, histories):
    @dataclass(frozen=True)
    class Hidden(Popularity):
        name: ClassVar[str] = "hidden"

    with pytest.raises(ConfigError, match="Hidden"):
        write_shop_files(tmp_path, Hidden(), public, Terms(ROSTER), histories)
    assert list(tmp_path.iterdir()) == []


def test_histories_over_another_item_list_are_refused(public, histories):
    with pytest.raises(ConfigError, match="4 items"):
        shop_nodes(Popularity(), public, Terms(ROSTER), [histories[0], sparse.csr_matrix((1, 4))])


def test_a_printed_node_shows_no_history(public, histories):
    node = shop_nodes(Popularity(), public, Terms(ROSTER), histories)[0]
    assert repr(node) == "ShopNode('north', histories=(3, 3))"
    assert replace(node, name="x").name == "x"
