"""Penalties on input gradients, added to a training loss and differentiated through (double back-propagation).

They look at the detector as it will be attacked: `apply`, with running statistics and without dropout; but
`own_gradient_norm`, which looks at the training forward, where there are no batch statistics to mix the rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from ffjax.errors import InputError
from ffjax.objectives import TINY, cross_entropy
from ffjax.types import Array, Batch, Detector, LossFn, Outputs, Variables

RowLoss = Callable[[Outputs, Batch], Array]
"""(Outputs, Batch) -> (B,): each example's own loss."""
Size = Literal["norm", "squared", "l1", "batch"]


def gradient_norm(
    loss: LossFn,
    detector: Detector,
    weight: Array | float,
    size: Size = "norm",
    of: RowLoss = cross_entropy,
) -> LossFn:
    """l_b + weight ||d l_b / d x_b||_2, for every example b of the batch.

    After "Security Consideration for Deep Learning-Based Image Forensics" (2018), as its abstract reads (PAPERS.md
    3.3). size: 'norm' as there, 'squared' (Drucker and LeCun 1992; Ross and Doshi-Velez 2018), 'l1' (the dual of
    l_inf), or 'batch', B times the norm of the gradient of the batch's mean loss, alike for all examples. weight:
    lambda, may be traced; at 0 the loss is what it was. Gradients are with respect to images in [0, 1].

    The norm is sqrt(sum of squares + 1e-12), so that an example without a gradient adds 1e-6 weight and no NaN. A ReLU
    has no second derivative: in ReLU networks the penalty acts through the weights, and through the probabilities,
    which activations and biases move.
    """

    def penalised(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        losses, aux = loss(variables, batch, key)
        # rows are independent, so the gradient of their sum holds each row's own
        slopes = jax.grad(lambda x: jnp.sum(of(detector.apply(variables, x), batch)))(batch.images)
        return losses + weight * SIZES[size](slopes), aux

    return penalised


def own_gradient_norm(loss: LossFn, weight: Array | float, size: Size = "norm") -> LossFn:
    """l_b + weight ||d l_b / d x_b||_2 of the loss itself, as it is trained: with its dropout and its precision, and
    without another forward.

    As `gradient_norm`, but a backward pass cheaper; where training and deployed forward are one they are equal.
    Nothing is differentiated through an attack: of a `mixed` loss it is the gradient of the normal images' part, of
    `trades` by way of the normal images' outputs, and there is none of an `adversarial` one. InputError for a network
    with batch statistics, under which no example has a gradient of its own.
    """

    def penalised(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        check_rows(variables)

        def total(images: Array) -> tuple[Array, tuple[Array, tuple[Outputs, Variables]]]:
            losses, aux = loss(variables, batch._replace(images=images), key)
            return jnp.sum(losses), (losses, aux)

        slopes, (losses, aux) = jax.grad(total, has_aux=True)(jnp.asarray(batch.images))
        return losses + weight * SIZES[size](slopes), aux

    return penalised


def check_rows(variables: Variables) -> None:
    """InputError where the training forward mixes its rows."""
    if "batch_stats" in variables:
        raise InputError("the network has BatchNorm: in training no example has a loss gradient of its own")


def lipschitz(loss: LossFn, detector: Detector, weight: Array | float, draws: int = 0) -> LossFn:
    """l_b + weight / (C N) sum_i ||d Z_i(x_b) / d x_b||_2^2, i over the C = 2 logits, N = H W 3.

    Gandhi and Jain's regularisation (IJCNN 2020, arXiv 2003.10596; PAPERS.md 2.6), with weights of 5, 50, 500 and 5000;
    theirs runs in training mode, ours does not (see the module). In ReLU networks biases have no gradient of it. It
    costs two backward passes and their derivatives. draws > 0 takes as many passes instead: the mean of
    ||d (r . Z) / d x||^2 over r of random signs, whose expectation is the sum; of one draw the variance is
    4 <d Z_0 / d x, d Z_1 / d x>^2. Draws are folded from key and ids.
    """

    def penalised(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        losses, aux = loss(variables, batch, key)
        logits, pull = jax.vjp(lambda x: detector.apply(variables, x).logits, batch.images)
        if draws:
            keys = jax.vmap(partial(jax.random.fold_in, key))(batch.ids)
            signs = jax.vmap(lambda k: jax.random.rademacher(k, (draws, logits.shape[1]), logits.dtype))(keys)
            along, passes = jnp.moveaxis(signs, 1, 0), draws
        else:
            each = jnp.eye(logits.shape[1], dtype=logits.dtype)
            along, passes = [jnp.broadcast_to(one, logits.shape) for one in each], 1
        squares = sum(SIZES["squared"](pull(one)[0]) for one in along) / passes
        return losses + weight / (logits.shape[1] * batch.images[0].size) * squares, aux

    return penalised


def _squared(slopes: Array) -> Array:
    return jnp.sum(jnp.square(slopes), axis=(1, 2, 3))


SIZES: dict[str, Callable[[Array], Array]] = {
    "norm": lambda slopes: jnp.sqrt(_squared(slopes) + TINY),
    "squared": _squared,
    "l1": lambda slopes: jnp.sum(jnp.abs(slopes), axis=(1, 2, 3)),
    "batch": lambda slopes: jnp.broadcast_to(jnp.sqrt(jnp.sum(jnp.square(slopes)) + TINY), (len(slopes),)),
}
"""(B, H, W, 3) gradients of the examples' losses -> (B,)."""
