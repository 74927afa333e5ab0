"""Which patterns one job makes: every layer choice x bound x seed, side by side on the pattern axis."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ffjax.errors import InputError
from ffjax.types import Array
from ffjax.universal.overfire import UapConfig, bounds, layer_weights


class Patterns(NamedTuple):
    """S patterns: names, the group (layer choice and bound) each belongs to, and what `Universal` takes."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    keys: Array
    eps: Array
    weights: tuple[Array, ...]


def lay_out(config: UapConfig, sources: Sequence[tuple[str, tuple[str, ...]]]) -> Patterns:
    """The patterns of a config for `sources`, each (name, layer names in order of depth).

    A pattern's key is folded from its seed alone: seed 3 starts alike whatever other seeds, bounds and layers run
    beside it. Raises InputError, naming the layers there are, for a choice that a source does not know.
    """
    _check(config)
    rows = [(layers, eps, seed) for layers in config.layers for eps in config.eps for seed in config.seeds]
    root = jax.random.key(0)
    return Patterns(
        names=tuple(f"{_group(config, layers, eps)}-seed{seed}" for layers, eps, seed in rows),
        groups=tuple(_group(config, layers, eps) for layers, eps, _ in rows),
        keys=jnp.stack([jax.random.fold_in(root, seed) for _, _, seed in rows]),
        eps=jnp.array([bounds(config, eps) for _, eps, _ in rows], jnp.float32),
        weights=tuple(jnp.array([_weights(layers, *source) for layers, _, _ in rows]) for source in sources),
    )


def _group(config: UapConfig, layers: str, eps: float) -> str:
    """all-10 for 10/255 in l_inf, all-l2-2.5 for 2.5 in l_2."""
    return f"{layers}-{'' if config.norm == 'linf' else config.norm + '-'}{eps:.9g}"


def _check(config: UapConfig) -> None:
    """What the types of a config let through and no optimisation can use."""
    for name in ("steps", "check", "patience", "carriers"):
        if getattr(config, name) < 1:
            raise InputError(f"uap.{name}: must be at least 1, got {getattr(config, name)}")
    for name in ("layers", "eps", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"uap.{name}: needs at least one value and none twice, got {values}")
    if len({_group(config, "", eps) for eps in config.eps}) < len(config.eps):
        raise InputError(f"uap.eps: two of {config.eps} are the same to nine digits")
    if min(config.eps) < 0 or min(config.seeds) < 0 or max(config.seeds) >= 2**32:
        raise InputError(f"uap: bounds must be 0 or more, seeds 0 to 2^32 - 1, got {config.eps} and {config.seeds}")


def _weights(choice: str, source: str, names: tuple[str, ...]) -> list[float]:
    if not names:
        raise InputError(f"{source}: names no activations, so nothing of it can be made to over-fire")
    try:
        return layer_weights(choice, names)
    except KeyError as error:
        raise InputError(
            f"layer {error.args[0]}: not in {source}; known: all, first, last, {', '.join(names)} (join with +)"
        ) from error
