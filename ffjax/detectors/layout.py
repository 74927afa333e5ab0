"""How a published network's numbers are named, so that one reader serves all of them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Numbers = dict[str, np.ndarray]
"""Flat path -> values: 'features.0.weight' as PyTorch has it, 'params/conv1/kernel' as we do."""


def unchanged(numbers: Numbers) -> Numbers:
    """The numbers as they are."""
    return numbers


class Layout(NamedTuple):
    """A PyTorch state dict as one of our networks.

    names: our layer -> its module there ('block1/conv1' -> 'layer1.0.conv1'). Kernels are turned to our axis order, and
        weights and running statistics renamed, by what the layer's variables are called here.
    first: what is done to the PyTorch numbers before that (keys of an older release, say).
    last: what is done to our flat numbers after it (classes in our order: 1 = fake); it keeps their keys and shapes.
    ignored: last parts of keys that hold nothing we use, in modules that we use otherwise.
    """

    names: Mapping[str, str]
    first: Callable[[Numbers], Numbers] = unchanged
    last: Callable[[Numbers], Numbers] = unchanged
    ignored: tuple[str, ...] = ("num_batches_tracked",)
