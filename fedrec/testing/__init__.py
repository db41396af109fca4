"""What a user's own model must pass: subclass `RecommenderContract` in a test file and give ``make_model``."""

from fedrec.testing.recommender import PlantedWorld, RecommenderContract, plant_world, train_federated

__all__ = ["PlantedWorld", "RecommenderContract", "plant_world", "train_federated"]
