"""Over-firing universal perturbations: patterns that make a detector's neurons fire, with no label and no image.

Our formulation of the objective of Huang, Fang, Nguyen, Yamagishi and Echizen (ICIP 2020), whose formula and settings
are not public; the defaults are GD-UAP's (Mopuri et al., TPAMI 2018), and what was left open is a field of UapConfig.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ffjax import balls
from ffjax.objectives import margin, over_fire
from ffjax.types import Array, Forward, UapInfo, UapState, Universal


@dataclass(frozen=True, kw_only=True)
class UapConfig:
    """What is optimised. Every field below is open in the paper; the reason for our default stands beside it."""

    layers: tuple[str, ...] = ("all",)
    """Layer choices, each a pattern of its own: all, first, last, or names joined by + ("all": GD-UAP's)."""
    statistic: Literal["l2", "sq_l2", "mean_abs", "topk_mean", "frac_active"] = "l2"
    """How a layer's firing is measured (l2: GD-UAP's)."""
    aggregation: Literal["sum_log", "sum", "prod"] = "sum_log"
    """How layers are joined (sum_log: no layer's scale leads)."""
    mode: Literal["no_data", "range_prior", "with_data"] = "no_data"
    """What the pattern rides on: nothing, Gaussian noise images, or training images (no_data: the paper's claim)."""
    blank: float = 0.0
    """Grey level of the carrier in no_data mode (0: the pattern is fed alone, unclipped, as in Fast Feature Fool)."""
    carriers: int = 8
    """Noise or training images a step (8: rows enough for bit-equal batching; GD-UAP takes 25)."""
    eps: tuple[float, ...] = (10.0,)
    """Bounds in 1/255 for linf and in [0,1] units for l2, each a pattern of its own (10: GD-UAP's)."""
    norm: Literal["linf", "l2"] = "linf"
    """The ball (linf: GD-UAP's)."""
    rule: Literal["adam", "sign"] = "adam"
    """The step rule (adam: GD-UAP's)."""
    rate: float = 1.0
    """Step size in 1/255 (1 for some hundred steps; GD-UAP takes 0.1 for some ten thousand)."""
    steps: int = 300
    """Most steps (300: where the objective on Meso-4 has levelled off; GD-UAP allows 40,000)."""
    score: Literal["objective", "fooling"] = "objective"
    """What selection and stopping see: the objective, or changed verdicts on a bank of images (objective: no image)."""
    bank: Literal["noise", "data"] = "noise"
    """The bank: generated noise (for the objective in no_data mode the blank carrier), or validation images, which
    makes the mode one that has seen data (noise: no data)."""
    check: int = 20
    """Steps between two scores (20: fifteen scores in a default run; GD-UAP 400 of 40,000)."""
    patience: int = 10
    """Scores without a better one before a pattern stops (10: GD-UAP's)."""
    tolerance: float = 1e-4
    """By how much a score must be better to count (1e-4: below the third digit of a log norm)."""
    rescale_at: float = 0.5
    """Share of components at the bound past which a settled pattern is halved, to move again (0.5: GD-UAP's)."""
    settled: float = 1e-5
    """Change of that share between steps that counts as settled (1e-5: GD-UAP's)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Start of each pattern (5: enough for a median and a range)."""


def bounds(config: UapConfig, eps: float) -> float:
    """A bound of the config in [0,1] image units."""
    return eps / 255 if config.norm == "linf" else eps


@functools.lru_cache(maxsize=16)  # the same functions for the same config, so that a second call does not compile anew
def over_firing(config: UapConfig) -> Universal:
    """The family as a pair of pure functions over S patterns (types.Universal).

    Per step: v <- P_eps( v + rule( grad_v mean_sources mean_carriers O(f(x + v)) ) ), O = objectives.over_fire.
    Guarantees: every delta lies in its ball; patterns do not influence one another; a pattern that has stopped does
    not move; in no_data and range_prior mode with the default bank nothing but noise and weights enters.
    """
    objective = over_fire(config.statistic, config.aggregation)
    ball = balls.BALLS[config.norm]
    rule, alone = _rule(config), config.mode == "no_data"

    def project(delta: Array, eps: Array) -> Array:
        return jax.vmap(lambda d, e: ball(e).project(d))(delta, eps)

    def init(keys: Array, eps: Array, shape: tuple[int, int, int]) -> UapState:
        delta = project(jax.vmap(lambda k, e: ball(e).sample(k, shape))(keys, eps), eps)
        s = eps.shape[0]
        zeros, never = jnp.zeros(s), jnp.full(s, -jnp.inf)
        # a copy of delta: the engine donates the state, and one buffer cannot be given away twice
        return UapState(delta, jax.vmap(rule.init)(delta), delta + 0.0, never, zeros, jnp.zeros(s, int), zeros > 0)

    def firing(
        delta: Array, carriers: Array, weights: Sequence[Array], forwards: Sequence[Forward], alone: bool
    ) -> Array:
        """(S,) mean over sources and carriers of the objective. alone: fed as it is, where an image would be clipped.

        Carriers lead, (B, S, H, W, 3), so that a batch sharded over devices stays so.
        """
        both = carriers[:, None] + delta[None]
        shown = both if alone else jnp.clip(both, 0.0, 1.0)
        b, s = shown.shape[:2]
        rows = shown.reshape(b * s, *shown.shape[2:])
        each = [objective(f(rows), jnp.tile(w, (b, 1))).reshape(b, s) for f, w in zip(forwards, weights, strict=True)]
        return jnp.mean(jnp.stack(each), axis=(0, 1))

    def score(delta: Array, bank: Array, weights: Sequence[Array], forwards: Sequence[Forward]) -> Array:
        if config.score == "objective":
            return firing(delta, bank, weights, forwards, alone and config.bank == "noise")
        return jnp.stack([fooling(delta, bank, forward) for forward in forwards]).mean(axis=0)

    def step(i, state, carriers, eps, weights, forwards, bank):
        grads, values = jax.grad(_summed(firing), has_aux=True)(state.delta, carriers, weights, forwards, alone)
        updates, optimiser = jax.vmap(rule.update)(grads, state.optimiser)
        moved = project(state.delta + updates, eps)
        saturation = jax.vmap(lambda d, e: ball(e).at_bound(d))(moved, eps)
        rescaled = (saturation > config.rescale_at) & (jnp.abs(saturation - state.saturation) < config.settled)
        moved = jnp.where(_images(rescaled), moved / 2, moved)
        # a stopped pattern keeps its place, so a batch of patterns equals each alone
        delta = jnp.where(_images(state.done), state.delta, moved)
        state = state._replace(delta=delta, optimiser=optimiser, saturation=saturation)
        state = jax.lax.cond(
            ((i + 1) % config.check == 0) | (i + 1 == config.steps),
            lambda s: _judge(s, score(s.delta, bank, weights, forwards), config),
            lambda s: s,
            state,
        )
        return state, UapInfo(values, saturation, state.best_score, rescaled & ~state.done)

    return Universal(init, step)


def fooling(delta: Array, images: Array, forward: Forward) -> Array:
    """(S,) share of images (N, H, W, 3) whose verdict each of S patterns (S, H, W, 3) changes, in [0, 1]."""
    clean = margin(forward(images)) > 0

    def one(pattern: Array) -> Array:
        return jnp.mean((margin(forward(balls.apply(images, pattern[None]))) > 0) != clean)

    return jax.lax.map(one, delta)


def layer_weights(choice: str, names: tuple[str, ...]) -> list[float]:
    """The layers' shares for one choice: 1 where monitored. Raises KeyError naming what is not in `names`."""
    wanted = {"all": names, "first": names[:1], "last": names[-1:]}.get(choice) or tuple(choice.split("+"))
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise KeyError(", ".join(unknown))
    return [float(name in wanted) for name in names]


def _rule(config: UapConfig) -> optax.GradientTransformation:
    """Ascent: optax descends by a negated rate, the objective is maximised, so here the rate is positive."""
    rate = config.rate / 255
    if config.rule == "adam":
        return optax.chain(optax.scale_by_adam(), optax.scale(rate))
    return optax.chain(optax.scale_by_sign(), optax.scale(rate))


def _summed(firing):
    """The patterns' objectives added up: the gradient with respect to each pattern is its own, in one pass."""

    def total(delta, *args):
        values = firing(delta, *args)
        return jnp.sum(values), values

    return total


def _judge(state: UapState, score: Array, config: UapConfig) -> UapState:
    """Keeps the best pattern so far and counts the scores since; past `patience` of them the pattern stops."""
    first = jnp.isneginf(state.best_score)
    better = ~state.done & (first | (score > state.best_score + config.tolerance))
    stale = jnp.where(better, 0, state.stale + 1)
    return state._replace(
        best=jnp.where(_images(better), state.delta, state.best),
        best_score=jnp.where(better, score, state.best_score),
        stale=stale,
        done=state.done | (stale >= config.patience),
    )


def _images(flags: Array) -> Array:
    """(S,) -> (S, 1, 1, 1), to choose between stacks of images."""
    return flags[:, None, None, None]
