"""Gradients through Deep Image Prior, on networks of two scales and 12 px, in float64 throughout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax import goals
from ffjax.defences import dip_gradients, skip_network
from ffjax.defences.dip import Drawing, Prior, advance, unrolled
from ffjax.defences.dip_gradients import Secret
from ffjax.defences.skip_network import Skip
from ffjax.types import Batch

PRIOR = Prior(Skip((4, 8), (0, 2), 4), steps=4, average=0.8)
SECRET = Secret(0, 3)


pytestmark = pytest.mark.slow
"""Second derivatives of a network take a minute or two to compile."""


@pytest.fixture(autouse=True)
def _doubles():
    with jax.enable_x64(True):
        yield


def images(seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(0.1, 0.9, (2, *toys.SHAPE)))


def weights() -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=(2, *toys.SHAPE)))


def pulled(x: jax.Array, last: int | None = None, every: int = 0):
    states = dip_gradients.walk(PRIOR, SECRET, x, every)
    return dip_gradients.pulled(PRIOR, SECRET, states, weights(), last, every)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_finite_differences(seed):
    """Along a random direction uphill. h: Adam's first step is g / (|g| + 1e-8), a sign with a bend 1e-8 wide, whose
    few components of small g carry the derivative: for seed 0 the quotient is off by 3e-2, 3e-4 and 3e-6 at h = 1e-7,
    1e-8 and 1e-9, as h^2, and below that by what rounding leaves. A kink within h would show as two h that disagree."""
    x, rng = images(seed), np.random.default_rng(10 + seed)
    gradient, _ = pulled(x)
    way = jnp.sign(gradient) * jnp.asarray(rng.uniform(0.5, 1.5, x.shape))
    told = float(jnp.sum(gradient * way))

    def value(at: jax.Array) -> float:
        return float(jnp.sum(weights() * dip_gradients.purified(PRIOR, SECRET, at)))

    found = [(value(x + h * way) - value(x - h * way)) / (2 * h) for h in (1e-9, 5e-10)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert told == pytest.approx(found[1], rel=1e-5)
    assert abs(told) > 1e-2


@jax.jit
def one_program(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """dip.unrolled, and the derivative of its product with w."""
    shown, back = jax.vjp(lambda x: unrolled(PRIOR, jax.random.key(SECRET.start), x), x)
    return shown, back(w)[0]


def test_host_driven_gradients_are_those_of_one_program_however_they_are_cut():
    x = images()
    unrolled_, whole = one_program(x, weights())
    assert float(jnp.abs(whole).max()) > 1e-3
    for every in (0, 1, 3, 4):
        np.testing.assert_allclose(pulled(x, every=every)[0], whole, rtol=1e-6, atol=1e-9)
    shown = dip_gradients.purified(PRIOR, SECRET, x)
    np.testing.assert_allclose(shown, unrolled_, rtol=1e-9)


def test_truncated_at_the_whole_length_is_exact_and_before_it_holds_the_past_constant():
    x = images()
    np.testing.assert_array_equal(pulled(x, last=PRIOR.steps)[0], pulled(x)[0])
    np.testing.assert_array_equal(pulled(x, last=99)[0], pulled(x)[0])
    start = dip_gradients.walk(PRIOR, SECRET, x, 1)[-3]

    @jax.jit
    def step(i: jax.Array, at: Drawing) -> Drawing:
        return advance(PRIOR, i, at, skip_network.columns)

    def value(x: jax.Array) -> jax.Array:
        at = start._replace(images=x)
        for i in (PRIOR.steps - 2, PRIOR.steps - 1):
            at = step(jnp.int32(i), at)
        return jnp.sum(weights() * at.average)

    told = jax.grad(value)(x)
    assert float(jnp.abs(told).max()) > 0
    for every in (0, 1, 3, 4):
        np.testing.assert_allclose(pulled(x, 2, every)[0], told, rtol=1e-6, atol=1e-12)
    assert not np.allclose(told, pulled(x)[0], rtol=0.1)
    np.testing.assert_array_equal(pulled(x, last=1)[0], jnp.zeros_like(x))  # what is shown was drawn before that step


def test_the_trace_is_of_truncated_gradients_and_ends_in_the_whole():
    x = images()
    whole, trace = pulled(x, every=2)
    assert trace.steps == (4, 2, 0)
    for k, step in enumerate(trace.steps[1:], start=1):
        part, _ = pulled(x, last=PRIOR.steps - step)
        norms = jnp.sqrt(jnp.sum(part**2, axis=(1, 2, 3)))
        np.testing.assert_allclose(trace.images[k], norms, rtol=1e-9)
        inner = jnp.sum(part * whole, axis=(1, 2, 3)) / norms / jnp.sqrt(jnp.sum(whole**2, axis=(1, 2, 3)))
        np.testing.assert_allclose(trace.cosine[k], inner, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(trace.cosine[-1], 1.0, rtol=1e-9)
    assert (np.asarray(trace.params[1:]) > 0).all()


def test_rows_do_not_see_each_other():
    x, first = images(), weights().at[1].set(0)
    shown, gradient = one_program(x, first)
    assert float(jnp.abs(gradient[0]).max()) > 1e-3
    np.testing.assert_array_equal(gradient[1], jnp.zeros_like(gradient[1]))
    other = x.at[1].set(images(5)[1])
    np.testing.assert_allclose(one_program(other, first)[0][0], shown[0], rtol=1e-9)
    a, b = (pulled(each)[0] for each in (x, other))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6, atol=1e-9)
    assert not np.allclose(a[1], b[1], rtol=0.1)


def attacked(last: int | None = None, straight: bool = False, secrets=(SECRET,)):
    x, goal = images(), goals.verdict()
    batch = Batch(x, jnp.array([0, 1], jnp.int32), jnp.arange(2, dtype=jnp.int32))
    estimator = dip_gradients.through(goal, PRIOR, secrets, toys.forward(), last, straight)
    return estimator.at(jnp.zeros(2), x, batch, jnp.zeros(2), toys.forward())


def test_straight_through_is_the_detectors_gradient_at_what_was_drawn():
    shown = dip_gradients.purified(PRIOR, SECRET, images())
    sign = jnp.array([1.0, -1.0])  # a real is to be called fake, and a fake real

    def objective(x: jax.Array) -> jax.Array:
        logits = toys.forward()(x).logits
        return sign * (logits[:, 1] - logits[:, 0])

    found = attacked(straight=True)
    np.testing.assert_allclose(found.objective, objective(shown), rtol=1e-9)
    np.testing.assert_allclose(found.gradient, jax.grad(lambda x: jnp.sum(objective(x)))(shown), rtol=1e-9, atol=1e-12)
    assert not np.allclose(found.gradient, attacked().gradient, rtol=0.1)


def test_over_keys_it_is_the_mean_and_reached_only_under_all():
    other = Secret(5, 6)
    one, two, both = (attacked(secrets=s) for s in ((SECRET,), (other,), (SECRET, other)))
    np.testing.assert_allclose(both.gradient, (one.gradient + two.gradient) / 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(both.objective, (one.objective + two.objective) / 2, rtol=1e-9)
    np.testing.assert_array_equal(both.reached, one.reached & two.reached)
    assert not np.allclose(one.gradient, two.gradient, rtol=0.1)


@pytest.mark.parametrize("field", Secret._fields)
def test_another_key_draws_another_image(field):
    shown = dip_gradients.purified(PRIOR, SECRET, images())
    other = dip_gradients.purified(PRIOR, SECRET._replace(**{field: 9}), images())
    assert float(jnp.abs(shown - other).max()) > 1e-3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("window", "rows"), [(1, 2), (3, 2), (3, 1)])
def test_products_of_windows_are_the_convolution(window, stride, rows):
    """rows 1: one image for all kernels."""
    rng = np.random.default_rng(0)
    x, kernels = (jnp.asarray(rng.normal(size=s)) for s in ((rows, 8, 6, 3), (2, window, window, 3, 5)))

    def both(f, x, kernels):
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a, stride))), argnums=(0, 1))(x, kernels)

    forms = skip_network.columns, skip_network.one_by_one
    np.testing.assert_allclose(*(f(x, kernels, stride) for f in forms), rtol=1e-9, atol=1e-12)
    ours, theirs = (jax.tree.leaves(both(f, x, kernels)) for f in forms)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_an_unread_bias_has_no_say_and_no_gradient_is_lost_by_it():
    """Adam's root has no derivative at 0, where such a bias's second moment stays."""
    start, after, *_ = dip_gradients.walk(PRIOR, SECRET, images(), 1)
    np.testing.assert_array_equal(after.params["down0_bias"], start.params["down0_bias"])
    assert not np.array_equal(after.params["last_bias"], start.params["last_bias"])
    gradient, trace = pulled(images(), every=1)
    assert all(np.isfinite(np.asarray(x)).all() for x in (gradient, *trace[1:]))
