"""Scores do not depend on how images were batched; conditions are shown as they say; nothing is scored twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ffjax.data import codecs
from ffjax.data.codecs import STORAGE, to_float
from ffjax.detectors import mesonet, resnet
from ffjax.engine import Compute
from ffjax.evaluate import Condition, activations, clean_scores, margins, mask_overlap, score, shown

DATA = toys.images(61)
X = to_float(DATA.images)
FORWARD = toys.forward()


def on_one(batch: int) -> Compute:
    return Compute(batch=batch, devices=1)


@pytest.mark.parametrize("batch", [24, 32, 41, 64])
def test_margins_do_not_depend_on_batch_or_padding(batch):
    """Bit-equal where no operation is so small that XLA compiles it otherwise: on this 12 px toy from some 20 rows up
    (its mean over 6x6 positions is summed in another order below), on the real networks from 8 (next test but one)."""
    assert np.array_equal(margins(FORWARD, X, on_one(batch)), margins(FORWARD, X, on_one(48)))


@pytest.mark.slow
@pytest.mark.parametrize("build", [mesonet.meso4, resnet.resnet10], ids=["meso4", "resnet10"])
def test_margins_of_a_real_network_are_bit_equal_from_8_rows(build):
    network = build(64)
    forward = jax.tree_util.Partial(network.apply, jax.jit(network.init)(jax.random.key(0)))
    x = np.random.default_rng(0).uniform(size=(20, *network.shape)).astype(np.float32)
    assert np.array_equal(margins(forward, x, on_one(8)), margins(forward, x, on_one(32)))


@pytest.mark.parametrize("batch", [1, 2, 8, 9])
def test_small_batches_agree_to_rounding(batch):
    np.testing.assert_allclose(
        margins(FORWARD, X, on_one(batch)), margins(FORWARD, X, on_one(48)), rtol=1e-5, atol=1e-6
    )


def test_margins_of_a_subset_in_another_order():
    rows = np.random.default_rng(0).permutation(61)[:43]
    assert np.array_equal(margins(FORWARD, X[rows], on_one(24)), margins(FORWARD, X, on_one(32))[rows])


def test_the_overlap_of_masks_and_where_it_stands_in_the_scores():
    mask = np.zeros((12, 12), np.float32) - 1
    mask[:6] = 1  # forged: the upper half, whatever is shown

    def apply(variables, images):
        outputs = toys.TOY.apply(variables, images)
        return outputs._replace(mask=jnp.broadcast_to(mask, (len(images), 12, 12)))

    forward = jax.tree_util.Partial(apply, toys.TOY.init(jax.random.key(0)))
    true = np.zeros((61, 12, 12), np.uint8)
    true[1::2, :, :6] = 255  # the left half of every fake: a third of the union
    found = mask_overlap(forward, DATA.images[:2], true[:2], on_one(32))
    np.testing.assert_allclose(found, [0, 1 / 3])
    nothing = jax.tree_util.Partial(lambda v, x: apply(v, x)._replace(mask=-jnp.ones((len(x), 6, 6))), forward.args[0])
    np.testing.assert_array_equal(mask_overlap(nothing, DATA.images[:2], true[:2], on_one(32)), [1, 0])

    scores = clean_scores(forward, DATA._replace(masks=true), on_one(32))
    assert scores["clean_mask_iou"].value == pytest.approx(1 / 3) and scores["clean_mask_iou"].n == 30
    assert list(clean_scores(forward, DATA, on_one(32))) == list(scores)[:-1]
    assert list(clean_scores(FORWARD, DATA._replace(masks=true), on_one(32))) == list(scores)[:-1]


def test_stored_bytes_and_a_pattern_added_on_the_device_are_what_is_shown():
    pattern = np.random.default_rng(1).uniform(-0.4, 0.4, toys.SHAPE).astype(np.float32)
    there = margins(FORWARD, DATA.images, on_one(32), pattern)
    np.testing.assert_allclose(
        there,
        margins(FORWARD, shown(DATA.images, Condition("n", "uap", "g", pattern)), on_one(32)),
        rtol=1e-5,
        atol=1e-6,
    )
    assert np.abs(there - margins(FORWARD, X, on_one(32))).max() > 0.01


def test_margins_are_the_logit_difference():
    logits = np.asarray(FORWARD(jnp.asarray(X)).logits)
    np.testing.assert_allclose(margins(FORWARD, X, on_one(8)), logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-6)
    linear = toys.forward(0, toys.LINEAR)
    weights = linear.args[0]["params"]
    expected = np.sum(X.astype(np.float64) * np.asarray(weights["w"])[None], axis=(1, 2, 3)) + 0.1
    np.testing.assert_allclose(margins(linear, X, on_one(8)), expected, rtol=1e-4, atol=1e-4)


def test_one_trace_for_all_weights():
    traces = []

    def counted(variables, images):
        traces.append(1)
        return toys.TOY.apply(variables, images)

    for seed in range(4):
        margins(jax.tree_util.Partial(counted, toys.TOY.init(jax.random.key(seed))), X, on_one(8))
    assert len(traces) == 1


def test_a_batch_larger_than_the_set():
    assert margins(FORWARD, X[:3], on_one(50)).shape == (3,)


def test_shown_without_a_pattern_is_the_image():
    x = shown(DATA.images, Condition("clean", "clean", "", None))
    assert x.dtype == np.float32
    assert np.array_equal(x, X)


@pytest.mark.parametrize("storage", STORAGE)
def test_fault_14_shown_is_clipped_and_goes_through_the_real_codec(storage):
    pattern = np.random.default_rng(1).uniform(-0.4, 0.4, toys.SHAPE).astype(np.float32)
    x = shown(DATA.images, Condition("n", "uap", "g", pattern, storage))
    summed = np.clip(X + pattern[None], 0, 1)
    assert x.dtype == np.float32
    assert x.min() >= 0 and x.max() <= 1
    if storage == "float":
        assert np.array_equal(x, summed)
        return
    assert np.array_equal(codecs.to_uint8(x) / np.float32(255), x)  # it is a stored picture
    if storage in ("resent", "cropped"):  # restated in tests/data/test_codecs.py
        assert np.array_equal(STORAGE[storage](summed), x)
        return
    for row, image in zip(x, codecs.to_uint8(summed), strict=True):
        quality = storage.removeprefix("jpeg")
        data = codecs.png_bytes(image) if storage == "png" else codecs.jpeg_bytes(image, int(quality))
        assert np.array_equal(to_float(codecs.decode(data)), row)


@pytest.mark.parametrize("batch", [8, 100])
def test_activations_are_means_over_images(batch):
    found = activations(FORWARD, X, on_one(batch))
    direct = FORWARD(jnp.asarray(X)).acts
    assert list(found) == list(toys.LAYERS)
    for name, act in direct.items():
        np.testing.assert_allclose(found[name]["mean_abs"], np.abs(act).mean(), rtol=1e-5)
        np.testing.assert_allclose(found[name]["active"], (np.asarray(act) > 0).mean(), rtol=1e-5)


CONDITIONS = [Condition("clean", "clean", "", None), Condition("png", "clean", "", None, "png")]
FORWARDS = {"one": toys.forward(0), "two": toys.forward(1)}


def scored(store: dict, conditions=CONDITIONS, forwards=FORWARDS):
    def save(name, scores):
        store[name] = dict(scores)

    return {c.name: s for c, s in score(DATA, conditions, forwards, on_one(8), lambda n: store.get(n, {}), save)}


def test_score_gives_and_saves_every_margin():
    store: dict = {}
    found = scored(store)
    assert list(found) == ["clean", "png"]
    assert list(found["clean"]) == ["one", "two"]
    for name, forward in FORWARDS.items():
        assert np.array_equal(found["clean"][name], margins(forward, DATA.images, on_one(8)))
        assert np.array_equal(store["png"][name], found["png"][name])


def test_score_computes_only_what_is_missing():
    known = np.arange(61.0)
    store = {"clean": {"one": known}, "png": {"one": known, "two": known}}
    calls = []

    def counting(name):
        def apply(variables, images):
            calls.append(name)
            return toys.TOY.apply(variables, images)

        return jax.tree_util.Partial(apply, toys.TOY.init(jax.random.key(0)))

    found = scored(store, forwards={"one": counting("one"), "two": counting("two")})
    assert set(calls) == {"two"}
    assert found["clean"]["one"] is known
    assert store["clean"].keys() == {"one", "two"}
    assert found["png"] == {"one": known, "two": known}


def test_score_saves_as_it_goes():
    store: dict = {}
    run = score(DATA, CONDITIONS, FORWARDS, on_one(8), lambda n: {}, lambda n, s: store.update({n: s}))
    next(iter(run))
    assert list(store) == ["clean"]


def test_score_ignores_detectors_nobody_asked_for():
    store = {"clean": {"old": np.zeros(61), "one": np.ones(61)}}
    assert list(scored(store, CONDITIONS[:1], {"one": FORWARDS["one"]})["clean"]) == ["one"]
