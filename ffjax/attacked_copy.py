"""A training set and its attacked copy: normal and adversarial images fused once, before training."""

import jax
import numpy as np

from ffjax.data import codecs
from ffjax.defences.mixing import Attacker
from ffjax.individual import batch_of
from ffjax.types import Forward, ImageSet


def fused(data: ImageSet, forward: Forward, attacker: Attacker, rows: int, seed: int = 0) -> ImageSet:
    """The set, and after it a copy attacked once and for all on `forward`, as 8-bit images: the other reading of the
    third paper's fusion (PAPERS.md 3.3, 'offline'). rows: images a batch."""
    key, attack = jax.random.key(seed), jax.jit(attacker)
    copies = []
    for start in range(0, len(data.labels), rows):
        ids = np.arange(start, start + rows)
        batch = batch_of(data, np.minimum(ids, len(data.labels) - 1))  # one shape for all, one compilation
        copies.append(np.asarray(codecs.to_uint8(attack(forward, batch, key)))[ids < len(data.labels)])
    twice = [None if x is None else np.concatenate([x, x]) for x in (data.labels, data.groups, data.masks)]
    names = (*data.names, *(f"{name}-attacked" for name in data.names))
    images = np.concatenate([data.images, *copies])
    return data._replace(images=images, labels=twice[0], groups=twice[1], masks=twice[2], names=names)
