"""What universal perturbations ride on while they are made, step by step, and what selection sees of them: batches
whose labels and wanted masks say what is asked of each image."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.data import sets
from ffjax.data.batches import batch_at
from ffjax.errors import InputError
from ffjax.individual import batch_of
from ffjax.types import Array, Batch, ImageSet
from ffjax.universal import UapConfig, carriers
from ffjax.universal.shapes import Size

BANK = 32
"""Generated noise images that selection sees (GD-UAP: 1,000 proxy images; ours are noise, and cheap to agree on)."""


def at_step(config: UapConfig, size: Size, train: ImageSet | None) -> Callable[[int], Batch]:
    """Step -> carriers, a pure function. InputError where the mode lacks its images."""
    if config.mode == "no_data":
        blank = asked(config, _unlabelled(carriers.blank(size, config.blank)))
        return lambda i: blank
    if config.mode == "range_prior":
        key = jax.random.key(2)

        def noise(i: int) -> Batch:
            return asked(config, _unlabelled(carriers.noise(jax.random.fold_in(key, i), config.carriers, size)))

        return noise
    if train is None:
        raise InputError("uap: mode with_data needs a data set with a train split")
    data = of_side(config, train)
    # DeepFool keeps a batch for as long as it works on its images
    stay = config.inner if config.method == "deepfool" else 1
    return lambda i: asked(config, batch_at(data, config.carriers, 0, i // stay))


def bank(config: UapConfig, size: Size, validation: ImageSet | None) -> Batch:
    """What selection sees: validation images if asked for; else the blank carrier or fixed noise images."""
    if config.bank == "data":
        if validation is None:
            raise InputError("uap: a bank of data needs a data set with a validation split")
        data = of_side(replace(config, images=None), validation)
        return asked(config, batch_of(data, np.arange(len(data.labels))))
    if config.mode == "no_data" and config.score == "objective":
        return asked(config, _unlabelled(carriers.blank(size, config.blank)))
    return asked(config, _unlabelled(carriers.noise(jax.random.key(3), BANK, size)))


def of_side(config: UapConfig, data: ImageSet) -> ImageSet:
    """The images of the side it is made for, at most config.images of each class. InputError if there is none."""
    classes = {"both": (0, 1), "fakes": (1,), "reals": (0,)}[config.side]
    most = len(data.labels) if config.images is None else config.images
    chosen = sets.limited(data, most, classes)
    if not len(chosen.labels):
        raise InputError(f"uap.side {config.side}: the data set has no such images")
    return chosen


def asked(config: UapConfig, batch: Batch) -> Batch:
    """The batch with what is wanted of it: labels such that the wrong verdict is the one aimed at, wanted masks."""
    labels = batch.labels if config.aim == "wrong" else jnp.full_like(batch.labels, config.aim == "real")
    wanted = None if config.mask == "leave" else _mask(config, batch)
    return jax.tree.map(jnp.asarray, batch._replace(labels=labels, masks=None, wanted=wanted))


def _mask(config: UapConfig, batch: Batch) -> Array:
    """(B, H, W) float32 in {0, 1}."""
    if config.mask == "invert":
        if batch.masks is None:
            raise InputError("uap.mask invert: the data set has no masks")
        return 1.0 - jnp.round(jnp.asarray(batch.masks))
    full = jnp.ones(batch.images.shape[:3], jnp.float32)
    return full if config.mask == "fill" else 0.0 * full


def _unlabelled(images: Array) -> Batch:
    """Generated images: nobody's, so called real, and numbered."""
    count = images.shape[0]
    return Batch(images, jnp.zeros(count, jnp.int32), jnp.arange(count, dtype=jnp.int32))
