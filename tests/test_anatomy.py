"""Measurements of patterns on detectors whose answers are known in closed form."""

import itertools
import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from matplotlib.colors import to_rgb
from PIL import Image

from ffjax import anatomy, anatomy_figures
from ffjax.data.codecs import to_float
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.figures import COLOURS
from ffjax.types import Outputs
from ffjax.universal import fixed

DATA = toys.images(20)
KEY = jax.random.key(0)
LINEAR = toys.forward(0, toys.LINEAR)
WEIGHTS = np.asarray(LINEAR.args[0]["params"]["w"])
MID = np.random.default_rng(0).integers(100, 156, DATA.images.shape, dtype=np.uint8)  # 0.1 either way is not clipped


def on_one(batch: int) -> Compute:
    return Compute(batch=batch, devices=1)


def squared(shape: tuple[int, ...]) -> jax.tree_util.Partial:
    """z_fake - z_real = sum w x^2 / 2 for images of any shape, so that an image's gradient is w x."""

    def apply(weights, images):
        score = jnp.sum(weights[None] * images**2, axis=(1, 2, 3)) / 2
        return Outputs(jnp.stack([0 * score, score], axis=1), None, OrderedDict())

    return jax.tree_util.Partial(apply, jax.random.normal(jax.random.key(7), shape))


def test_a_linear_detector_is_pushed_by_the_product_with_its_weights():
    v = np.random.default_rng(1).uniform(-0.1, 0.1, toys.SHAPE).astype(np.float32)
    found = anatomy.push(LINEAR, MID, DATA.labels, {"v": v, "nothing": 0 * v}, on_one(8))
    for part, count in (("all", 20), ("fake", 10), ("real", 10)):
        change = found["changes"]["v"][part]
        np.testing.assert_allclose(change["mean"], np.sum(WEIGHTS.astype(float) * v), rtol=1e-4)
        assert change["sd"] < 1e-4 * abs(change["mean"])
        assert change["agreement"] == pytest.approx(1) and change["agreement"] <= 1
        assert change["n"] == count
        assert found["changes"]["nothing"][part] == {"mean": 0, "sd": 0, "agreement": None, "n": count}
    assert found["labels"] == DATA.labels.tolist()
    np.testing.assert_array_equal(found["margins"]["clean"], margins(LINEAR, MID, on_one(8)))
    np.testing.assert_array_equal(found["margins"]["v"], margins(LINEAR, MID, on_one(8), v))


def test_agreement_is_what_all_images_share():
    """Changes of 3 and -1 in equal number: mean 1, root mean square sqrt 5; +2 on every fake, -2 on every real: 0."""
    scale = {0: 50, 1: 100}
    images = np.stack([np.full((2, 2, 3), scale[label], np.uint8) for label in DATA.labels])

    def detector(fakes: float, reals: float) -> jax.tree_util.Partial:
        def apply(change, images):
            moved = jnp.mean(images, axis=(1, 2, 3)) * 255 % 50 > 10  # the pattern adds 20 / 255
            bright = jnp.mean(images, axis=(1, 2, 3)) * 255 > 90
            score = jnp.where(moved, jnp.where(bright, change[0], change[1]), 0.0)
            return Outputs(jnp.stack([0 * score, score], axis=1), None, OrderedDict())

        return jax.tree_util.Partial(apply, jnp.array([fakes, reals]))

    pattern = {"v": np.full((2, 2, 3), 20 / 255, np.float32)}
    mixed = anatomy.push(detector(3, -1), images, DATA.labels, pattern, on_one(8))["changes"]["v"]
    assert mixed["all"] == pytest.approx({"mean": 1, "sd": 2, "agreement": 1 / 5**0.5, "n": 20})
    assert mixed["real"]["mean"] == -1 and mixed["real"]["agreement"] == 1
    assert (
        anatomy.push(detector(2, -2), images, DATA.labels, pattern, on_one(8))["changes"]["v"]["all"]["agreement"] == 0
    )


def test_firing_is_the_same_as_evaluates_and_its_direction_has_a_sign():
    """The activation is the image; fakes are brighter than reals in red, by 60 / 255, and alike in green and blue."""
    images = np.full((20, *toys.SHAPE), 100, np.uint8)
    images[DATA.labels == 1, ..., 0] = 160
    red = np.zeros(toys.SHAPE, np.float32)
    red[..., 0] = 0.1
    patterns = {"up": red, "down": -red, "across": red[..., ::-1], "nothing": 0 * red}
    found = anatomy.firing_change(LINEAR, images, DATA.labels, patterns, on_one(8))
    direction = {name: layers["image"] for name, layers in found["direction"].items()}
    assert direction["up"] == pytest.approx({"cosine": 1, "gaps": 0.1 * 255 / 60}, rel=1e-4)
    assert direction["down"] == pytest.approx({"cosine": -1, "gaps": -0.1 * 255 / 60}, rel=1e-4)
    assert direction["across"] == pytest.approx({"cosine": 0, "gaps": 0}, abs=1e-5)
    assert direction["nothing"] == {"cosine": None, "gaps": 0}
    sizes = {name: layers["image"]["mean_abs"] for name, layers in found["firing"].items()}
    clean = (130 + 100 + 100) / 3 / 255
    assert sizes == pytest.approx({"clean": clean, "up": clean + 0.1 / 3, "down": clean - 0.1 / 3} | {
        "across": clean + 0.1 / 3, "nothing": clean
    }, rel=1e-4)  # fmt: skip
    assert found["firing"]["clean"]["image"]["active"] == 1


def test_a_linear_detectors_gradients_have_one_direction():
    found = anatomy.jacobian_spectrum(LINEAR, DATA.images, 5, on_one(8), KEY)
    length = np.linalg.norm(WEIGHTS)
    assert found.vectors.shape == (1, *toys.SHAPE) and found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors[0], WEIGHTS / length, rtol=1e-4, atol=1e-7)  # with the sign that raises it
    assert found.values[0] == pytest.approx(20**0.5 * length, rel=1e-5) and found.values[1] < 1e-6 * found.values[0]
    assert found.energy[0] == pytest.approx(1)
    assert np.sum(found.random**2) == pytest.approx(20 * length**2, rel=1e-4)  # rows as long, of other directions
    assert found.random[0] < 1.5 * length
    unit = anatomy.jacobian_spectrum(LINEAR, DATA.images, 5, on_one(8), KEY, unit=True)
    assert unit.values[0] == pytest.approx(20**0.5, rel=1e-5)
    assert np.sum(unit.random**2) == pytest.approx(20, rel=1e-4)

    across = np.roll(WEIGHTS, 1, axis=0)
    across -= WEIGHTS * np.sum(across * WEIGHTS) / length**2
    aligned = anatomy.alignment(found.vectors, {"along": 0.1 * WEIGHTS, "against": -WEIGHTS, "across": across}, KEY)
    assert aligned["patterns"]["along"] == pytest.approx([1], abs=1e-6)
    assert aligned["patterns"]["against"] == pytest.approx([1], abs=1e-6)
    assert aligned["patterns"]["across"] == pytest.approx([0], abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 2, 3)], ids=["wide", "tall"])
@pytest.mark.parametrize("unit", [False, True])
def test_the_spectrum_is_that_of_numpy(shape, unit):
    forward = squared(shape)
    images = np.random.default_rng(2).integers(0, 256, (13, *shape), dtype=np.uint8)
    rows = (to_float(images) * np.asarray(forward.args[0])).reshape(13, -1).astype(float)
    if unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    found = anatomy.jacobian_spectrum(forward, images, 4, on_one(8), KEY, unit)
    assert found.values.shape == found.random.shape == values.shape
    np.testing.assert_allclose(found.values, values, rtol=1e-4)
    np.testing.assert_allclose(found.energy, values**2 / np.sum(values**2), rtol=1e-4)
    flat = found.vectors.reshape(4, -1)
    np.testing.assert_allclose(np.abs(np.sum(flat * right[:4], axis=1)), 1, rtol=1e-4)
    np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-5)
    assert np.all(flat @ rows.sum(axis=0) > 0)


def test_random_rows_are_drawn_from_the_key():
    again, other = (anatomy.jacobian_spectrum(LINEAR, DATA.images, 1, on_one(8), jax.random.key(k)) for k in (0, 1))
    first = anatomy.jacobian_spectrum(LINEAR, DATA.images, 1, on_one(8), KEY)
    np.testing.assert_array_equal(first.random, again.random)
    assert np.any(first.random != other.random)


def test_alignment_of_single_pixels():
    """On one-hot vectors every sign noise has the same part, sqrt(k / D), and a pattern's is the norm of its values."""
    vectors = np.eye(3, 12, dtype=np.float32).reshape(3, 2, 2, 3)
    pattern = np.zeros((2, 2, 3), np.float32)
    pattern[0, 0], pattern[1, 1, 2] = (2, 0, 1), 2
    found = anatomy.alignment(vectors, {"v": pattern, "nothing": 0 * pattern}, KEY, draws=5)
    assert found["patterns"]["v"] == pytest.approx([2 / 3, 2 / 3, 5**0.5 / 3])
    assert found["patterns"]["nothing"] == [0, 0, 0]
    for row in (found["expected"], found["noise"]["mean"], found["noise"]["low"], found["noise"]["high"]):
        assert row == pytest.approx([(k / 12) ** 0.5 for k in (1, 2, 3)])
    mixed = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 3)))[0].T.reshape(3, 2, 2, 3).astype(np.float32)
    noise = anatomy.alignment(mixed, {}, KEY, draws=5)["noise"]
    assert noise["draws"] == 5
    assert np.all(np.array(noise["low"]) < noise["mean"]) and np.all(np.array(noise["mean"]) < noise["high"])


def test_the_spectrum_of_waves_and_noise():
    y, x = np.mgrid[:48, :32]
    waves = {
        "lines": (np.cos(2 * np.pi * 5 * x / 32), 5 / 32),
        "rows": (np.sin(2 * np.pi * 9 * y / 48), 9 / 48),
        "slanting": (np.cos(2 * np.pi * (3 * x / 32 + 12 * y / 48)), np.hypot(3 / 32, 12 / 48)),
        "constant": (np.ones((48, 32)), 0.0),
        "checkerboard": ((-1.0) ** (x + y), anatomy.FASTEST),
    }
    for name, (wave, frequency) in waves.items():
        found = anatomy.spectrum(0.04 * wave[..., None] * np.array([1, -1, 0.5]))
        place = min(int(np.searchsorted(found["edges"], frequency, "right")) - 1, 31)
        assert found["shares"][place] == pytest.approx(1), name
        assert found["centroid"] == pytest.approx(frequency, abs=1e-9), name
        assert sum(found["shares"]) == pytest.approx(1) and len(found["shares"]) == 32 and len(found["edges"]) == 33
    both = anatomy.spectrum(np.stack([waves["constant"][0], 2 * waves["checkerboard"][0]], axis=-1), bins=8)
    assert (both["shares"][0], both["shares"][-1]) == pytest.approx((0.2, 0.8))
    noise = anatomy.spectrum(np.asarray(fixed.sign_noise(KEY, (48, 32, 3), 0.1)))
    assert sum(noise["shares"]) == pytest.approx(1) and min(noise["shares"]) > 0
    with pytest.raises(ValueError, match="zeros"):
        anatomy.spectrum(np.zeros(toys.SHAPE))


def response(forward=LINEAR, pattern=None, sizes=(0, 0.5, 1), norm="linf", batch=8):
    pattern = -0.2 * np.sign(WEIGHTS) if pattern is None else pattern
    data = DATA.labels, DATA.groups
    return anatomy.response_curve(forward, DATA.images, *data, pattern, sizes, on_one(batch), KEY, norm)


def test_the_response_starts_at_the_clean_rates_and_follows_the_pattern():
    found = response()
    shown = {"pattern": -0.2 * np.sign(WEIGHTS), "noise": np.asarray(fixed.sign_noise(KEY, toys.SHAPE, 0.2))}
    for (name, delta), (k, size) in itertools.product(shown.items(), enumerate((0, 0.5, 1))):
        says = margins(LINEAR, DATA.images, on_one(8), np.float32(size) * delta.astype(np.float32)) > 0
        missed, accused = np.mean(~says[DATA.labels == 1]), np.mean(says[DATA.labels == 0])
        assert found[name]["fake_called_real"][k]["value"] == pytest.approx(missed)
        assert found[name]["real_called_fake"][k]["value"] == pytest.approx(accused)
    for way in anatomy.DIRECTIONS:
        rates = found["pattern"][way]
        assert found["noise"][way][0] == rates[0]
        assert 0 < rates[0]["value"] < 1 and rates[0]["low"] < rates[0]["value"] < rates[0]["high"]
        assert {row["n"] for row in rates} == {10}
    assert [found["pattern"][way][2]["value"] for way in anatomy.DIRECTIONS] == [1, 0]
    assert found["bounds"] == pytest.approx([0, 0.1, 0.2]) and found["sizes"] == [0, 0.5, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_noise_is_as_large_as_the_pattern_in_the_norm_asked_for(norm, monkeypatch):
    sparse = np.zeros(toys.SHAPE, np.float32)
    sparse[0, 0] = 0.6
    seen = []
    monkeypatch.setattr(anatomy, "margins", lambda f, x, c, v: seen.append(v) or np.ones(len(x)))
    found = response(pattern=sparse, sizes=(0.5,), norm=norm)
    length = {"linf": lambda v: np.abs(v).max(), "l2": np.linalg.norm}[norm]
    assert [length(v) for v in seen] == pytest.approx([found["bounds"][0]] * 2)
    assert len(np.unique(np.abs(seen[1]))) == 1 and len(np.unique(seen[1])) == 2


def test_nothing_depends_on_batches_or_padding():
    forward, data = toys.forward(), (DATA.images, DATA.labels)
    patterns = {"v": np.asarray(fixed.sign_noise(KEY, toys.SHAPE, 0.1))}
    for measure in (anatomy.push, anatomy.firing_change):
        one, other = (measure(forward, *data, patterns, on_one(batch)) for batch in (20, 8))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    one, other = (anatomy.jacobian_spectrum(forward, DATA.images, 3, on_one(batch), KEY) for batch in (20, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one._asdict(), other._asdict())
    assert len(one.values) == 20
    assert response(batch=20) == response(batch=8)


def test_one_compilation_for_all_patterns_sizes_and_weights():
    traces = []

    def counted(variables, images):
        traces.append(1)
        return toys.LINEAR.apply(variables, images)

    for seed in range(2):
        forward = jax.tree_util.Partial(counted, toys.LINEAR.init(jax.random.key(seed)))
        patterns = {str(k): np.full(toys.SHAPE, k / 255, np.float32) for k in range(3)}
        anatomy.push(forward, DATA.images, DATA.labels, patterns, on_one(8))
        response(forward)
        assert len(traces) == 1
    for seed in range(2):
        forward = jax.tree_util.Partial(counted, toys.LINEAR.init(jax.random.key(seed)))
        anatomy.jacobian_spectrum(forward, DATA.images, 1, on_one(8), KEY)
    assert len(traces) == 2


def test_what_cannot_be_measured_is_said():
    with pytest.raises(InputError, match="no real image"):
        anatomy.push(LINEAR, DATA.images[1::2], DATA.labels[1::2], {}, on_one(8))
    flat = jax.tree_util.Partial(toys.LINEAR.apply, {"params": {"w": 0 * WEIGHTS, "b": jnp.float32(0)}})
    with pytest.raises(InputError, match="gradient"):
        anatomy.jacobian_spectrum(flat, DATA.images, 1, on_one(8), KEY)


def test_figures_show_what_json_gives_back(tmp_path):
    forward = toys.forward()
    gradients = anatomy.jacobian_spectrum(forward, DATA.images, 6, on_one(8), KEY)
    patterns = {
        "noise": np.asarray(fixed.sign_noise(KEY, toys.SHAPE, 0.1)),
        "uap": 0.1 * np.sign(gradients.vectors[0]),
        "nothing": np.zeros(toys.SHAPE, np.float32),
    }
    seen = {name: patterns[name] for name in ("noise", "uap")}
    aligned = anatomy.alignment(gradients.vectors, patterns, KEY, draws=10)
    found = {
        "push": anatomy.push(forward, DATA.images, DATA.labels, patterns, on_one(8)),
        "firing": anatomy.firing_change(forward, DATA.images, DATA.labels, patterns, on_one(8)),
        "jacobian": {
            "values": gradients.values.tolist(),
            "random": gradients.random.tolist(),
            "alignment": aligned,
        },
        "spectra": {name: anatomy.spectrum(pattern) for name, pattern in seen.items()},
        "response": response(forward, patterns["uap"], (0, 0.5, 1, 2)),
    }
    found = json.loads(json.dumps(found, allow_nan=False))
    paths = anatomy_figures.save_all(tmp_path, "toy", found)
    assert [path.name for path in paths] == [f"anatomy-{name}.png" for name in found]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        assert 0.01 < np.mean(np.any(pixels < 250, axis=1)) < 0.5, path.name
        for kind in ("noise", "uap"):
            colour = np.round(255 * np.array(to_rgb(COLOURS[kind])))
            assert np.sum(np.all(pixels == colour, axis=1)) > 50, (path.name, kind)
    assert anatomy_figures.save_all(tmp_path, "toy", {"push": found["push"]}) == paths[:1]


def test_each_pattern_has_a_look_of_its_own():
    looks = anatomy_figures._looks(["clean", "noise", "uap-to-real", "uap-to-fake", "wave", "other"])
    assert len(set(looks.values())) == len(looks)
    assert [looks[name][0] for name in ("clean", "noise", "uap-to-real")] == [
        COLOURS[k] for k in ("clean", "noise", "uap")
    ]
