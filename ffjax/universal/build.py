"""From a config to the pure functions of its method."""

import functools
from dataclasses import replace

import jax.numpy as jnp

from ffjax.types import Universal
from ffjax.universal import slopes
from ffjax.universal.ascent import Score, as_wanted, ascent, changed, step_key, step_size
from ffjax.universal.config import UapConfig
from ffjax.universal.deepfool import one_by_one
from ffjax.universal.measures import JOINS, Measure, measure
from ffjax.universal.shapes import Shape, shape


def universal(config: UapConfig, parts: int = 1) -> Universal:
    """What a config asks for, as a pair of pure functions over S patterns (types.Universal).

    parts: how many a step's carriers are cut into, one after another, to fit into memory; must divide them.
    Guarantees: as `ascent.ascent`; in no_data and range_prior mode with the default bank nothing but noise and weights
    enters; the same functions, so nothing compiled anew, for other seeds, bounds, layers and numbers of images.
    """
    return _universal(replace(config, seeds=(0,), eps=(1.0,), layers=("all",), images=None), parts)


@functools.lru_cache(maxsize=32)
def _universal(config: UapConfig, parts: int) -> Universal:
    look, what, join = shape(config), measure(config), JOINS[config.join]
    score = _score(config, look, what)
    show = slopes.shower(look, config.through, clipped=config.mode != "no_data")
    if config.method == "deepfool":
        return one_by_one(config, look, show, score)
    slope = slopes.steepest(show, what, join, parts)
    if config.method == "aggregated":
        slope = slopes.aggregated(slope, look, config.inner, step_size(config))
    return ascent(config, look, slope, score)


def _score(config: UapConfig, look: Shape, what: Measure) -> Score:
    """The objective on the bank (fed alone where the pattern is, unless it is real images); or the share of verdicts
    there, and the objective between equals. What happens on the way happens to the bank too, the same at every
    score."""
    alone = config.mode == "no_data" and config.bank == "noise" and config.score == "objective"
    show, join = slopes.shower(look, config.through, clipped=not alone), JOINS[config.join]
    together = jnp.min if config.join == "worst" else jnp.mean
    counted = as_wanted if config.objective in ("margin", "ce") else changed

    def by_objective(patterns, bank, weights, forwards):
        said = [
            slopes.values(show, what, step_key(0), patterns, bank, w, f) for w, f in zip(weights, forwards, strict=True)
        ]
        return join(jnp.stack(said))

    def by_fooling(patterns, bank, weights, forwards):
        share = together(jnp.stack([counted(show, patterns, bank, f) for f in forwards]), axis=0)
        objective = by_objective(patterns, bank, weights, forwards)
        # between -1 and 1, and so never worth an image
        return share + 0.4 / bank.labels.shape[0] * objective / (1 + jnp.abs(objective))

    return by_objective if config.score == "objective" else by_fooling
