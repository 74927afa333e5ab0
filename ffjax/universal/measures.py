"""What a universal perturbation makes large: firing neurons, or a verdict and a mask of one's choice.

A Measure says of rows how close each is: (outputs, batch, weights (B, L)) -> (B,), larger = closer. Labels and wanted
masks come in the batch, where `uap` has put what is wanted; weights are the layers' shares, which firing alone reads.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ffjax import goals
from ffjax.objectives import TINY, over_fire
from ffjax.types import Array, Batch, Outputs
from ffjax.universal.config import UapConfig

Measure = Callable[[Outputs, Batch, Array], Array]


def measure(config: UapConfig) -> Measure:
    """`over_fire`, or min(verdict loss, clip) + mask_weight * mask likelihood, or either alone."""
    if config.objective == "firing":
        fire = over_fire(config.statistic, config.aggregation)
        return lambda outputs, batch, weights: fire(outputs, weights)
    terms = []
    if config.objective != "none":
        terms.append((1.0, partial(_clipped, goals.verdict(config.objective).objective, config.clip)))
    if config.mask != "leave":
        terms.append((1.0 if config.objective == "none" else config.mask_weight, goals.mask().objective))

    def objective(outputs: Outputs, batch: Batch, weights: Array) -> Array:
        del weights
        return jnp.sum(jnp.stack([share * term(outputs, batch) for share, term in terms]), axis=0)

    return objective


def _clipped(loss: Callable[[Outputs, Batch], Array], most: float, outputs: Outputs, batch: Batch) -> Array:
    """min(loss, most) (Shafahi et al., AAAI 2020): an image far over the boundary does not pull any more."""
    return jnp.minimum(loss(outputs, batch), most)


JOINS: dict[str, Callable[[Array], Array]] = {
    "average": lambda values: jnp.mean(values, axis=0),
    "worst": lambda values: jnp.min(values, axis=0),
    "sum_log": lambda values: jnp.sum(jnp.log(jnp.maximum(values, TINY)), axis=0),
}
"""(K, S) what K sources say of S patterns -> (S,)."""


def shares(join: Callable[[Array], Array], values: Array) -> Array:
    """(K, S): how much each source's gradient counts in the gradient of the joined value."""
    return jax.grad(lambda v: jnp.sum(join(v)))(values)
