"""Pictures for tests: a number enters, a small picture with something to learn leaves."""

import numpy as np


def structured(number: int, side: int = 12) -> np.ndarray:
    """A small picture with something to learn: a colored wave of its own direction and phase."""
    noise = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(6 * (noise.normal() * x + noise.normal() * y) + noise.normal()) for _ in range(3)]
    return (127 + 110 * np.stack(waves, -1)).astype(np.uint8)
