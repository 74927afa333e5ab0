"""Why patterns work on a detector: every measurement of `anatomy` of them, kept as JSON and drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ffjax import anatomy, anatomy_figures, run
from ffjax.data import sets
from ffjax.engine import Compute
from ffjax.metrics import plain
from ffjax.types import ImageSet
from ffjax.uap import Source

SIZES = (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
"""Multiples of a pattern at which its success is asked for."""


def draw(
    folder: Path, source: Source, data: ImageSet, patterns: Mapping[str, np.ndarray], compute: Compute, most: int = 40
) -> None:
    """anatomy.json and anatomy-*.png in `folder`, of patterns (H, W, 3) on at most `most` images a class. The first
    whose name does not begin with noise is the one whose response is drawn."""
    few, key = sets.limited(data, most), jax.random.key(5)
    images, labels = few.images, few.labels
    jacobian = anatomy.jacobian_spectrum(source.forward, images, 20, compute, key, unit=True)
    first = next((name for name in patterns if not name.startswith("noise")), next(iter(patterns)))
    found: dict[str, Any] = {
        "push": anatomy.push(source.forward, images, labels, dict(patterns), compute),
        "firing": anatomy.firing_change(source.forward, images, labels, dict(patterns), compute),
        "jacobian": {
            "values": jacobian.values.tolist(),
            "random": jacobian.random.tolist(),
            "alignment": anatomy.alignment(jacobian.vectors, dict(patterns), key),
        },
        "spectra": {name: anatomy.spectrum(pattern) for name, pattern in patterns.items()},
        "response": anatomy.response_curve(
            source.forward, images, labels, few.groups, patterns[first], list(SIZES), compute, key
        ),
    }
    run.write_json(folder / "anatomy.json", plain(found))
    anatomy_figures.save_all(folder, source.name, found)
