"""What attackers want of a detector: objectives per example, larger = closer, each with the test of having arrived.

A verdict is `margin > threshold` = fake. Objectives on the margin do not change when a constant is added to both
logits, and on two classes "away from the label" and "towards the other class" are one thing, so every verdict attack
here is both targeted and untargeted.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ffjax.objectives import margin
from ffjax.types import Array, Batch, Goal, Outputs


@functools.lru_cache(maxsize=64)
def verdict(loss: str = "margin", *, confidence: float = 0.0, threshold: float = 0.0) -> Goal:
    """The wrong verdict: fakes called real and reals called fake. The same functions for the same words, so that
    attacks on several detectors share a compilation.

    loss: a key of VERDICT_LOSSES. confidence (logit units, >= 0): how far past the threshold an image must lie to
    count. threshold: the margin above which the detector says fake.
    """
    measure = VERDICT_LOSSES[loss]

    def objective(outputs: Outputs, batch: Batch) -> Array:
        return measure(_wrongness(outputs, batch, threshold))

    def reached(outputs: Outputs, batch: Batch) -> Array:
        wrong = _wrongness(outputs, batch, threshold)
        # a real must come strictly above the threshold, where the detector says fake; a fake need only touch it
        return jnp.where(batch.labels == 1, wrong >= confidence, (wrong >= confidence) & (wrong > 0))

    return Goal(objective, reached)


def _wrongness(outputs: Outputs, batch: Batch, threshold: float) -> Array:
    """(B,) margin - threshold, signed so that it grows towards the wrong verdict."""
    past = margin(outputs) - threshold
    return jnp.where(batch.labels == 1, -past, past)


def cross_entropy(wrong: Array) -> Array:
    """-log p(label) = log(1 + exp(w)) for two classes, w the wrong class's lead. Its slope vanishes in float32 once
    w < -88; `margin` has none of that."""
    return jax.nn.softplus(wrong)


VERDICT_LOSSES: dict[str, Callable[[Array], Array]] = {
    "margin": lambda wrong: wrong,
    "ce": cross_entropy,
    "target_ce": jax.nn.log_sigmoid,
}
"""What is climbed of the wrong class's lead w: w itself, -log p(label), or log p(target), which, unlike the others,
stops pulling once the verdict is wrong. Each rises with w: steps along the sign of the gradient are the same."""


def activation(*, confidence: float = 0.0, threshold: float = 0.0) -> Goal:
    """The wrong verdict by ClassNSeg's own training loss (PAPERS.md 1.3): climbs -(|a_fake - t| + |a_real - (1 - t)|),
    a the two logits and t = 1 to be called fake, 0 to be called real. Not indifferent to a constant added to both:
    for networks trained so. Reached as `verdict`."""

    def objective(outputs: Outputs, batch: Batch) -> Array:
        wanted = jnp.where(batch.labels[:, None] == 1, jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]))
        return -jnp.sum(jnp.abs(outputs.logits - wanted), axis=1)

    return Goal(objective, verdict(confidence=confidence, threshold=threshold).reached)


def mask(loss: str = "ce", *, share: float = 0.9) -> Goal:
    """A mask of one's own: batch.wanted (B, H, W) in {0, 1} is what the detector shall show.

    loss: 'ce', the mean over pixels of log p(wanted); or 'margin', the mean of the wanted side's logit lead, cut off at
    1 so that settled pixels stop pulling. Reached when at least `share` of the pixels that shall be forged are shown so
    (logit > 0), and at least `share` of those that shall be real: of all pixels, an empty mask would pass for any small
    shape. ValueError without a mask or a wanted one.
    """
    measure = MASK_LOSSES[loss]

    def objective(outputs: Outputs, batch: Batch) -> Array:
        said, wanted = _said_and_wanted(outputs, batch)
        return jnp.mean(measure(jnp.where(wanted, said, -said)), axis=(1, 2))

    def reached(outputs: Outputs, batch: Batch) -> Array:
        said, wanted = _said_and_wanted(outputs, batch)
        return _enough(said > 0, wanted, share) & _enough(said <= 0, ~wanted, share)

    return Goal(objective, reached)


def _said_and_wanted(outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
    """(B, h, w) logits, and bool: forged where the wanted mask, brought to the logits' size (linear, antialiased), is
    more than half."""
    if outputs.mask is None or batch.wanted is None:
        raise ValueError("an attack on the mask needs a detector with a mask, and a wanted mask for every image")
    covered = jax.image.resize(batch.wanted, outputs.mask.shape, "linear")
    return outputs.mask, covered > 0.5 + 1e-4  # past what rounding makes of a half


def _enough(shown: Array, where: Array, share: float) -> Array:
    """(B,) bool: `shown` in at least `share` of the pixels `where`; of none, always."""
    least = share * (1 - 1e-6) * jnp.sum(where, axis=(1, 2))  # below a whole number by more than float32 rounds
    return jnp.sum(shown & where, axis=(1, 2)) >= least


MASK_LOSSES: dict[str, Callable[[Array], Array]] = {
    "ce": jax.nn.log_sigmoid,
    "margin": lambda lead: jnp.minimum(lead, 1.0),
}


def joint(first: Goal, second: Goal, weight: float) -> Goal:
    """first + weight * second; reached when both are."""

    def objective(outputs: Outputs, batch: Batch) -> Array:
        return first.objective(outputs, batch) + weight * second.objective(outputs, batch)

    def reached(outputs: Outputs, batch: Batch) -> Array:
        return first.reached(outputs, batch) & second.reached(outputs, batch)

    return Goal(objective, reached)
