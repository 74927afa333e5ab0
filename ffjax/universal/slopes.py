"""Which way S patterns rise: the gradient of a measure over sources, images and chance, or what stands in for it.

A Slope is (key, patterns (S, ...), batch, weights, forwards, eps (S,)) -> (direction (S, ...), values (S,)): one pass
of each source forward and back over B x S rows, so that k sources cost k gradients.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ffjax import transforms
from ffjax.types import Array, Batch, Forward
from ffjax.universal.measures import Measure, shares
from ffjax.universal.shapes import Shape

Slope = Callable[..., tuple[Array, Array]]
Show = Callable[[Array, Array, Batch], Array]
"""(key, patterns (S, ...), batch of B) -> rows (B S, H, W, 3), as a detector is fed them."""


def shower(shape: Shape, through: Sequence[str], *, clipped: bool) -> Show:
    """How patterns reach the detector: on every image, cut to [0, 1], then through the named transforms, each image
    with draws of its own, by its id, the same for all patterns. clipped=False: fed as they are, for patterns that ride
    on nothing."""
    way = transforms.chain(*(transforms.NAMED[name] for name in through))

    def show(key: Array, patterns: Array, batch: Batch) -> Array:
        both = shape.show(patterns, batch.images)
        # carriers lead, so that a batch sharded over devices stays so
        rows = (jnp.clip(both, 0.0, 1.0) if clipped else both).reshape(-1, *both.shape[2:])
        if not through:
            return rows
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch.ids)
        return jax.vmap(way)(jnp.repeat(keys, patterns.shape[0]), rows)

    return show


def values(
    show: Show, measure: Measure, key: Array, patterns: Array, batch: Batch, weights: Array, forward: Forward
) -> Array:
    """(S,) mean over the batch of what one source's measure says of each pattern on it."""
    b, s = batch.labels.shape[0], patterns.shape[0]
    rows = show(key, patterns, batch)
    said = measure(forward(rows), repeated(batch, s), jnp.tile(weights, (b, 1)))
    return jnp.mean(said.reshape(b, s), axis=0)


def repeated(batch: Batch, count: int) -> Batch:
    """Every row `count` times running, but for the images, which `show` has made anew."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch._replace(images=None))


def steepest(show: Show, measure: Measure, join: Callable[[Array], Array], parts: int = 1) -> Slope:
    """The gradient of join_k mean_x measure(f_k(show(v, x))); the batch in `parts`, one after another, for memory."""

    def of_one(key: Array, patterns: Array, batch: Batch, weights: Array, forward: Forward) -> tuple[Array, Array]:
        def total(v: Array) -> tuple[Array, Array]:
            each = values(show, measure, key, v, batch, weights, forward)
            # the patterns' objectives added up: the gradient with respect to each pattern is its own
            return jnp.sum(each), each

        return jax.grad(total, has_aux=True)(patterns)

    def slope(key: Array, patterns: Array, batch: Batch, weights, forwards, eps: Array) -> tuple[Array, Array]:
        pieces = split(batch, parts)
        found = [
            [of_one(key, patterns, piece, w, f) for piece in pieces] for w, f in zip(weights, forwards, strict=True)
        ]
        said = jnp.stack([sum(value for _, value in each) / len(pieces) for each in found])
        part = shares(join, said)[(...,) + (None,) * (patterns.ndim - 1)] / len(pieces)
        rises = jnp.stack([sum(grad for grad, _ in each) for each in found])
        return jnp.sum(part * rises, axis=0), join(said)

    return slope


def aggregated(slope: Slope, shape: Shape, inner: int, rate: float) -> Slope:
    """Stochastic gradient aggregation (Liu et al., ICCV 2023, as we understand it): the batch in `inner` small ones; a
    trial pattern takes a sign step of `rate` on each in turn, and the direction is the sum of the gradients met on the
    way. Costs what one gradient of the whole batch does."""

    def aggregate(key: Array, patterns: Array, batch: Batch, weights, forwards, eps: Array) -> tuple[Array, Array]:
        trial, total, said = patterns, jnp.zeros_like(patterns), []
        for j, piece in enumerate(split(batch, inner)):
            gradient, value = slope(jax.random.fold_in(key, j), trial, piece, weights, forwards, eps)
            total, said = total + gradient, [*said, value]
            trial = jax.vmap(shape.project)(trial + rate * jnp.sign(gradient), eps)
        return total, jnp.mean(jnp.stack(said), axis=0)

    return aggregate


def split(batch: Batch, parts: int) -> list[Batch]:
    """Parts of equal length, part j the rows j, j + parts, ...: where rows are spread over devices, each has its share
    of every part. ValueError if it does not divide."""
    count = batch.labels.shape[0]
    if count % parts:
        raise ValueError(f"{count} rows do not split into {parts} equal parts")
    return [jax.tree.map(lambda x, j=j: x.reshape(-1, parts, *x.shape[1:])[:, j], batch) for j in range(parts)]
