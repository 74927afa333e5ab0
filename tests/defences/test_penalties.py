"""Penalties are what their equations say, example by example, and so are their gradients, to the second order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from ffjax import defences, train
from ffjax.data.batches import batch_at
from ffjax.defences.penalties import SIZES
from ffjax.errors import InputError
from ffjax.objectives import TINY, cross_entropy
from ffjax.types import Batch

KEY = jax.random.key(3)
PLAIN = train.cross_entropy(toys.TOY)


def batch(count: int = 6) -> Batch:
    return batch_at(toys.images(20), count, 0, 0)


def variables(seed: int = 0):
    return toys.TOY.init(jax.random.key(seed))


def slopes_one_by_one(v, some: Batch) -> np.ndarray:
    """(B, H, W, 3) the gradient of each example's loss, each alone in its batch."""
    found = []
    for k in range(len(some.labels)):
        one = jax.tree.map(lambda x, k=k: x[k : k + 1], some)
        slope = jax.grad(lambda x, one=one: cross_entropy(toys.TOY.apply(v, x), one)[0])(jnp.asarray(one.images))
        found.append(np.asarray(slope[0]))
    return np.stack(found)


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_norm_is_each_examples_own(size):
    v, some = variables(), batch()
    plain, _ = PLAIN(v, some, KEY)
    told, (outputs, kept) = defences.gradient_norm(PLAIN, toys.TOY, 0.7, size)(v, some, KEY)
    g = slopes_one_by_one(v, some).reshape(len(plain), -1)
    squares = np.sum(g**2, axis=1)
    own = {"norm": np.sqrt(squares), "squared": squares, "l1": np.abs(g).sum(1), "batch": np.sqrt(squares.sum())}
    np.testing.assert_allclose(told, plain + 0.7 * own[size], rtol=1e-5)
    assert squares.min() > 1e-6 and outputs.logits.shape == (6, 2) and kept is v


@pytest.mark.parametrize("size", SIZES)
def test_the_training_forwards_own_gradient_is_penalised_alike_where_both_are_one(size):
    v, some = variables(), batch()

    def penalised(loss):
        return jax.value_and_grad(lambda v: jnp.mean(loss(v, some, KEY)[0]))(v)

    one = penalised(defences.gradient_norm(PLAIN, toys.TOY, 0.7, size))
    two = penalised(defences.own_gradient_norm(PLAIN, 0.7, size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, two)


def test_of_a_mix_the_normal_images_part_has_a_gradient_of_its_own():
    v, some = variables(), batch()
    mixed = defences.mixed(PLAIN, toys.TOY, defences.climb(0.05), 0.25)
    told, bare = (f(v, some, KEY)[0] for f in (defences.own_gradient_norm(mixed, 0.7), mixed))
    part = defences.gradient_norm(PLAIN, toys.TOY, 0.75 * 0.7)(v, some, KEY)[0] - PLAIN(v, some, KEY)[0]
    np.testing.assert_allclose(told - bare, part, rtol=1e-3)


def test_the_training_forwards_own_gradient_has_its_dropout():
    def train_forward(variables, images, key):
        kept = jax.random.bernoulli(key, 0.5, images.shape)
        return toys.TOY.apply(variables, images * kept), variables

    detector, v, some = toys.TOY._replace(train=train_forward), variables(), batch()
    loss = train.cross_entropy(detector)
    told, (bare, _) = defences.own_gradient_norm(loss, 0.7)(v, some, KEY)[0], loss(v, some, KEY)
    kept = jax.random.bernoulli(KEY, 0.5, some.images.shape)
    slopes = slopes_one_by_one(v, some._replace(images=some.images * kept)) * kept
    np.testing.assert_allclose(told - bare, 0.7 * np.linalg.norm(slopes.reshape(6, -1), axis=1), rtol=1e-4)


def test_under_batch_norm_no_example_has_a_gradient_of_its_own():
    with pytest.raises(InputError, match="BatchNorm"):
        defences.own_gradient_norm(PLAIN, 0.1)(variables() | {"batch_stats": {}}, batch(), KEY)


def test_the_lipschitz_penalty_is_the_mean_square_of_both_logits_gradients():
    """lambda times the mean of squared entries over class, row, column and channel (PAPERS.md 2.6)."""
    v, some = variables(), batch()
    plain, _ = PLAIN(v, some, KEY)
    told, _ = defences.lipschitz(PLAIN, toys.TOY, 50.0)(v, some, KEY)
    for k in range(6):
        entries = jax.jacrev(lambda x: toys.TOY.apply(v, x).logits[0])(jnp.asarray(some.images[k : k + 1]))
        assert entries.shape == (2, 1, *toys.SHAPE)
        assert float(told[k] - plain[k]) == pytest.approx(50 * float(jnp.mean(jnp.square(entries))), rel=1e-4)


def test_random_projections_have_the_mean_and_the_variance_that_are_stated():
    """Two logits, so each draw is the sum of squares plus or minus twice the inner product, and nothing else."""
    v, some = variables(), batch()
    exact, one = (defences.lipschitz(PLAIN, toys.TOY, 432.0 * 2, draws) for draws in (0, 1))
    plain = np.asarray(PLAIN(v, some, KEY)[0])
    squares = np.asarray(exact(v, some, KEY)[0]) - plain
    drawn = np.stack([np.asarray(one(v, some, jax.random.key(k))[0]) - plain for k in range(64)])
    first, second = (
        jax.grad(lambda x, i=i: jnp.sum(toys.TOY.apply(v, x).logits[:, i]))(jnp.asarray(some.images)) for i in (0, 1)
    )
    twice = np.abs(2 * np.sum(np.asarray(first) * np.asarray(second), axis=(1, 2, 3)))
    assert twice.min() > 0.05 * squares.min()
    np.testing.assert_allclose(np.abs(drawn - squares), np.broadcast_to(twice, drawn.shape), rtol=2e-3)
    assert ((drawn > squares).mean(axis=0) > 0.25).all() and ((drawn > squares).mean(axis=0) < 0.75).all()
    four = defences.lipschitz(PLAIN, toys.TOY, 432.0 * 2, 4)
    spread = [np.std([f(v, some, jax.random.key(k))[0] for k in range(64)], axis=0).mean() for f in (one, four)]
    assert 1.5 < spread[0] / spread[1] < 2.7  # sqrt(4)


def test_an_examples_draws_do_not_depend_on_its_batch():
    v, some = variables(), batch()
    turned = jax.tree.map(lambda x: x[::-1], some)
    loss = defences.lipschitz(PLAIN, toys.TOY, 50.0, 1)
    np.testing.assert_allclose(loss(v, some, KEY)[0], loss(v, turned, KEY)[0][::-1], rtol=1e-5)


WRAPPED = {
    **{size: lambda loss, det, size=size: defences.gradient_norm(loss, det, 0.3, size) for size in SIZES},
    "own": lambda loss, det: defences.own_gradient_norm(loss, 0.3),
    "lipschitz": lambda loss, det: defences.lipschitz(loss, det, 500.0),
    "projected": lambda loss, det: defences.lipschitz(loss, det, 500.0, 1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_parameter_gradients_are_finite_differences_in_float64(name):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        v = jax.tree.map(lambda w: w.astype(jnp.float64), variables())
        some = batch(3)._replace(images=jnp.asarray(rng.uniform(size=(3, *toys.SHAPE))))
        loss = WRAPPED[name](PLAIN, toys.TOY)

        def value(params):
            return jnp.mean(loss({"params": params}, some, KEY)[0])

        way = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), v["params"])
        slope = jax.jit(jax.grad(value))(v["params"])
        told = sum(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.vdot(a, b)), slope, way)))
        h, run = 1e-7, jax.jit(value)
        ahead, behind = (run(jax.tree.map(lambda w, d, s=s: w + s * h * d, v["params"], way)) for s in (1, -1))
        assert told == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-5)
        plain = jax.jit(jax.grad(lambda p: jnp.mean(PLAIN({"params": p}, some, KEY)[0])))(v["params"])
        unlike = sum(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.sum((a - b) ** 2)), slope, plain)))
        assert unlike > 1e-6  # the penalty has a gradient of its own


@pytest.mark.parametrize("name", WRAPPED)
def test_at_a_zero_gradient_all_is_finite(name):
    """A dead network: its logits do not depend on the image."""
    v = jax.tree.map(jnp.zeros_like, variables())
    v["params"]["head"] = v["params"]["head"].at[0, 0].set(1.0)
    loss = WRAPPED[name](PLAIN, toys.TOY)
    value, slope = jax.value_and_grad(lambda p: jnp.mean(loss({"params": p}, batch(), KEY)[0]))(v["params"])
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert float(value) == pytest.approx(float(np.log(2)), abs=0.3 * np.sqrt(6) * 1e-6 + 1e-6)


@pytest.mark.parametrize("name", ["gradient_norm", "lipschitz"])
def test_at_weight_zero_training_is_plain_training(name):
    """The weight is an argument of the program, so nothing of the penalty is compiled away. Not by Adam, which makes
    steps of full length of the rounding where a true gradient is 0, as of the toy's shift."""
    optimiser = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def penalised(i, state, some, key, weight):
        return train.make_step(getattr(defences, name)(PLAIN, toys.TOY, weight), optimiser)(i, state, some, key)

    def trained(step):
        state = train._start(toys.TOY, optimiser, jax.random.key(0))
        for i in range(20):
            state, _ = step(jnp.int32(i), state, batch_at(toys.images(20), 8, 0, i), KEY)
        return state.variables

    plain = trained(jax.jit(train.make_step(PLAIN, optimiser)))
    same = trained(lambda *args: penalised(*args, jnp.float32(0)))
    other = trained(lambda *args: penalised(*args, jnp.float32(1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), same, plain)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (other, plain)), strict=True)) > 1e-3


def test_the_penalty_makes_the_gradients_smaller():
    optimiser = optax.adam(1e-2)

    def norm_after(weight) -> float:
        step = jax.jit(train.make_step(defences.gradient_norm(PLAIN, toys.TOY, weight), optimiser))
        state = train._start(toys.TOY, optimiser, jax.random.key(0))
        for i in range(60):
            state, _ = step(jnp.int32(i), state, batch_at(toys.images(20), 8, 0, i), KEY)
        slopes = slopes_one_by_one(state.variables, batch()).reshape(6, -1)
        return float(np.linalg.norm(slopes, axis=1).mean())

    assert norm_after(3.0) < 0.5 * norm_after(0.0)


def test_a_floor_stands_under_the_root():
    assert float(SIZES["norm"](jnp.zeros((1, 2, 2, 3)))[0]) == pytest.approx(TINY**0.5)


@pytest.mark.parametrize("name", ["norm", "lipschitz"])
def test_the_penalty_of_a_training_in_bfloat16_is_float32s(name):
    """The cross-entropy is of the training forward, in bfloat16; the penalty looks at `apply`, which stays float32."""
    v, some = variables(), jax.tree.map(jnp.asarray, batch())
    low = train.cross_entropy(train.at_precision(toys.TOY, "bfloat16"))
    for loss in (PLAIN, low):
        (told, _), (alone, _) = (f(v, some, KEY) for f in (WRAPPED[name](loss, toys.TOY), loss))
        expected = WRAPPED[name](PLAIN, toys.TOY)(v, some, KEY)[0] - PLAIN(v, some, KEY)[0]
        np.testing.assert_allclose(told - alone, expected, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(low(v, some, KEY)[0], PLAIN(v, some, KEY)[0])
    slope = jax.grad(lambda params: jnp.mean(WRAPPED[name](low, toys.TOY)({"params": params}, some, KEY)[0]))(
        v["params"]
    )
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_the_penalty_of_a_mask_has_the_weight_that_training_gives_it():
    two = toys.masking()
    v, some = two.init(jax.random.key(0)), batch_at(toys.masked(20), 6, 0, 0)
    for weight in (0.0, 1.0, 4.0):
        of = partial(cross_entropy, mask=weight)
        told, _ = defences.gradient_norm(train.cross_entropy(two, weight), two, 0.7, of=of)(v, some, KEY)
        slopes = jax.grad(lambda x, of=of: jnp.sum(of(two.apply(v, x), some)))(jnp.asarray(some.images))
        plain = train.cross_entropy(two, weight)(v, some, KEY)[0]
        np.testing.assert_allclose(told - plain, 0.7 * jnp.linalg.norm(slopes.reshape(6, -1), axis=1), rtol=1e-4)
