"""Rules that choose a private model's parameters from public numbers: the noise, the declared shoppers, the catalogue.

Nothing here may look at an event. Everything follows from the crowd x = (declared shoppers) / sigma, where sigma is the
standard deviation of the noise that one release would hold if it had the whole budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedrec.models.recommender import PublicInputs
from fedrec.privacy.mechanisms import Outlook

_ITEMS = 11.0
_FEWEST_ITEMS = 20
_MOST_ITEMS = 4000
_SHARE = 7.0
_LEAST_SHARE = 0.1
_MOST_SHARE = 0.5
_RIDGE = 30.0
_LARGEST_CROWD = 1e12
_CONTENT = 6.0


@dataclass(frozen=True)
class ItemItemRules:
    """What the rules say for one run.

    Attributes:
        released_items: K = 11 sqrt(x), within 20 and 4,000 and the catalogue.
        regularisation: lambda of EASE, in units of the co-occurrence sum.
        content_weight: rho where content explains co-occurrence well, in the same units; 0 without item texts.
        popularity_weight: added to a score for each unit of popularity: an item that all declared shoppers have, and
            nothing else, gets 1.
        crowd: x, at most 10^12.
        own_weight: w, of a shop's own pairs beside the noisy sum.
        tail_share: of content's links to items outside the K.
    """

    released_items: int
    regularisation: float
    content_weight: float
    popularity_weight: float
    crowd: float
    own_weight: float
    tail_share: float


def item_item_rules(outlook: Outlook, public: PublicInputs) -> ItemItemRules:
    """Parameters of the private item-item models."""
    most = min(_MOST_ITEMS, public.num_items)
    wanted = _ITEMS * math.sqrt(crowd(outlook))
    return ItemItemRules(
        released_items=max(1, round(min(max(wanted, _FEWEST_ITEMS), most))),
        regularisation=_RIDGE,
        content_weight=_CONTENT if public.content is not None else 0.0,
        popularity_weight=1 / outlook.public_shoppers,
        crowd=min(crowd(outlook), _LARGEST_CROWD),
        own_weight=10.0,
        tail_share=0.02,
    )


def popularity_share(crowd: float | None) -> float:
    """Part of 1 / sigma^2 that popularity and the choice of items get: 7 / sqrt(x), within a tenth and a half."""
    return _LEAST_SHARE if crowd is None else min(max(_SHARE / math.sqrt(max(crowd, 1.0)), _LEAST_SHARE), _MOST_SHARE)


def crowd(outlook: Outlook) -> float:
    """x: declared shoppers over the noise of one release with the whole budget (1 / sigma^2 adds up over releases)."""
    precision = math.sqrt(sum(noise_sd**-2 for noise_sd in outlook.noise_sds if noise_sd > 0))
    return outlook.public_shoppers * precision if precision > 0 else math.inf
