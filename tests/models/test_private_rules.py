"""What the rules choose from public numbers."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import ConfigError, NoPrivateVariant
from fedrec.models import describe_models, load_model, private_model, private_schedule, release_requests
from fedrec.models.ease import Ease
from fedrec.models.private_rules import crowd, item_item_rules, popularity_share
from fedrec.models.recommender import PublicInputs
from fedrec.privacy.mechanisms import Outlook, PlannedRelease, sum_noise_sd
from fedrec.privacy.spec import Mode, PrivacySpec

NAMES = ("popularity", "co-occurrence")


def outlook(noise_sd: float, public_shoppers: int = 6000, names: tuple[str, ...] = NAMES) -> Outlook:
    schedule = tuple(PlannedRelease(name, 1.0, noise_sd) for name in names)
    return Outlook(schedule, (3 * noise_sd, noise_sd), public_shoppers)


def public(num_items: int = 3600, has_content: bool = True) -> PublicInputs:
    items = np.array([f"i{n}" for n in range(num_items)], dtype=object)
    return PublicInputs(items, sparse.csr_matrix(np.eye(num_items, 5, dtype=np.float32)) if has_content else None)


def test_more_noise_never_releases_more_items():
    chosen = [
        item_item_rules(outlook(sd), public()).released_items for sd in (1e-6, 0.1, 0.6, 1.1, 2.1, 4.0, 40.0, 1e9)
    ]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] >= 1


def test_noise_counts_against_the_declared_shoppers():
    few, many = (item_item_rules(outlook(sd, crowd), public()) for sd, crowd in ((1.0, 6000), (10.0, 60_000)))
    assert few.released_items == many.released_items < item_item_rules(outlook(1.0, 60_000), public()).released_items
    assert few.popularity_weight == pytest.approx(10 * many.popularity_weight)


def test_no_more_items_are_released_than_there_are():
    for num_items in (1, 17):
        assert item_item_rules(outlook(0.01), public(num_items)).released_items == num_items


def test_without_item_texts_content_has_no_weight():
    assert item_item_rules(outlook(1.0), public(has_content=False)).content_weight == 0
    assert item_item_rules(outlook(1.0), public()).content_weight > 0


def test_every_rule_gives_valid_settings_from_hardly_any_noise_to_nothing_but_noise():
    for sd in (1e-9, 1.0, 1e9):
        for num_items in (1, 50, 20_000):
            model = private_model(Ease(), outlook(sd), public(num_items))
            assert all(np.isfinite(value) for value in dataclasses.asdict(model.settings).values())


def test_a_schedule_of_other_releases_is_refused():
    with pytest.raises(ConfigError, match="asks for the releases"):
        private_model(Ease(), outlook(1.0, names=NAMES[:1]), public())


@dataclasses.dataclass(frozen=True)
class NotPrivate:
    """A model without a private variant."""

    name = "open"


def test_a_model_without_a_private_variant_is_refused_by_name():
    with pytest.raises(NoPrivateVariant, match=r"'open' cannot be trained.*popularity, itemknn, ease"):
        private_model(NotPrivate(), outlook(1.0), public())


def test_descriptions_say_which_models_can_be_private():
    able = {about.name for about in describe_models() if about.can_be_private}
    assert {"ease", "itemknn", "popularity"} <= able
    assert all(hasattr(load_model(name), "private") for name in able)


def test_a_small_crowd_spends_more_on_popularity():
    shares = [popularity_share(x) for x in (0.1, 100.0, 400.0, 2000.0, 1e5, 1e9)]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1], popularity_share(None)) == (0.5, 0.1, 0.1)


@pytest.mark.parametrize("name", [about.name for about in describe_models() if about.can_be_private])
def test_the_shares_add_up_to_the_budget_whatever_the_crowd(name):
    model = load_model(name)
    names = [request.name for request in release_requests(model)]
    for x in (1.0, 500.0, 1e6):
        requests = release_requests(model, x)
        assert [request.name for request in requests] == names
        assert sum(request.share * request.repeats for request in requests) == pytest.approx(1)


def test_the_schedule_of_a_promise_splits_the_budget_by_the_crowd_it_will_have():
    spec = PrivacySpec(1.0, 1e-5, Mode.DISTRIBUTED, 6000, 7000, min_shops=8)
    schedule = private_schedule(Ease(), spec, 10)
    sds = tuple(sum_noise_sd(release, spec, 10) for release in schedule)
    reached = crowd(Outlook(schedule, sds, 6000))
    precision = [release.noise_multiplier**-2 for release in schedule]
    assert precision[0] / sum(precision) == pytest.approx(popularity_share(reached), rel=1e-3)
    with pytest.raises(NoPrivateVariant):
        private_schedule(NotPrivate(), spec, 10)
