"""From a config and source detectors to finished universal perturbations, resumably, and what they are tested by."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import devices, engine, riders
from ffjax.checkpoint import Snapshots
from ffjax.engine import Compute
from ffjax.evaluate import Condition, margins
from ffjax.types import Array, Forward, ImageSet, UapInfo, UapState
from ffjax.universal import UapConfig, universal
from ffjax.universal.patterns import Patterns
from ffjax.universal.shapes import Size
from ffjax.universal.shapes import kind as kind_of
from ffjax.universal.shapes import shape as shape_of


class Source(NamedTuple):
    """A detector a perturbation is made on: forward is a Partial; layers its activations in order of depth."""

    name: str
    forward: Forward
    layers: tuple[str, ...]


def make(
    config: UapConfig,
    patterns: Patterns,
    sources: Sequence[Source],
    size: Size,
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
    made = universal(config, _parts(config, patterns, compute))
    inputs = riders.at_step(config, size, train)
    bank = devices.split(riders.bank(config, size, validation), on)
    begin = jax.jit(made.init, static_argnums=2)(patterns.keys, patterns.eps, size)
    # with one blank carrier there is no batch to spread, so the patterns themselves are spread over the devices
    done, state = snapshots.restore(
        devices.split(begin, on) if config.mode == "no_data" else devices.replicate(begin, on)
    )
    if bool(jnp.all(state.done)):
        return state
    weights = tuple(patterns.weights)
    args = (*devices.replicate((patterns.eps, weights), on), forwards, bank)
    run = engine.drive(
        made.step, state, args, config.steps, compute, inputs=lambda i: devices.split(inputs(i), on), start=done
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


def _parts(config: UapConfig, patterns: Patterns, compute: Compute) -> int:
    """Into how many parts a step's carriers are cut, so that compute.batch rows a device or fewer are at work at once
    (every pattern meets each carrier; a carrier is never cut, and every device has its share of each part)."""
    carriers, on = config.carriers if config.mode != "no_data" else 1, devices.mesh(compute.devices).size
    together = carriers // config.inner if config.method == "aggregated" else carriers
    fitting = [parts for parts in range(1, together + 1) if together % (parts * on) == 0] or [1]
    rows = together * len(patterns.names) / on
    return next((parts for parts in fitting if rows / parts <= compute.batch), fitting[-1])


def chosen(patterns: Patterns, scores: np.ndarray) -> list[int]:
    """The pattern of each group with the highest selection score, which no test image has touched."""
    groups = np.array(patterns.groups)
    return [int(max(np.flatnonzero(groups == group), key=lambda k: scores[k])) for group in dict.fromkeys(groups)]


def conditions(
    config: UapConfig, patterns: Patterns, deltas: np.ndarray, scores: np.ndarray, noises: int, stored: Sequence[str]
) -> list[Condition]:
    """What each image set is shown as: clean, sign noise and every pattern in float; and clean, the first noise and
    each group's chosen pattern through every storage in `stored`."""
    look, size, kind = shape_of(config), deltas.shape[1:], kind_of(config)
    rows = [Condition(f"clean-{s}", "clean", "", None, s) for s in ("float", *stored)]
    for k in chosen(patterns, scores):
        group, eps = patterns.groups[k], float(patterns.eps[k])
        seen = partial(Condition, group=group, shape=kind)
        draws = [np.asarray(look.noise(noise_key(n), jnp.float32(eps), size)) for n in range(noises)]
        rows += [seen(f"noise-{group}-{n}-float", "noise", pattern=draw) for n, draw in enumerate(draws)]
        members = [j for j, other in enumerate(patterns.groups) if other == group]
        rows += [seen(f"uap-{patterns.names[j]}-float", "uap", pattern=deltas[j]) for j in members]
        for s in stored:
            rows.append(seen(f"noise-{group}-0-{s}", "noise", pattern=draws[0], storage=s))
            rows.append(seen(f"uap-{patterns.names[k]}-{s}", "uap", pattern=deltas[k], storage=s))
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


def noise_key(draw: int) -> Array:
    """Of a draw of sign noise, the same wherever noise is a baseline."""
    return jax.random.fold_in(jax.random.key(1), draw)
