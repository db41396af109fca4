"""The test that the authors of neural collaborative filtering published: one item and 99 negatives for each shopper.

Source: He et al. 2017, arXiv:1708.05031; files ml-1m.test.rating and ml-1m.test.negative of their repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.public_sets import data_folders
from fedrec.errors import DataError


@dataclass(frozen=True)
class NcfTest:
    """The leave-one-out test of the NCF authors on ML-1M.

    Attributes:
        shoppers: str, (num_shoppers,).
        items: str, (num_shoppers,); each shopper's test item.
        negatives: str, (num_shoppers, 99); items to rank it among, by the authors' own draw.
    """

    shoppers: np.ndarray
    items: np.ndarray
    negatives: np.ndarray


def ncf_test(folder: str | Path | None = None) -> NcfTest:
    """The NCF authors' exact test on ML-1M, in the ids of the set ``ml-1m``; needs our Parquet form.

    Raises:
        DataError: ml-1m.parquet or ncf-ml-1m_negatives.parquet is not in the folder.
    """
    for place in data_folders(folder):
        files = [place / "ml-1m.parquet", place / "ncf-ml-1m_negatives.parquet"]
        if all(path.is_file() for path in files):
            break
    else:
        raise DataError("NCF's test needs ml-1m.parquet and ncf-ml-1m_negatives.parquet in the folder of FEDREC_DATA")
    ratings = pd.read_parquet(files[0], columns=["user_id", "item_id", "ncf_user", "ncf_item"])
    test = pd.read_parquet(files[1])
    shopper = ratings.drop_duplicates("ncf_user").set_index("ncf_user")["user_id"].astype("str")
    item = ratings.drop_duplicates("ncf_item").set_index("ncf_item")["item_id"].astype("str")
    drawn = np.stack([np.fromstring(text.strip("[]"), dtype=np.int64, sep=",") for text in test["negatives"]])
    return NcfTest(
        shopper.reindex(test["ncf_user"]).to_numpy(dtype=object),
        item.reindex(test["ncf_item"]).to_numpy(dtype=object),
        item.reindex(drawn.ravel()).to_numpy(dtype=object).reshape(drawn.shape),
    )
