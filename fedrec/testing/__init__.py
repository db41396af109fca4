"""What a user's own model must pass: subclass `RecommenderContract` in a test file and give ``make_model``."""

from fedrec.testing.planted import PlantedWorld, plant_world, train_federated
from fedrec.testing.recommender import RecommenderContract

__all__ = ["PlantedWorld", "RecommenderContract", "plant_world", "train_federated"]
