"""Every published method: inside its bound, rising, resumable; and each restated where it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_universal import Interrupted, followed, inside, killed_at, made

from ffjax import riders
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.objectives import margin
from ffjax.types import Batch, Outputs
from ffjax.uap import Source
from ffjax.universal import METHODS, named, universal
from ffjax.universal.ascent import step_key
from ffjax.universal.build import _score
from ffjax.universal.measures import JOINS, measure, shares
from ffjax.universal.patterns import lay_out
from ffjax.universal.shapes import shape
from ffjax.universal.slopes import shower, split, steepest, values

SEEDS = tuple(range(4))
LINEAR = Source("linear", toys.forward(0, toys.LINEAR), ("image",))


def quick(name: str, **fields):
    return named(name, **({"seeds": SEEDS, "steps": 12, "check": 4} | fields))


def source_for(cfg) -> Source:
    return toys.two_headed() if cfg.mask != "leave" else toys.source()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stays_inside_its_bound_and_gains(name):
    cfg = quick(name, steps=20 if name == "deepfool" else 12)
    source = source_for(cfg)
    laid, states, infos = followed(cfg, (source.forward,), lay_out(cfg, [(source.name, source.layers)]))
    look = shape(cfg)
    for state in states:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.delta, state.best)))
        if cfg.shape == "filter":
            assert (np.abs(state.delta).sum(axis=(1, 2)) <= np.asarray(laid.eps)[:, None] * (1 + 1e-5)).all()
        else:
            assert inside(state.delta, np.asarray(laid.eps) * (1 + 1e-5), cfg.norm)
        again = jax.vmap(look.project)(jnp.asarray(state.delta), laid.eps)
        np.testing.assert_allclose(again, state.delta, atol=1e-6)
    best = np.maximum.reduce([info.objective for info in infos[1:]])
    assert (best > infos[0].objective).all()


@pytest.mark.parametrize("name", METHODS)
def test_eps_zero_changes_no_image(name):
    cfg = quick(name, eps=(0.0,), steps=4)
    source = source_for(cfg)
    _, states, _ = followed(cfg, (source.forward,), lay_out(cfg, [(source.name, source.layers)]))
    images = jnp.asarray(toys.images(4).images / np.float32(255))
    assert np.array_equal(shape(cfg).show(jnp.asarray(states[-1].best), images)[:, 0], images)


@pytest.mark.parametrize("name", ["sga", "deepfool", "robust", "filter", "joint"])
def test_killed_anywhere_every_method_ends_bit_equal(name, tmp_path):
    cfg = quick(name)
    sources = (source_for(cfg),)
    whole = made(cfg, tmp_path / "whole", sources=sources, train=toys.masked(), validation=toys.masked())
    with pytest.raises(Interrupted):
        made(cfg, tmp_path / "cut", watch=killed_at(8), sources=sources, train=toys.masked(), validation=toys.masked())
    resumed = made(cfg, tmp_path / "cut", sources=sources, train=toys.masked(), validation=toys.masked())
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ["gd_uap_data", "uap_pgd", "sga"])
def test_a_smaller_microbatch_climbs_the_same_gradient(name, tmp_path):
    """8 carriers x 4 patterns at once, and in parts of 8 rows: the first objective and move agree to rounding."""
    seen = {}
    for batch in (64, 8):
        compute, infos = Compute(chunk=1, devices=1, batch=batch), []
        cfg = quick(name, steps=1, rule="adam")
        state = made(
            cfg, tmp_path / str(batch), compute, watch=lambda d, i, infos=infos: infos.append(i),
            train=toys.masked(), validation=toys.masked(),
        )  # fmt: skip
        seen[batch] = infos[0].objective[0], state.optimiser[0].mu
    np.testing.assert_allclose(seen[64][0], seen[8][0], rtol=1e-5)
    scale = np.abs(seen[64][1]).max()
    assert np.abs(np.asarray(seen[64][1]) - np.asarray(seen[8][1])).max() < 1e-5 * scale


@pytest.mark.parametrize("name", ["robust", "to_real"])
def test_what_happens_on_the_way_is_an_images_own(name, tmp_path):
    """The draws of an image depend neither on the patterns beside, nor on how the carriers are cut into parts."""

    def first(batch: int, seeds: tuple[int, ...]) -> np.ndarray:
        infos, compute = [], Compute(chunk=1, devices=1, batch=batch)
        cfg, folder = quick(name, steps=1, seeds=seeds), tmp_path / f"{batch}-{len(seeds)}"
        made(cfg, folder, compute, watch=lambda d, i: infos.append(i), train=toys.masked(), validation=toys.masked())
        return infos[0].objective[0]

    whole = first(64, (0, 1, 2))
    np.testing.assert_allclose(first(6, (0, 1, 2)), whole, rtol=1e-4)
    np.testing.assert_allclose(first(64, (0,))[0], whole[0], rtol=1e-4)


def test_verdicts_are_scored_as_wanted():
    """All called real and all called fake are no equals for who wants them real; between equals the margin tells."""
    data, source = toys.images(20), toys.source()
    cfg = quick("uap_pgd", aim="real", seeds=(0,))
    bank, score = riders.bank(cfg, toys.SHAPE, data), _score(cfg, shape(cfg), measure(cfg))
    patterns = jnp.stack([jnp.full(toys.SHAPE, x) for x in (-0.9, -0.3, 0.0, 0.3, 0.9)])
    found = score(patterns, bank, (jnp.zeros((5, 1)),), (source.forward,))
    said = [margin(source.forward(jnp.clip(bank.images + v[None], 0, 1))) for v in patterns]
    share = np.array([np.mean(np.asarray(m) <= 0) for m in said])
    np.testing.assert_allclose(found, share, atol=0.5 / 20)
    order = sorted(range(5), key=lambda k: (share[k], float(jnp.mean(jnp.minimum(-said[k], 12.0)))))
    assert np.argsort(found).tolist() == order and share.max() > share.min()


def test_a_method_is_compiled_once_for_all_seeds_bounds_and_numbers_of_images():
    made_of = universal(quick("uap_pgd"))
    assert made_of is universal(quick("uap_pgd", seeds=(7,), eps=(3.0,), images=5))
    assert made_of is not universal(quick("uap_pgd", rate=2.0))


def batch(count: int = 8) -> Batch:
    return jax.tree.map(jnp.asarray, riders.batch_of(toys.masked(), np.arange(count)))._replace(masks=None)


def test_the_clipped_loss_stops_pulling():
    """On a linear detector: once every image is `clip` beyond the boundary the gradient is exactly zero."""
    data, cfg = batch(), named("uap_pgd", aim="real", clip=0.5)
    far = Outputs(jnp.stack([jnp.full(8, 9.0), jnp.zeros(8)], axis=1), None, None)
    weights = jnp.zeros((8, 1))
    labels = data._replace(labels=jnp.ones(8, int))
    slope = jax.grad(lambda z: jnp.sum(measure(cfg)(far._replace(logits=z), labels, weights)))(far.logits)
    assert not np.asarray(slope).any()
    near = far._replace(logits=far.logits * 0.01)
    slope = jax.grad(lambda z: jnp.sum(measure(cfg)(near._replace(logits=z), labels, weights)))(near.logits)
    np.testing.assert_allclose(slope, np.tile([1.0, -1.0], (8, 1)))


def test_joins_weigh_sources_as_they_say():
    said = jnp.array([[1.0, 4.0], [3.0, 2.0]])
    np.testing.assert_allclose(shares(JOINS["average"], said), [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(shares(JOINS["worst"], said), [[1, 0], [0, 1]])
    np.testing.assert_allclose(shares(JOINS["sum_log"], said), 1 / said)


@pytest.mark.parametrize("join", JOINS)
def test_the_slope_is_the_gradient_of_the_joined_value(join):
    cfg = named("sgd_uap", join=join)
    look, what, forwards = shape(cfg), measure(cfg), (toys.forward(0), toys.forward(1))
    show = shower(look, (), clipped=True)
    patterns = 0.02 * jax.random.normal(jax.random.key(0), (2, *toys.SHAPE))
    weights, key, data = (jnp.zeros((2, 1)),) * 2, step_key(0), batch()

    def whole(v):
        each = [values(show, what, key, v, data, w, f) for w, f in zip(weights, forwards, strict=True)]
        return jnp.sum(JOINS[join](jnp.stack(each)))

    direction, said = steepest(show, what, JOINS[join])(key, patterns, data, weights, forwards, jnp.ones(2))
    np.testing.assert_allclose(direction, jax.grad(whole)(patterns), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(jnp.sum(said), whole(patterns), rtol=1e-6)


def test_aggregation_sums_the_gradients_along_the_trial():
    """Restated step by step: small batches in order, the trial moved by a sign step after each."""
    cfg = named("sga", seeds=(0,), steps=1, inner=4)
    look, what, data = shape(cfg), measure(cfg), riders.at_step(cfg, toys.SHAPE, toys.masked())(0)
    laid = lay_out(cfg, [("toy", toys.LAYERS)])
    state = universal(cfg).init(laid.keys, laid.eps, toys.SHAPE)
    plain = steepest(shower(look, (), clipped=True), what, JOINS["average"])
    trial, total = state.delta, 0
    for piece in split(data, 4):
        gradient, _ = plain(step_key(0), trial, piece, laid.weights, (toys.forward(),), laid.eps)
        total += gradient
        trial = jnp.clip(trial + jnp.sign(gradient) / 255, -laid.eps[0], laid.eps[0])
    expected = jnp.clip(state.delta + jnp.sign(total) / 255, -laid.eps[0], laid.eps[0])
    after, _ = jax.jit(universal(cfg).step)(0, state, data, laid.eps, laid.weights, (toys.forward(),), data)
    clear = np.abs(total) > 1e-6 * np.abs(total).max()
    assert clear.mean() > 0.9
    np.testing.assert_allclose(np.asarray(after.delta)[clear], np.asarray(expected)[clear], atol=1e-7)


def test_deepfool_turns_a_linear_detectors_image_with_the_least_step():
    """One image, one linearisation: v grows by 1.02 times the distance to the boundary, along the weights."""
    w = toys.LINEAR.init(jax.random.key(0))["params"]["w"]
    cfg = named("deepfool", seeds=(0,), steps=1, inner=1, eps=(20.0,), norm="l2", images=1, side="fakes")
    laid = lay_out(cfg, [("linear", ("image",))])
    data = riders.at_step(cfg, toys.SHAPE, toys.masked())(0)
    data = data._replace(images=0.5 * jnp.ones_like(data.images) + 0.01 * w[None])
    state = universal(cfg).init(laid.keys, laid.eps, toys.SHAPE)
    state = state._replace(delta=jnp.zeros_like(state.delta))
    before = float(margin(LINEAR.forward(data.images))[0])
    sign = 1.0 if before > 0 else -1.0
    data = data._replace(labels=jnp.array([int(before > 0)]))
    after, _ = jax.jit(universal(cfg).step)(0, state, data, laid.eps, laid.weights, (LINEAR.forward,), data)
    expected = -sign * 1.02 * (abs(before) + 1e-4) * w / jnp.sum(w**2)
    np.testing.assert_allclose(after.delta[0], expected, rtol=1e-4, atol=1e-7)
    turned = float(margin(LINEAR.forward(data.images + after.delta))[0])
    assert np.sign(turned) != np.sign(before) and abs(turned) < 0.03 * abs(before) + 1e-3
    # an image that is turned already adds nothing
    again, _ = jax.jit(universal(cfg).step)(1, after, data, laid.eps, laid.weights, (LINEAR.forward,), data)
    assert np.array_equal(again.delta, after.delta)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"through": ("jpeg",)}, "there is no image"),
        ({"through": ("rain",), "mode": "range_prior"}, "unknown"),
        ({"objective": "none"}, "needs a mask"),
        ({"mask": "erase"}, "no mask to join"),
        ({"objective": "margin"}, "needs labels"),
        ({"objective": "ce", "aim": "real", "mask": "invert", "mode": "range_prior"}, "true masks"),
        ({"shape": "filter"}, "not for mode no_data"),
        ({"shape": "filter", "mode": "range_prior", "norm": "l2"}, "l_inf alone"),
        ({"shape": "filter", "mode": "range_prior", "kernel": 4}, "odd"),
        ({"method": "deepfool"}, "objective margin"),
        ({"method": "aggregated", "mode": "range_prior", "inner": 3}, "multiple"),
        ({"join": "sum_log"}, "above 0"),
        ({"join": "worst"}, "not for firing"),
        ({"objective": "margin", "method": "deepfool", "aim": "real", "mask": "erase"}, "no mask"),
        ({"images": 0}, "at least 1"),
        ({"objective": "margin", "mode": "with_data", "layers": ("first", "last")}, "layers"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(fields, told):
    with pytest.raises(InputError, match=told) as caught:
        lay_out(named("gd_uap", **fields), [("toy", toys.LAYERS)])
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused_naming_the_known():
    with pytest.raises(InputError, match="known: gd_uap, "):
        named("luck")
