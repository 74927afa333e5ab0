"""From a config and source detectors to finished universal perturbations, resumably, and what they are tested by."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import devices, engine
from ffjax.checkpoint import Snapshots
from ffjax.data.batches import batch_at
from ffjax.data.codecs import to_float
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import Condition, margins
from ffjax.types import Array, Forward, ImageSet, UapInfo, UapState
from ffjax.universal import carriers, fixed
from ffjax.universal.overfire import UapConfig, over_firing
from ffjax.universal.patterns import Patterns


class Source(NamedTuple):
    """A detector a perturbation is made on: forward is a Partial; layers its activations in order of depth."""

    name: str
    forward: Forward
    layers: tuple[str, ...]


def make(
    config: UapConfig,
    patterns: Patterns,
    sources: Sequence[Source],
    shape: tuple[int, int, int],
    compute: Compute,
    snapshots: Snapshots,
    watch: Callable[[int, UapInfo], None],
    train: ImageSet | None = None,
    validation: ImageSet | None = None,
) -> UapState:
    """Runs the optimisation from its last snapshot to its end; `best` of the result holds the perturbations.

    watch(steps done, infos): once a chunk. train and validation: the images of with_data mode and of a data bank; the
    modes that see no data never touch them. Raises InputError if a mode lacks its images.
    Guarantee: killed anywhere and called again it ends with bit-equal perturbations (stepped execution, one device).
    """
    on = devices.mesh(compute.devices)
    forwards = devices.replicate(tuple(source.forward for source in sources), on)
    universal = over_firing(config)
    inputs = _inputs(config, shape, train)
    bank = devices.split(_bank(config, shape, validation), on)
    begin = jax.jit(universal.init, static_argnums=2)(patterns.keys, patterns.eps, shape)
    # with one blank carrier there is no batch to spread, so the patterns themselves are spread over the devices
    done, state = snapshots.restore(
        devices.split(begin, on) if config.mode == "no_data" else devices.replicate(begin, on)
    )
    if bool(jnp.all(state.done)):
        return state
    weights = tuple(patterns.weights)
    args = (*devices.replicate((patterns.eps, weights), on), forwards, bank)
    run = engine.drive(
        universal.step, state, args, config.steps, compute, inputs=lambda i: devices.split(inputs(i), on), start=done
    )
    saved = done
    for done, state, infos in run:
        watch(done, infos)
        finished = bool(jnp.all(state.done))
        # counted in whole intervals: a visit need not fall on a multiple of `snapshot`
        if done // compute.snapshot > saved // compute.snapshot or done == config.steps or finished:
            snapshots.save(done, state)
            saved = done
        if finished:
            break
    return state


def chosen(patterns: Patterns, scores: np.ndarray) -> list[int]:
    """The pattern of each group with the highest selection score, which no test image has touched."""
    groups = np.array(patterns.groups)
    return [int(max(np.flatnonzero(groups == group), key=lambda k: scores[k])) for group in dict.fromkeys(groups)]


def conditions(
    config: UapConfig, patterns: Patterns, deltas: np.ndarray, scores: np.ndarray, noises: int, stored: Sequence[str]
) -> list[Condition]:
    """What each image set is shown as: clean, sign noise and every pattern in float; and clean, the first noise and
    each group's chosen pattern through every storage in `stored`."""
    shape = deltas.shape[1:]
    rows = [Condition(f"clean-{s}", "clean", "", None, s) for s in ("float", *stored)]
    for k in chosen(patterns, scores):
        group, eps = patterns.groups[k], float(patterns.eps[k])
        draws = [np.asarray(fixed.sign_noise(_noise_key(n), shape, eps, config.norm)) for n in range(noises)]
        rows += [Condition(f"noise-{group}-{n}-float", "noise", group, draw) for n, draw in enumerate(draws)]
        members = [j for j, other in enumerate(patterns.groups) if other == group]
        rows += [Condition(f"uap-{patterns.names[j]}-float", "uap", group, deltas[j]) for j in members]
        for s in stored:
            rows.append(Condition(f"noise-{group}-0-{s}", "noise", group, draws[0], s))
            rows.append(Condition(f"uap-{patterns.names[k]}-{s}", "uap", group, deltas[k], s))
    return rows


def pick_fixed(
    bank: Array, sources: Sequence[Source], validation: ImageSet, compute: Compute, tell: Callable[[int], None]
) -> dict[str, int]:
    """Direction (to-real, to-fake) -> the pattern of bank (K, H, W, 3) with the highest error rate that way, fakes
    called real or reals called fake, averaged over the sources, on validation images.

    tell(patterns tried).
    """
    fake = validation.labels == 1
    rates = np.zeros((len(bank), 2))
    for j, pattern in enumerate(np.asarray(bank)):
        for source in sources:
            says = margins(source.forward, validation.images, compute, pattern) > 0
            rates[j] += np.mean(~says[fake]), np.mean(says[~fake])
        tell(j + 1)
    return {way: int(best) for way, best in zip(("to-real", "to-fake"), np.argmax(rates, axis=0), strict=True)}


def _noise_key(draw: int) -> Array:
    return jax.random.fold_in(jax.random.key(1), draw)


def _inputs(config: UapConfig, shape: tuple[int, int, int], train: ImageSet | None) -> Callable[[int], Array]:
    """Step -> carriers, a pure function."""
    if config.mode == "no_data":
        blank = carriers.blank(shape, config.blank)
        return lambda i: blank
    if config.mode == "range_prior":
        key = jax.random.key(2)
        return lambda i: carriers.noise(jax.random.fold_in(key, i), config.carriers, shape)
    if train is None:
        raise InputError("uap: mode with_data needs a data set with a train split")
    return lambda i: jnp.asarray(batch_at(train, config.carriers, 0, i).images)


def _bank(config: UapConfig, shape: tuple[int, int, int], validation: ImageSet | None) -> Array:
    """What selection sees: validation images if asked for; else the blank carrier or fixed noise images."""
    if config.bank == "data":
        if validation is None:
            raise InputError("uap: a bank of data needs a data set with a validation split")
        return jnp.asarray(to_float(validation.images))
    if config.mode == "no_data" and config.score == "objective":
        return carriers.blank(shape, config.blank)
    return carriers.noise(jax.random.key(3), BANK, shape)


BANK = 32
"""Generated noise images that selection sees (GD-UAP: 1,000 proxy images; ours are noise, and cheap to agree on)."""
