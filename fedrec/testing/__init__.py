"""What a user's own model must pass: subclass a contract in a test file and give ``make_model``.

`RecommenderContract` is for models of statistics, `NeuralContract` for those that train a network.
"""

from fedrec.testing.neural import NeuralContract
from fedrec.testing.planted import PlantedWorld, plant_world, train_federated
from fedrec.testing.recommender import RecommenderContract

__all__ = ["NeuralContract", "PlantedWorld", "RecommenderContract", "plant_world", "train_federated"]
