"""Rules that choose a private model's parameters from public numbers: the noise, the declared shoppers, the catalogue.

Nothing here may look at an event. What decides is how large the noise is against the crowd: r = (standard deviation of
the noise in the co-occurrence sum) / (declared shoppers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedrec.models.recommender import PublicInputs
from fedrec.privacy.mechanisms import Outlook

_RELATIVE_NOISE = (1.05e-4, 1.9e-4, 3.5e-4, 6.5e-4)
_RELEASED_ITEMS = (1200, 600, 600, 450)
_RIDGE = (20.0, 30.0, 30.0, 30.0)


@dataclass(frozen=True)
class ItemItemRules:
    """What the rules say for one run.

    Attributes:
        released_items: K.
        regularisation: lambda of EASE, in units of the co-occurrence sum.
        content_weight: rho, in the same units.
        own_weight: w, of a shop's own pairs beside the noisy sum.
        tail_share: of content's links to items outside the K.
    """

    released_items: int
    regularisation: float
    content_weight: float
    own_weight: float
    tail_share: float


def item_item_rules(outlook: Outlook, public: PublicInputs) -> ItemItemRules:
    """Parameters of the private item-item models, interpolated over the logarithm of the relative noise."""
    noise = math.log(max(outlook.noise_sds[-1] / outlook.public_shoppers, 1e-300))
    at = np.log(_RELATIVE_NOISE)
    released = math.exp(np.interp(noise, at, np.log(_RELEASED_ITEMS)))
    return ItemItemRules(
        released_items=max(1, min(round(released), public.num_items)),
        regularisation=float(np.interp(noise, at, _RIDGE)),
        content_weight=3.0 if public.content is not None else 0.0,
        own_weight=10.0,
        tail_share=0.02,
    )
