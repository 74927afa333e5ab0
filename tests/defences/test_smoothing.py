"""Votes depend on nothing but image, id, sigma, seed and number; the soft vote is the mean that it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from scipy import stats

from ffjax.data.codecs import to_float
from ffjax.defences import smoothed, smoothing
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import Outputs

KEY = jax.random.key(5)
TWO = toys.two_headed().forward
IMAGES = to_float(toys.images(12).images)
IDS = np.arange(12, dtype=np.int32)
RUN = jax.jit(lambda forward, x: forward(x))


def votes(rows, first=0, stop=40, copies=8, sigma=0.25, seed=3) -> smoothing.Counts:
    return smoothing.count(TWO, IMAGES[rows], IDS[rows], sigma, seed, first, stop, copies)


def test_votes_do_not_depend_on_batch_mates_or_on_how_copies_are_cut():
    whole = votes(IDS)
    assert len(np.unique(whole.fake)) > 5 and len(np.unique(whole.mask)) > 20 and whole.mask.shape == (12, 12, 12)
    for rows, copies in ((IDS[::-1], 8), (IDS[3:4], 40), (IDS[[7, 2, 5]], 13)):
        found = votes(rows, copies=copies)
        np.testing.assert_array_equal(found.fake, whole.fake[rows])
        np.testing.assert_array_equal(found.mask, whole.mask[rows])
    parts = [votes(IDS, 0, 13), votes(IDS, 13, 17), votes(IDS, 17, 40, copies=16)]
    jax.tree.map(lambda x, *some: np.testing.assert_array_equal(x, sum(some)), whole, *parts)


def test_votes_are_those_of_the_copies_one_by_one():
    """Each draw by the stated folds, in a loop of its own."""
    said = []
    for k in range(5, 15):
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(3), i), k) for i in IDS]
        n = np.stack([jax.random.normal(key, toys.SHAPE) for key in keys])
        said.append(RUN(TWO, IMAGES + np.float32(0.25) * n))
    found = votes(IDS, 5, 15)
    np.testing.assert_array_equal(found.fake, sum(np.asarray(margin(one)) > 0 for one in said))
    np.testing.assert_array_equal(found.mask, sum((np.asarray(one.mask) > 0).astype(int) for one in said))


def test_a_copy_votes_where_it_exceeds_the_thresholds():
    """Each of its own: the verdict's moves no pixel and the mask's no verdict; by default both are 0."""
    draws = [smoothing.answers(TWO, IMAGES, IDS, jnp.array([k]), 0.25, 3) for k in range(6)]
    margins, mask = (np.concatenate([np.asarray(one[part]) for one in draws], axis=1) for part in (0, 1))
    at = smoothing.Thresholds(float(np.median(margins)) + 1e-3, float(np.quantile(mask, 0.8)) + 1e-3)
    plain = smoothing.count(TWO, IMAGES, IDS, 0.25, 3, 0, 6, 6)
    found = smoothing.count(TWO, IMAGES, IDS, 0.25, 3, 0, 6, 6, at)
    for counts, t in ((plain, smoothing.AS_TRAINED), (found, at)):
        np.testing.assert_array_equal(counts.fake, np.sum(margins > t.margin, axis=1))
        np.testing.assert_array_equal(counts.mask, np.sum(mask > t.mask, axis=1))
    assert np.any(plain.fake != found.fake) and np.any(plain.mask != found.mask)


def test_other_ids_seeds_and_numbers_draw_otherwise():
    some = jnp.arange(4)
    whole = np.asarray(smoothing.noise(3, jnp.arange(50), some, (6, 6, 3)))
    assert whole.shape == (50, 4, 6, 6, 3) and stats.kstest(whole.ravel(), "norm").pvalue > 1e-3
    drawn = [whole, smoothing.noise(4, jnp.arange(50), some, (6, 6, 3))]
    drawn += [smoothing.noise(3, jnp.arange(50, 100), some, (6, 6, 3))]
    drawn += [smoothing.noise(3, jnp.arange(50), some + 4, (6, 6, 3))]
    vectors = np.concatenate([np.asarray(x).reshape(200, -1) for x in drawn])
    alike = np.corrcoef(vectors) - np.eye(800)
    assert np.abs(alike).max() < 6 / np.sqrt(vectors.shape[1])


def test_noise_leaves_the_range_of_images():
    """On white images, where cutting would push one way: the votes are those of the Gaussian, not of what is cut."""
    plain = toys.forward(1, toys.LINEAR)
    w = np.asarray(plain.args[0]["params"]["w"], np.float64)
    cut = jax.tree_util.Partial(_cut, plain)
    white, ids = np.ones((8, *toys.SHAPE), np.float32), IDS[:8]
    away = float(margin(plain(white))[0]) / np.linalg.norm(w)
    sigma = 2 * abs(away)
    chances = []
    for forward in (plain, cut):
        fake = int(np.sum(smoothing.count(forward, white, ids, sigma, 0, 0, 250, 25).fake))
        chances.append(stats.binomtest(fake, 2000, stats.norm.cdf(away / sigma)).pvalue)
    assert chances[0] > 1e-3 and chances[1] < 1e-9


def _cut(forward, images) -> Outputs:
    return forward(jnp.clip(images, 0, 1))


def test_the_soft_vote_is_the_log_odds_of_the_mean_probability():
    soft = smoothed(0.25, 6)(KEY, TWO)
    seed = jax.random.bits(KEY, (), jnp.uint32)
    draws = [jax.random.normal(jax.random.fold_in(jax.random.key(seed), k), toys.SHAPE) for k in range(6)]
    said = [RUN(TWO, IMAGES + np.float32(0.25) * np.asarray(n)[None]) for n in draws]
    found = RUN(soft, IMAGES)
    for told, logits in (
        (margin(found), [margin(one) for one in said]),
        (found.mask, [one.mask for one in said]),
    ):
        p = np.mean(1 / (1 + np.exp(-np.stack(logits).astype(np.float64))), axis=0)
        np.testing.assert_allclose(told, np.log(p / (1 - p)), rtol=2e-4, atol=2e-5)
    assert np.all(found.logits[:, 0] == 0) and list(found.acts) == list(toys.LAYERS)
    np.testing.assert_allclose(found.acts["conv1"], said[0].acts["conv1"], atol=2e-6)


def test_the_soft_vote_is_a_forward():
    """Deterministic, row-independent, one compilation for all weights, sigmas and keys; no mask where there is none."""
    whole = RUN(smoothed(0.25, 6)(KEY, TWO), IMAGES)
    for rows in (IDS[::-1], IDS[2:10]):
        some = RUN(smoothed(0.25, 6)(KEY, TWO), IMAGES[rows])
        np.testing.assert_array_equal(some.logits, whole.logits[rows])
        np.testing.assert_array_equal(some.mask, whole.mask[rows])
    plain = RUN(smoothed(0.25, 6)(KEY, toys.forward(0)), IMAGES)
    assert plain.mask is None
    before = len(toys.TRACES)
    others = [(0.5, KEY, 0), (0.25, jax.random.key(6), 0), (0.25, KEY, 1)]
    for sigma, key, weights in others:
        other = RUN(smoothed(sigma, 6)(key, toys.forward(weights)), IMAGES)
        assert np.all(np.asarray(other.logits[:, 1]) != np.asarray(plain.logits[:, 1]))
    assert len(toys.TRACES) == before


@pytest.mark.parametrize("samples", [1, 5])
def test_its_gradient_is_that_of_its_values(samples):
    soft = smoothed(0.25, samples)(KEY, TWO)
    with jax.enable_x64(True):
        x = jnp.asarray(IMAGES[:3], jnp.float64)
        soft = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, soft)
        towards = np.random.default_rng(0).normal(size=x.shape)

        @jax.jit
        @jax.value_and_grad
        def value(x):
            said = soft(x)
            return jnp.sum(margin(said)) + jnp.mean(said.mask)

        slope = float(jnp.vdot(value(x)[1], towards))
        h = 1e-6
        rise = float(value(x + h * towards)[0] - value(x - h * towards)[0]) / (2 * h)
    assert slope == pytest.approx(rise, rel=1e-5) and abs(slope) > 1e-3


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_its_gradient_is_finite_however_sure_the_detector_is(scale):
    """p rounds to 0 or 1; the log-odds do not. Where all draws are of one mind the gradient is there to be followed;
    where they are not, the mean of hard votes is flat, and so is its gradient."""
    sure = jax.tree_util.Partial(_scaled, jnp.float32(scale), toys.forward(0))
    soft = smoothed(0.01, 4)(KEY, sure)
    logits, pull = jax.vjp(jax.jit(lambda x: margin(soft(x))), jnp.asarray(IMAGES))
    logits, slopes = np.asarray(logits), np.asarray(pull(jnp.ones(12))[0])
    assert np.isfinite(logits).all() and np.isfinite(slopes).all()
    agreed = np.abs(logits) > 100
    assert agreed.sum() > 5 and (np.abs(slopes[agreed]).max(axis=(1, 2, 3)) > 1).all()


def _scaled(scale, forward, images) -> Outputs:
    said = forward(images)
    return said._replace(logits=scale * said.logits)


@pytest.mark.parametrize(
    ("sigma", "samples", "told"),
    [
        (0.0, 4, "sigma: must be above 0, got 0"),
        (-0.1, 4, "sigma: must be above 0, got -0.1"),
        (0.1, 0, "samples: must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sigma, samples, told):
    with pytest.raises(InputError, match=told):
        smoothed(sigma, samples)
    with pytest.raises(InputError, match=told):
        smoothing.count(TWO, IMAGES, IDS, sigma, 0, 0, samples)
