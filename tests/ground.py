"""What a driver needs to run: a folder of noise images and detectors of random weights."""

import csv
from collections.abc import Sequence
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


def pictures(folder: Path, count: int, splits: Sequence[str]) -> Path:
    """Pictures of 32 px whose fakes are a little redder, one real and one fake to each of `splits` in turn, and
    labels.csv, in `folder`."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for i in range(count):
        label, split = i % 2, splits[i // 2 % len(splits)]
        pixels = rng.integers(70, 150, (32, 32, 3))
        pixels[..., 0] += 50 * label
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        rows.append((f"{i:03d}.png", label, split))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "split"), *rows])
    return folder


def studied(folder: Path, count: int, networks: int) -> Path:
    """`lay`, and `pictures` with all three splits in `folder`/set."""
    pictures(lay(folder, 2, networks) / "set", count, ("train", "validation", "test"))
    return folder
