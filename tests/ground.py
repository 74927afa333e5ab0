"""What a driver needs to run: a folder of noise images and detectors of random weights."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

from ffjax import detectors
from ffjax.detectors import weights


def lay(folder: Path, per_class: int, networks: int) -> Path:
    """images/real and images/fake of 32 px in `folder`, and Meso-4s net0.safetensors, net1.safetensors ..."""
    rng = np.random.default_rng(0)
    for label in ("real", "fake"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{i:02d}.png")
    detector = detectors.build("meso4", 32)
    for seed in range(networks):
        variables = detector.init(jax.random.key(seed))
        weights.save(folder / f"net{seed}.safetensors", variables, {"arch": "meso4", "size": 32})
    return folder
