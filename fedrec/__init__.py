"""fedrec: shops that may not share their customers' data train one recommender together."""

__version__ = "0.1.0"
