"""A noise source that adds nothing."""

import numpy as np


class NoNoise:
    """Zeros in place of noise, to see what stands beneath it."""

    def __init__(self, purpose: str) -> None:
        self.is_erased = False

    def integers(self, sd_units: float, size: int) -> np.ndarray:
        return np.zeros(size, np.int64)

    def erase(self) -> None:
        self.is_erased = True
