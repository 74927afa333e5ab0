"""What a universal perturbation needs: how success grows with the images it is made of, and with its steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ffjax import metrics, transfer
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.metrics import Estimate
from ffjax.run import Run
from ffjax.types import ImageSet
from ffjax.uap import Source
from ffjax.universal import UapConfig

IMAGES = (1, 4, 16, 64, 256)
STEPS = (3, 10, 30, 100, 300)


def curves(
    folder: Run,
    config: UapConfig,
    source: Source,
    size: int,
    compute: Compute,
    train: ImageSet,
    held: ImageSet,
    test: ImageSet,
    tell: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """images and steps: what was tried, and rates of success on test images, at the config's own steps and images: of
    the fakes called rightly, those called real. images: numbers of fakes; those beyond what `train` has are left out.
    Selection goes by `held`. noise: the same for sign noise. InputError if the source calls no fake rightly."""
    fakes = (test.labels == 1) & (margins(source.forward, test.images, compute) > 0)
    if not fakes.any():
        raise InputError(f"{source.name}: calls no fake of the test split rightly, so none can be turned")
    counts = [count for count in IMAGES if count <= int(train.labels.sum())]

    def rate(delta: np.ndarray) -> Estimate:
        said = margins(source.forward, test.images[fakes], compute, delta) > 0
        return metrics.share((~said).astype(float), test.groups[fakes])

    def tried(**fields: Any) -> dict[str, float | None]:
        cfg = replace(config, **fields)
        place = folder / f"needs/{source.name}-{'-'.join(f'{k}{v}' for k, v in fields.items())}/pattern.npy"
        delta = transfer.pattern(place, cfg, [source], size, compute, train, held)
        tell()
        return metrics.plain(rate(delta))

    eps = config.eps[0] / 255
    return {
        "images": {"tried": counts, "rates": [tried(images=count) for count in counts]},
        "steps": {"tried": list(STEPS), "rates": [tried(steps=count, check=max(1, count // 5)) for count in STEPS]},
        "noise": metrics.plain(rate(transfer.noise((size, size, 3), 0, eps))),
        "fakes": int(fakes.sum()),
    }


def runs() -> int:
    """How many perturbations `curves` makes."""
    return len(IMAGES) + len(STEPS)
