"""Per-example objectives, (Outputs, ...) -> (B,), larger = closer to what the attacker wants; never reduced over the
batch here, so that whoever differentiates them decides how examples are combined."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ffjax.types import Array, Batch, Outputs

TINY = 1e-12
"""Floor under roots and logarithms: their derivative at zero is infinite, and a dead layer must give 0, not NaN."""


def margin(outputs: Outputs) -> Array:
    """(B,) z_fake - z_real: positive = called fake. Unchanged when a constant is added to both logits."""
    return outputs.logits[:, 1] - outputs.logits[:, 0]


def cross_entropy(outputs: Outputs, batch: Batch, mask: float = 1.0) -> Array:
    """(B,) two-class cross-entropy of the labels, in nats: what detectors are trained on.

    Where the network has a mask and the batch has the true ones, plus `mask` times the mean over pixels of the mask's
    own cross-entropy; masks of another size than the network's are resized (bilinear, antialiased).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch.labels)
    if outputs.mask is not None and batch.masks is not None:
        truth = jax.image.resize(batch.masks, outputs.mask.shape, "bilinear", antialias=True)
        losses += mask * optax.sigmoid_binary_cross_entropy(outputs.mask, truth).mean(axis=(1, 2))
    return losses


def mean_abs(act: Array) -> Array:
    """(B,) mean |a|: the statistic of Fast Feature Fool (Mopuri et al., BMVC 2017)."""
    return jnp.mean(_size(act), axis=(1, 2, 3))


def sq_l2(act: Array) -> Array:
    """(B,) sum of a^2 over positions and channels."""
    return jnp.sum(jnp.square(act), axis=(1, 2, 3))


def l2(act: Array) -> Array:
    """(B,) ||a||_2 over positions and channels: the statistic of GD-UAP (Mopuri et al., TPAMI 2018)."""
    return jnp.sqrt(sq_l2(act) + TINY)


def topk_mean(act: Array, share: float = 0.01) -> Array:
    """(B,) mean of the largest `share` of |a| (at least one): drives the neurons that already fire."""
    flat = _size(act).reshape(act.shape[0], -1)
    return jnp.mean(jax.lax.top_k(flat, max(1, int(share * flat.shape[1])))[0], axis=1)


def frac_active(act: Array, knee: float = 0.1) -> Array:
    """(B,) soft share of firing neurons, mean of |a| / (|a| + t) with t = `knee` times the example's mean |a|.

    The count itself has no gradient; this stands in for it, rises from 0 (silent) to 1 / (1 + knee) (all fire alike),
    and asks for many weak activations rather than a few strong ones. t is held constant in the gradient.
    """
    a = _size(act)
    t = jax.lax.stop_gradient(knee * jnp.mean(a, axis=(1, 2, 3), keepdims=True)) + TINY
    return jnp.mean(a / (a + t), axis=(1, 2, 3))


def _size(act: Array) -> Array:
    """|a| with derivative 0 at 0, where JAX's is 1: the logarithm of a silent layer would multiply it by 1e12."""
    return act * jnp.sign(act)


STATISTICS: dict[str, Callable[[Array], Array]] = {
    "l2": l2,
    "sq_l2": sq_l2,
    "mean_abs": mean_abs,
    "topk_mean": topk_mean,
    "frac_active": frac_active,
}


def sum_log(stats: Array, weights: Array) -> Array:
    """sum_l w_l log s_l: a relative gain counts the same in every layer, whatever the layer's scale."""
    return jnp.sum(weights * jnp.log(stats + TINY), axis=-1)


def total(stats: Array, weights: Array) -> Array:
    """sum_l w_l s_l: the layer of the largest scale leads."""
    return jnp.sum(weights * stats, axis=-1)


def product(stats: Array, weights: Array) -> Array:
    """(prod_l s_l^{w_l})^{1 / sum_l w_l}, the geometric mean: the maxima of the product, whose own value (10^26 for
    squared norms of five layers) would leave float32. Unlike `sum_log` its gradient grows with the value."""
    return jnp.exp(sum_log(stats, weights) / jnp.maximum(jnp.sum(weights, axis=-1), 1.0))


AGGREGATIONS: dict[str, Callable[[Array, Array], Array]] = {"sum_log": sum_log, "sum": total, "prod": product}


def over_fire(statistic: str = "l2", aggregation: str = "sum_log") -> Callable[[Outputs, Array], Array]:
    """(Outputs, weights (B, L) or (1, L)) -> (B,): how hard the monitored layers fire.

    With l_i the activation of layer i, s the statistic and w the layers' weights (0 = not monitored), the default is
    `sum_i w_i log ||l_i||_2`, the objective of GD-UAP, which stands in for Huang et al. (2020), whose formula is not
    public (reference/PAPERS.md 1.2); a single layer is a one-hot w.
    """
    stat, aggregate = STATISTICS[statistic], AGGREGATIONS[aggregation]

    def objective(outputs: Outputs, weights: Array) -> Array:
        return aggregate(jnp.stack([stat(a) for a in outputs.acts.values()], axis=-1), weights)

    return objective
