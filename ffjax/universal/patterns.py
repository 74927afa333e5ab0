"""Which patterns one job makes: every layer choice x bound x seed, side by side on the pattern axis."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ffjax.errors import InputError
from ffjax.types import Array
from ffjax.universal.config import UapConfig, bounds, check


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
    check(config)
    rows = [(layers, eps, seed) for layers in config.layers for eps in config.eps for seed in config.seeds]
    root = jax.random.key(0)
    return Patterns(
        names=tuple(f"{_group(config, layers, eps)}-seed{seed}" for layers, eps, seed in rows),
        groups=tuple(_group(config, layers, eps) for layers, eps, _ in rows),
        keys=jnp.stack([jax.random.fold_in(root, seed) for _, _, seed in rows]),
        eps=jnp.array([bounds(config, eps) for _, eps, _ in rows], jnp.float32),
        weights=tuple(_shares(config, rows, *source) for source in sources),
    )


def _group(config: UapConfig, layers: str, eps: float) -> str:
    """all-10 for 10/255 in l_inf, all-l2-2.5 for 2.5 in l_2; margin-10 where no layers are driven."""
    if config.objective != "firing":
        layers = config.objective if config.mask == "leave" else f"{config.objective}-{config.mask}"
    return f"{layers}-{'' if config.norm == 'linf' else config.norm + '-'}{eps:.9g}"


def _shares(config: UapConfig, rows, source: str, names: tuple[str, ...]) -> Array:
    """(S, L); of none where nothing is made to fire."""
    if config.objective != "firing":
        return jnp.zeros((len(rows), 1))
    return jnp.array([_weights(layers, source, names) for layers, _, _ in rows])


def layer_weights(choice: str, names: tuple[str, ...]) -> list[float]:
    """The layers' shares for one choice: 1 where monitored. Raises KeyError naming what is not in `names`."""
    wanted = {"all": names, "first": names[:1], "last": names[-1:]}.get(choice) or tuple(choice.split("+"))
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise KeyError(", ".join(unknown))
    return [float(name in wanted) for name in names]


def _weights(choice: str, source: str, names: tuple[str, ...]) -> list[float]:
    if not names:
        raise InputError(f"{source}: names no activations, so nothing of it can be made to over-fire")
    try:
        return layer_weights(choice, names)
    except KeyError as error:
        raise InputError(
            f"layer {error.args[0]}: not in {source}; known: all, first, last, {', '.join(names)} (join with +)"
        ) from error
