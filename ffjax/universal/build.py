"""From a config to the pure functions of its method."""

import functools

import jax.numpy as jnp

from ffjax.types import Universal
from ffjax.universal import slopes
from ffjax.universal.ascent import Score, ascent, fooling, step_key
from ffjax.universal.config import UapConfig
from ffjax.universal.deepfool import one_by_one
from ffjax.universal.measures import JOINS, Measure, measure
from ffjax.universal.shapes import Shape, shape


@functools.lru_cache(maxsize=32)  # the same functions for the same config, so that a second call does not compile anew
def universal(config: UapConfig, parts: int = 1) -> Universal:
    """What a config asks for, as a pair of pure functions over S patterns (types.Universal).

    parts: how many a step's carriers are cut into, one after another, to fit into memory; must divide them.
    Guarantees: as `ascent.ascent`; in no_data and range_prior mode with the default bank nothing but noise and weights
    enters.
    """
    look, what, join = shape(config), measure(config), JOINS[config.join]
    alone = config.mode == "no_data"
    score = _score(config, look, what)
    show = slopes.shower(look, config.through, clipped=not alone)
    if config.method == "deepfool":
        return one_by_one(config, look, show, score)
    slope = slopes.steepest(show, what, join, parts)
    if config.method == "aggregated":
        slope = slopes.aggregated(slope, look, config.inner, config.rate / 255)
    return ascent(config, look, slope, score)


def _score(config: UapConfig, look: Shape, what: Measure) -> Score:
    """The objective on the bank (fed alone where the pattern is, unless it is real images), or the share of changed
    verdicts there. Scores are taken without what happens on the way, and so do not depend on chance."""
    clipped = config.mode != "no_data" or config.bank == "data"
    show, join = slopes.shower(look, (), clipped=clipped), JOINS[config.join]

    def by_objective(patterns, bank, weights, forwards):
        said = [
            slopes.values(show, what, step_key(0), patterns, bank, w, f) for w, f in zip(weights, forwards, strict=True)
        ]
        return join(jnp.stack(said))

    def by_fooling(patterns, bank, weights, forwards):
        said = [fooling(look, patterns, bank.images, f) for f in forwards]
        return jnp.mean(jnp.stack(said), axis=0) if config.join != "worst" else jnp.min(jnp.stack(said), axis=0)

    return by_objective if config.score == "objective" else by_fooling
