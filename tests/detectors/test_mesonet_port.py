"""The PyTorch port of MesoNet against a second statement of it in PyTorch, from its keys alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ffjax.detectors import LAYOUTS, all_options, build, pytorch
from ffjax.errors import InputError

SIZE = 64
NAMES = ("meso4_port", "mesoinception4_port")
apply = jax.jit(lambda forward, images: forward(images))


def published(name, size=SIZE, seed=0):
    """Random numbers under the port's keys: {name: values}, its shapes written out here once more."""
    rng = np.random.default_rng(seed)
    inception = {
        f"Incption{i}_conv{end}": (out, inner, window, window)
        for i, (first, channels) in enumerate(((1, 3), (2, 11)), start=1)
        for end, out, inner, window in (
            *(("1", first, channels, 1), ("2_1", 4, channels, 1), ("2_2", 4, 4, 3), ("3_1", 4, channels, 1)),
            *(("3_2", 4, 4, 3), ("4_1", 2, channels, 1), ("4_2", 2, 2, 3)),
        )
    }
    if name == "meso4_port":
        convs = {"conv1": (8, 3, 3, 3), "conv2": (8, 8, 5, 5), "conv3": (16, 8, 5, 5), "conv4": (16, 16, 5, 5)}
        norms = {"bn1": 8, "bn2": 16}
    else:
        convs = inception | {"conv1": (16, 12, 5, 5), "conv2": (16, 16, 5, 5)}
        norms = {"Incption1_bn": 11, "Incption2_bn": 12, "bn1": 16}
    shapes = {f"{key}.weight": shape for key, shape in convs.items()}
    for key, width in norms.items():
        shapes |= {f"{key}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"fc1.weight": (16, 16 * (size // 32) ** 2), "fc1.bias": (16,), "fc2.weight": (2, 16), "fc2.bias": (2,)}
    return {key: drawn(rng, key, shape) for key, shape in shapes.items()}


def drawn(rng, key, shape):
    spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3
    low = 0.5 if key.endswith("running_var") else -spread
    return rng.uniform(low, 1.5 if low > 0 else spread, shape).astype(np.float32)


def stated_again(torch, state, images, name, train=False):
    """(logits, activations as NCHW) in plain torch; with train, batch statistics, and state's own are updated."""
    F, acts = torch.nn.functional, []

    def conv(x, key, dilation=1):
        weight = state[f"{key}.weight"]
        return F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)

    def norm_and_pool(x, key, pool):
        acts.append(x)
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        x = F.batch_norm(x, mean, var, state[f"{key}.weight"], state[f"{key}.bias"], train, 0.1, 1e-5)
        return F.max_pool2d(x, pool)

    x = images * 2 - 1
    if name == "meso4_port":
        for i, (norm, pool) in enumerate((("bn1", 2), ("bn1", 2), ("bn2", 2), ("bn2", 4)), start=1):
            x = norm_and_pool(torch.relu(conv(x, f"conv{i}")), norm, pool)
    else:
        for i in (1, 2):
            parts = [conv(x, f"Incption{i}_conv1")]
            for k in (2, 3, 4):
                parts.append(conv(conv(x, f"Incption{i}_conv{k}_1"), f"Incption{i}_conv{k}_2", k - 1))
            x = norm_and_pool(torch.cat(parts, 1), f"Incption{i}_bn", 2)
        for i, pool in ((1, 2), (2, 4)):
            x = norm_and_pool(torch.relu(conv(x, f"conv{i}")), "bn1", pool)
    x = F.leaky_relu(F.linear(x.flatten(1), state["fc1.weight"], state["fc1.bias"]), 0.1)
    return F.linear(x, state["fc2.weight"], state["fc2.bias"]), acts


def forward(name, state, classes="real_first", **options):
    detector = build(name, SIZE, **options)
    layout = LAYOUTS[name](classes=classes, **all_options(name, options))
    return detector, pytorch.convert(state, layout, jax.eval_shape(detector.init, jax.random.key(0)))


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the `torch` extra is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("shared_norm", ["fixed", "as_released"])
@pytest.mark.parametrize("name", NAMES)
def test_every_activation_logit_and_gradient_is_the_port_s(torch, name, shared_norm):
    """Both settings, because published numbers mean the same in both; the largest differences in float32."""
    state, images = published(name), np.random.default_rng(1).uniform(0, 1, (8, SIZE, SIZE, 3)).astype(np.float32)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    logits, acts = stated_again(torch, {k: torch.from_numpy(v) for k, v in state.items()}, given, name)
    (logits[:, 1] - logits[:, 0]).sum().backward()
    detector, variables = forward(name, state, shared_norm=shared_norm)
    ours = apply(Partial(detector.apply, variables), images)
    for told, expected in ((ours.logits, logits), *zip(ours.acts.values(), acts, strict=True)):
        expected = expected.detach().numpy()
        expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected
        np.testing.assert_allclose(told, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    slope = jax.jit(jax.grad(lambda x, v: jnp.sum(detector.apply(v, x).logits @ jnp.array([-1.0, 1.0]))))
    expected = given.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(slope(images, variables), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_as_released_gathers_both_places_in_one_norm(torch, name):
    state, images = published(name), np.random.default_rng(1).uniform(0, 1, (8, SIZE, SIZE, 3)).astype(np.float32)
    kept = {key: torch.from_numpy(value.copy()) for key, value in state.items()}
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    logits, _ = stated_again(torch, kept, given, name, train=True)
    detector, variables = forward(name, state, shared_norm="as_released")
    still = build(name, SIZE, 0.0, shared_norm="as_released")
    outputs, updated = jax.jit(still.train)(variables, images, jax.random.key(0))
    np.testing.assert_allclose(outputs.logits, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    norms = {"bn1": "bn1", "bn3": "bn2"} if name == "meso4_port" else {"bn1": "Incption1_bn", "bn3": "bn1"}
    for ours, theirs in norms.items():
        stats = updated["batch_stats"][ours]
        np.testing.assert_allclose(stats["mean"], kept[f"{theirs}.running_mean"], rtol=1e-4, atol=1e-5)
        # PyTorch's running variance is n / (n - 1) times ours, and n is at least 8 x 8 x 8
        np.testing.assert_allclose(stats["var"], kept[f"{theirs}.running_var"], rtol=3e-3)
    _, apart = jax.jit(build(name, SIZE, 0.0).train)(forward(name, state)[1], images, jax.random.key(0))
    last = apart["batch_stats"]["bn3"]["mean"], apart["batch_stats"]["bn4"]["mean"]
    assert not np.allclose(*last)
    assert jax.tree.structure(updated) == jax.tree.structure(variables) and detector.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_in_the_other_order_change_places(name):
    state, images = published(name), np.random.default_rng(2).uniform(0, 1, (8, SIZE, SIZE, 3)).astype(np.float32)
    (detector, variables), (_, other) = forward(name, state), forward(name, state, "fake_first")
    logits = apply(Partial(detector.apply, variables), images).logits
    np.testing.assert_array_equal(apply(Partial(detector.apply, other), images).logits, logits[:, ::-1])


@pytest.mark.parametrize("name", NAMES)
def test_deepfakebench_s_prefix_is_taken_off(name):
    state = published(name)
    prefixed = {f"backbone.{key}": value for key, value in state.items()}
    jax.tree.map(np.testing.assert_array_equal, forward(name, prefixed)[1], forward(name, state)[1])


@pytest.mark.parametrize(("name", "fixed", "released"), [(NAMES[0], 27_946, 27_898), (NAMES[1], 28_557, 28_525)])
def test_parameter_counts(name, fixed, released):
    for shared_norm, count in (("fixed", fixed), ("as_released", released)):
        detector = build(name, 256, shared_norm=shared_norm)
        params = jax.eval_shape(detector.init, jax.random.key(0))["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    running = ("running_mean", "running_var")
    there = sum(value.size for key, value in published(name, 256).items() if not key.endswith(running))
    assert there == released


@pytest.mark.parametrize("name", NAMES)
def test_values_it_does_not_take_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=f"{name}: shared_norm 'both' is unknown; known: fixed, as_released"):
        build(name, SIZE, shared_norm="both")
    with pytest.raises(InputError, match=f"{name}: image size must be a positive multiple of 32, got 40"):
        build(name, 40)
