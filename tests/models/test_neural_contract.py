"""Every neural recommender under the contract."""

from fedrec.models.autoencoders import (
    MultDae,
    MultDaeSettings,
    MultVae,
    MultVaeSettings,
    RecVae,
    RecVaeSettings,
    VaeGan,
    VaeGanSettings,
)
from fedrec.models.ncf import Gmf, Mlp, NcfSettings, NeuMf
from fedrec.models.smallae import SmallAe, SmallAeSettings
from fedrec.testing import NeuralContract

FAST = {"rounds": 10, "local_epochs": 4, "batch_shoppers": 10, "learning_rate": 1e-2, "device": "cpu"}
PAIRS = {**FAST, "factors": 8, "layers": 1, "fold_in_steps": 20}
BASKETS = {**FAST, "hidden": 20, "latent": 8}


class TestMultDae(NeuralContract):
    def make_model(self):
        return MultDae(MultDaeSettings(**BASKETS))


class TestMultVae(NeuralContract):
    def make_model(self):
        return MultVae(MultVaeSettings(**BASKETS))


class TestRecVae(NeuralContract):
    def make_model(self):
        return RecVae(RecVaeSettings(**BASKETS))


class TestVaeGan(NeuralContract):
    def make_model(self):
        return VaeGan(VaeGanSettings(**BASKETS))


class TestGmf(NeuralContract):
    def make_model(self):
        return Gmf(NcfSettings(**PAIRS))


class TestMlp(NeuralContract):
    def make_model(self):
        return Mlp(NcfSettings(**PAIRS))


class TestNeuMf(NeuralContract):
    def make_model(self):
        return NeuMf(NcfSettings(**PAIRS))


class TestSmallAe(NeuralContract):
    def make_model(self):
        return SmallAe(SmallAeSettings(**{**FAST, "size": 8}))
