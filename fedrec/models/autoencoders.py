"""The autoencoders as recommenders: their settings, and which network each trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.neural import LARGEST_WIDTH, NeuralModel, NeuralSettings, check_whole
from fedrec.models.private_neural import PrivatelyTrainable
from fedrec.models.recommender import RoundSpec

if TYPE_CHECKING:
    from fedrec.privacy.draws import Draws
    from fedrec.training.network import Network

_SMALL: Mapping[str, Any] = {"hidden": 0, "latent": 32, "dropout": 0.0}
"""Under an epsilon: noise grows with the number of values, and dropout only adds to it."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(NeuralSettings):
    """What the autoencoders share.

    Attributes:
        hidden: size of the layers between items and code, at most `LARGEST_WIDTH`; 0 = none.
        latent: size of the code; 1 to `LARGEST_WIDTH`.
        dropout: share of a shopper's items that are hidden from the encoder in training, in [0, 1).
        has_sparse_input: the first layer computes where items were bought alone: faster on a CPU, the same result.
    """

    hidden: int = 600
    latent: int = 200
    dropout: float = 0.5
    has_sparse_input: bool = True
    rounds: int = 50
    local_epochs: int = 1
    batch_shoppers: int = 256
    least_steps: int = 10
    learning_rate: float = 1.5e-3
    round_learning_rate: float = 6e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "hidden", least=0, most=LARGEST_WIDTH)
        check_whole(self, "latent", most=LARGEST_WIDTH)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout = {self.dropout}: give a share from 0 to below 1")

    def of_network(self) -> dict[str, Any]:
        """What every autoencoder's network takes."""
        return {
            "latent": self.latent,
            "dropout": self.dropout,
            "init_seed": self.init_seed,
            "has_sparse_input": self.has_sparse_input,
        }

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden layers as the networks take them."""
        return (self.hidden,) if self.hidden else ()


@dataclass(frozen=True, kw_only=True)
class MultDaeSettings(AutoencoderSettings):
    """Settings of Mult-DAE; the paper's best has no hidden layer."""

    hidden: int = 0
    dropout: float = 0.6
    rounds: int = 30


@dataclass(frozen=True)
class MultDae(PrivatelyTrainable):
    """Denoising autoencoder with a multinomial likelihood (Liang et al. 2018)."""

    name: ClassVar[str] = "multdae"
    private_network: ClassVar[Mapping[str, Any]] = _SMALL
    settings: MultDaeSettings = field(default_factory=MultDaeSettings)

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training.autoencoders import MultDae as MultDaeNetwork

        return MultDaeNetwork(num_items, hidden=self.settings.layers, **self.settings.of_network())


@dataclass(frozen=True, kw_only=True)
class MultVaeSettings(AutoencoderSettings):
    """Settings of Mult-VAE.

    Attributes:
        beta: weight of the KL term once annealed; >= 0.
        anneal_share: part of training in which it grows from 0, in [0, 1].
    """

    hidden: int = 0
    beta: float = 0.1
    anneal_share: float = 0.5


@dataclass(frozen=True)
class MultVae(PrivatelyTrainable):
    """Variational autoencoder with a multinomial likelihood (Liang et al. 2018)."""

    name: ClassVar[str] = "multvae"
    private_network: ClassVar[Mapping[str, Any]] = _SMALL
    settings: MultVaeSettings = field(default_factory=MultVaeSettings)

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training.autoencoders import MultVae as MultVaeNetwork

        settings = self.settings
        return MultVaeNetwork(
            num_items,
            hidden=settings.layers,
            beta=settings.beta,
            anneal_share=settings.anneal_share,
            **settings.of_network(),
        )


@dataclass(frozen=True, kw_only=True)
class RecVaeSettings(AutoencoderSettings):
    """Settings of RecVAE.

    Attributes:
        gamma: KL weight for each item that a shopper has; > 0.
        encoder_epochs, decoder_epochs: how encoder and decoder take turns where they are trained in one place; >= 1, or
            both 0: in every batch, as always in a federation's rounds.
        round_encoder_rate: the encoder's learning rate in a federation's rounds, in the decoder's; > 0.
    """

    batch_shoppers: int = 512
    learning_rate: float = 2e-3
    gamma: float = 0.005
    encoder_epochs: int = 3
    decoder_epochs: int = 1
    round_encoder_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.round_encoder_rate < math.inf:
            raise ConfigError(f"round_encoder_rate = {self.round_encoder_rate}: give a finite number above 0")


@dataclass(frozen=True)
class RecVae(NeuralModel):
    """Variational autoencoder with a composite prior and alternating training (Shenbin et al. 2020).

    In a federation's rounds encoder and decoder take turns in every batch, the encoder at a lower rate: with turns of
    whole rounds, or at the decoder's rate, the shared model long ranks by popularity (simulations/RESULTS.md).
    """

    name: ClassVar[str] = "recvae"
    settings: RecVaeSettings = field(default_factory=RecVaeSettings)

    def local_update(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> np.ndarray:
        """See `NeuralModel`; both parts move in every batch, and the prior remembers the encoder before the epoch."""
        by_batch = replace(self, settings=replace(self.settings, encoder_epochs=0, decoder_epochs=0))
        return super(RecVae, by_batch).local_update(spec, histories, draws)

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training.recvae import RecVae as RecVaeNetwork

        settings = self.settings
        return RecVaeNetwork(
            num_items,
            hidden=max(settings.hidden, 1),
            gamma=settings.gamma,
            encoder_epochs=settings.encoder_epochs,
            decoder_epochs=settings.decoder_epochs,
            batch_encoder_rate=settings.round_encoder_rate,
            **settings.of_network(),
        )


@dataclass(frozen=True, kw_only=True)
class VaeGanSettings(MultVaeSettings):
    """Settings of the VAE-GAN.

    Attributes:
        adversarial: weight of the judge's verdict in the generator's loss; >= 0.
        judge_size: width of the discriminator; 1 to `LARGEST_WIDTH`.
    """

    adversarial: float = 0.1
    judge_size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "judge_size", most=LARGEST_WIDTH)


@dataclass(frozen=True)
class VaeGan(NeuralModel):
    """Adversarial autoencoder: a discriminator sees generated against real baskets, the decoder is the generator."""

    name: ClassVar[str] = "vaegan"
    settings: VaeGanSettings = field(default_factory=VaeGanSettings)

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training.vaegan import VaeGan as VaeGanNetwork

        settings = self.settings
        return VaeGanNetwork(
            num_items,
            hidden=settings.layers,
            beta=settings.beta,
            anneal_share=settings.anneal_share,
            adversarial=settings.adversarial,
            judge_size=settings.judge_size,
            **settings.of_network(),
        )
