"""The loop of every universal perturbation: start, step, rescale what is stuck, keep the best, stop what gains nothing.

What is climbed is a Slope (ffjax.universal.slopes), what it may look like a Shape; a rule turns slopes into moves.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from ffjax.objectives import margin
from ffjax.types import Array, Batch, Forward, UapInfo, UapState, Universal
from ffjax.universal.config import UapConfig
from ffjax.universal.shapes import Shape, Size
from ffjax.universal.slopes import Show, Slope

Score = Callable[[Array, Batch, Sequence[Array], Sequence[Forward]], Array]
"""(patterns (S, ...), bank, weights, forwards) -> (S,), what selection and stopping go by: larger = better."""


def ascent(config: UapConfig, shape: Shape, slope: Slope, score: Score) -> Universal:
    """v <- P_eps( v + rule(slope of v) ), for S patterns at once.

    Guarantees: every iterate lies inside the bound; patterns do not influence one another; a pattern that has stopped
    does not move.
    """
    rule = _rule(config)

    def init(keys: Array, eps: Array, size: Size) -> UapState:
        return fresh(shape, keys, eps, size, jax.vmap(rule.init))

    def step(i, state: UapState, batch: Batch, eps: Array, weights, forwards, bank: Batch) -> tuple[UapState, UapInfo]:
        direction, said = slope(step_key(i), state.delta, batch, weights, forwards, eps)
        updates, optimiser = jax.vmap(rule.update)(direction, state.optimiser)
        moved = jax.vmap(shape.project)(state.delta + jnp.asarray(updates), eps)
        saturation = jax.vmap(shape.at_bound)(moved, eps)
        rescaled = (saturation > config.rescale_at) & (jnp.abs(saturation - state.saturation) < config.settled)
        moved = jnp.where(over(rescaled, moved), moved / 2, moved)
        # a stopped pattern keeps its place, so a batch of patterns equals each alone
        delta = jnp.where(over(state.done, moved), state.delta, moved)
        state = state._replace(delta=delta, optimiser=optimiser, saturation=saturation)
        state = judged(config, score, i, state, bank, weights, forwards)
        return state, UapInfo(said, saturation, state.best_score, rescaled & ~state.done)

    return Universal(init, step)


def fresh(shape: Shape, keys: Array, eps: Array, size: Size, memory: Callable[[Array], object]) -> UapState:
    """S patterns at their random start; memory(patterns): what the rule remembers of them."""
    delta = jax.vmap(lambda key, e: shape.project(shape.start(key, e, size), e))(keys, eps)
    s = eps.shape[0]
    zeros, never = jnp.zeros(s), jnp.full(s, -jnp.inf)
    # a copy of delta: the engine donates the state, and one buffer cannot be given away twice
    return UapState(delta, memory(delta), delta + 0.0, never, zeros, jnp.zeros(s, int), zeros > 0)


def step_key(i: Array | int) -> Array:
    """Of what is drawn at step i (transforms on the way), image by image, alike for all patterns."""
    return jax.random.fold_in(jax.random.key(4), i)


def judged(
    config: UapConfig, score: Score, i: Array, state: UapState, bank: Batch, weights, forwards: Sequence[Forward]
) -> UapState:
    """At every `check`-th step and the last: keeps the best pattern so far and counts the scores since; past `patience`
    of them the pattern stops."""

    def judge(state: UapState) -> UapState:
        scored = score(state.delta, bank, weights, forwards)
        first = jnp.isneginf(state.best_score)
        better = ~state.done & (first | (scored > state.best_score + config.tolerance))
        stale = jnp.where(better, 0, state.stale + 1)
        return state._replace(
            best=jnp.where(over(better, state.delta), state.delta, state.best),
            best_score=jnp.where(better, scored, state.best_score),
            stale=stale,
            done=state.done | (stale >= config.patience),
        )

    due = ((i + 1) % config.check == 0) | (i + 1 == config.steps)
    return jax.lax.cond(due, judge, lambda s: s, state)


def changed(show: Show, patterns: Array, bank: Batch, forward: Forward) -> Array:
    """(S,) share of the bank's images whose verdict each of S patterns changes, in [0, 1]."""
    clean = margin(forward(bank.images)) > 0
    return _shared(show, patterns, bank, forward, lambda fake: fake != clean)


def as_wanted(show: Show, patterns: Array, bank: Batch, forward: Forward) -> Array:
    """(S,) share of the bank's images whose verdict is the wrong one of their label, which is the one aimed at."""
    return _shared(show, patterns, bank, forward, lambda fake: fake != (bank.labels == 1))


def _shared(show: Show, patterns: Array, bank: Batch, forward: Forward, counts: Callable[[Array], Array]) -> Array:
    def one(pattern: Array) -> Array:
        return jnp.mean(counts(margin(forward(show(step_key(0), pattern[None], bank))) > 0))

    return jax.lax.map(one, patterns)


def over(flags: Array, like: Array) -> Array:
    """(S,) -> (S, 1, ..., 1), to choose between stacks of patterns."""
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))


def step_size(config: UapConfig) -> float:
    """A step in [0,1] units: pixel values; all numbers of a filter together move a pixel by as much."""
    return config.rate / 255 / (config.kernel**2 if config.shape == "filter" else 1)


def _rule(config: UapConfig) -> optax.GradientTransformation:
    """Ascent: optax descends by a negated rate, the objective is maximised, so here the rate is positive."""
    scale = optax.scale_by_adam() if config.rule == "adam" else optax.scale_by_sign()
    return optax.chain(scale, optax.scale(step_size(config)))
