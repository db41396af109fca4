"""Every model passes the contract, with and without content, with all items covered and with a tail."""

from fedrec.models.ease import Ease, EaseSettings, PrivateEase, PrivateEaseSettings
from fedrec.models.factors import IalsSettings
from fedrec.models.ials import Ials
from fedrec.models.itemknn import ItemKnn, ItemKnnSettings, PrivateItemKnn, PrivateItemKnnSettings
from fedrec.models.popularity import Popularity, PrivatePopularity
from fedrec.models.private_ials import PrivateIals, PrivateIalsSettings
from fedrec.models.recommender import Recommender
from fedrec.testing import RecommenderContract


class TestPopularity(RecommenderContract):
    is_personal = False

    def make_model(self) -> Recommender:
        return Popularity()


class TestEase(RecommenderContract):
    def make_model(self) -> Recommender:
        return Ease(EaseSettings(regularisation=0.5))


class TestEaseWithoutContent(RecommenderContract):
    has_content = False

    def make_model(self) -> Recommender:
        return Ease(EaseSettings(regularisation=0.5))


class TestEaseWithTail(RecommenderContract):
    def make_model(self) -> Recommender:
        return Ease(EaseSettings(regularisation=0.5, max_items=24))


class TestEaseWithUnitRows(RecommenderContract):
    def make_model(self) -> Recommender:
        return Ease(EaseSettings(regularisation=0.5, content_weight=0.2, shopper_exponent=0.5))


class TestItemKnn(RecommenderContract):
    def make_model(self) -> Recommender:
        return ItemKnn(ItemKnnSettings(neighbours=8, shrinkage=1))


class TestItemKnnWithTail(RecommenderContract):
    def make_model(self) -> Recommender:
        return ItemKnn(ItemKnnSettings(neighbours=8, max_items=24, shopper_exponent=0.5))


class TestIals(RecommenderContract):
    def make_model(self) -> Recommender:
        return Ials(IalsSettings(factors=4, alpha=10, regularisation=1, frequency_exponent=0, sweeps=6))


class TestIalsByFrequency(RecommenderContract):
    has_content = False

    def make_model(self) -> Recommender:
        return Ials(IalsSettings(factors=4, alpha=5, regularisation=0.01, frequency_exponent=1, sweeps=6))


class TestPrivatePopularity(RecommenderContract):
    is_personal = False

    def make_model(self) -> Recommender:
        return PrivatePopularity()


class TestPrivateEase(RecommenderContract):
    has_own_units = True
    rounds_the_sum = True

    def make_model(self) -> Recommender:
        return PrivateEase(PrivateEaseSettings(released_items=100, regularisation=1, content_weight=0.5))


class TestPrivateEaseWithTail(RecommenderContract):
    has_own_units = True
    rounds_the_sum = True

    def make_model(self) -> Recommender:
        return PrivateEase(PrivateEaseSettings(released_items=24, regularisation=1, tail_share=0.5))


class TestPrivateEaseWithoutContent(RecommenderContract):
    has_own_units = True
    rounds_the_sum = True
    has_content = False

    def make_model(self) -> Recommender:
        return PrivateEase(PrivateEaseSettings(released_items=100, regularisation=1))


class TestPrivateItemKnn(RecommenderContract):
    has_own_units = True
    rounds_the_sum = True

    def make_model(self) -> Recommender:
        return PrivateItemKnn(PrivateItemKnnSettings(released_items=24, neighbours=8, shrinkage=1, tail_share=0.5))


class TestPrivateIals(RecommenderContract):
    has_own_units = True

    def make_model(self) -> Recommender:
        return PrivateIals(PrivateIalsSettings(factors=4, released_items=100, alpha=3))


class TestPrivateIalsWithTail(RecommenderContract):
    has_own_units = True
    has_content = False

    def make_model(self) -> Recommender:
        return PrivateIals(PrivateIalsSettings(factors=4, released_items=30, items_per_shopper=4, sweeps=4))
