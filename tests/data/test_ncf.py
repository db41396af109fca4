"""The NCF authors' test on MovieLens-1M."""

import pandas as pd
import pytest

from fedrec.data.ncf import ncf_test
from fedrec.errors import DataError


def test_ids_are_those_of_the_ratings(tmp_path):
    ratings = {"user_id": [7, 7, 9], "item_id": [50, 60, 70], "ncf_user": [0, 0, 1], "ncf_item": [0, 1, 2]}
    pd.DataFrame(ratings).to_parquet(tmp_path / "ml-1m.parquet")
    negatives = {"ncf_user": [1, 0], "ncf_item": [2, 1], "negatives": ["[0, 1]", "[2, 0]"]}
    pd.DataFrame(negatives).to_parquet(tmp_path / "ncf-ml-1m_negatives.parquet")
    test = ncf_test(tmp_path)
    assert test.shoppers.tolist() == ["9", "7"]
    assert test.items.tolist() == ["70", "60"]
    assert test.negatives.tolist() == [["50", "60"], ["70", "50"]]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"ncf-ml-1m_negatives\.parquet"):
        ncf_test(tmp_path)


@pytest.mark.data
def test_real_ncf_test_is_the_authors_with_their_mistake(data_dir):
    test = ncf_test(data_dir)
    assert test.negatives.shape == (6040, 99)
    ratings = pd.read_parquet(data_dir / "ml-1m.parquet", columns=["user_id", "item_id", "is_ncf_test"])
    asked = ratings[ratings["is_ncf_test"]].astype("str")
    assert set(zip(test.shoppers, test.items, strict=True)) == set(zip(asked["user_id"], asked["item_id"], strict=True))
    assert (test.negatives == test.items[:, None]).any(axis=1).sum() == 156
