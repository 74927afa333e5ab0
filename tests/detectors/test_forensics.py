"""The image-forensics networks: numbers, the constraint, grey and colour, and a second statement in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from ffjax.detectors import forensics, layers
from ffjax.detectors.forensics import bayar, bondi, constrained, laplacian
from ffjax.errors import InputError

SMALL = 64
NETWORKS = {"laplacian": laplacian, "bondi": bondi, "bayar": bayar}
LAYERS = {
    "laplacian": ("conv1", "conv2", "conv3", "conv4", "conv5"),
    "bondi": ("conv1", "conv2", "conv3", "conv4"),
    "bayar": ("constrained", "conv2", "conv3", "conv4", "conv5"),
}
PARAMETERS = {  # (name, size, channels): summed by hand from the layers' shapes
    ("laplacian", 64, 1): 245_362,
    ("laplacian", 256, 3): 245_650,
    ("bondi", 64, 3): 338_578,  # published with 18 classes: 338,578 + 16 x 129
    ("bondi", 64, 1): 337_554,
    ("bayar", 256, 1): 1_574_637,
    ("bayar", 64, 3): 345_987,
}
apply = jax.jit(lambda forward, images: forward(images))
gradient = jax.jit(jax.grad(lambda x, forward: jnp.sum(forward(x).logits @ jnp.array([-1.0, 1.0]))))


def drawn(detector, seed=0):
    """Variables of the right shapes, running statistics too, without the seconds that compiling init takes."""
    shapes, rng = jax.eval_shape(detector.init, jax.random.key(0)), np.random.default_rng(seed)

    def leaf(path, shape):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.1, 0.1)
        return jnp.asarray(rng.uniform(low, high, shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def images_of(n, channels, size=SMALL):
    return jax.random.uniform(jax.random.key(n), (n, size, size, channels))


@pytest.fixture(scope="module", params=[(name, channels) for name in NETWORKS for channels in (1, 3)], ids=str)
def network(request):
    name, channels = request.param
    detector = NETWORKS[name](SMALL, channels=channels)
    return name, channels, detector, Partial(detector.apply, drawn(detector))


@pytest.mark.parametrize(("name", "size", "channels"), PARAMETERS)
def test_parameter_counts(name, size, channels):
    variables = jax.eval_shape(NETWORKS[name](size, channels=channels).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name, size, channels]


@pytest.mark.slow
def test_a_network_keeps_the_promises_of_all(network):
    name, channels, detector, forward = network
    images = images_of(12, channels)
    outputs, order = apply(forward, images), np.random.default_rng(0).permutation(12)
    assert detector.shape == (SMALL, SMALL, channels) and outputs.mask is None
    assert outputs.logits.shape == (12, 2) and tuple(outputs.acts) == LAYERS[name] == layers(detector)
    assert all(act.shape[0] == 12 and jnp.isfinite(act).all() for act in outputs.acts.values())
    np.testing.assert_array_equal(apply(forward, images[order]).logits, outputs.logits[order])
    np.testing.assert_array_equal(apply(forward, images[:8]).logits, outputs.logits[:8])
    grads = gradient(images, forward)
    np.testing.assert_array_equal(gradient(images[order], forward), grads[order])
    assert jnp.isfinite(grads).all() and (jnp.abs(grads).max(axis=(1, 2, 3)) > 0).all()


def test_flat_and_saturated_images_stay_finite(network):
    _, channels, _, forward = network
    flat = [jnp.full((1, SMALL, SMALL, channels), grey) for grey in (0.0, 0.5, 1.0)]
    images = jnp.concatenate([*flat, jnp.round(images_of(9, channels))])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(apply(forward, images)))
    assert jnp.isfinite(gradient(images, forward)).all()


def test_flat_images_say_nothing_to_the_high_pass_fronts():
    flat = jnp.full((1, SMALL, SMALL, 3), 0.7)
    np.testing.assert_allclose(forensics.laplacian_of(flat), 0, atol=1e-6)
    detector = bayar(SMALL)
    acts = apply(Partial(detector.apply, drawn(detector)), flat).acts
    np.testing.assert_allclose(acts["constrained"], 0, atol=1e-5)


def test_the_laplacian_is_of_each_channel():
    spike = jnp.zeros((1, 5, 5, 2)).at[0, 2, 2, 1].set(1)
    found = forensics.laplacian_of(spike)
    np.testing.assert_array_equal(found[0, :, :, 0], 0)
    np.testing.assert_array_equal(found[0, :, :, 1], [[0, 1, 0], [1, -4, 1], [0, 1, 0]])


def assert_constrained(kernel):
    np.testing.assert_array_equal(kernel[2, 2], -1)
    np.testing.assert_allclose(kernel.sum(axis=(0, 1)), 0, atol=1e-5)  # -1, and 1 from the others


def test_the_constraint_is_a_projection():
    kernel = jax.random.normal(jax.random.key(0), (5, 5, 3, 4))
    once = constrained(kernel)
    assert_constrained(once)
    np.testing.assert_allclose(constrained(once), once, atol=1e-6)
    moved = np.asarray(once - kernel).reshape(25, 3, 4)
    around = np.delete(moved, 12, axis=0)
    np.testing.assert_allclose(around, np.broadcast_to(around[:1], around.shape), atol=1e-5)


@pytest.mark.slow
def test_the_constraint_holds_at_every_step_of_training():
    detector, optimiser = bayar(SMALL, channels=1), optax.adam(0.1)
    variables, images, labels = drawn(detector), images_of(8, 1), jnp.arange(8) % 2

    def loss(params, variables):
        outputs, _ = detector.train(variables | {"params": params}, images, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean()

    step, state = jax.jit(jax.grad(loss)), optimiser.init(variables["params"])
    for _ in range(2):
        updates, state = optimiser.update(step(variables["params"], variables), state)
        before, variables = variables, variables | {"params": optax.apply_updates(variables["params"], updates)}
        kernel = variables["params"]["constrained"]["kernel"]
        assert jnp.abs(kernel - before["params"]["constrained"]["kernel"]).max() > 0.01
        basis = jnp.zeros((1, SMALL, SMALL, 1)).at[0, 30, 30, 0].set(1)  # its response is the kernel, turned round
        acts = apply(Partial(detector.apply, variables), basis).acts
        assert_constrained(acts["constrained"][0, 26:31, 26:31][::-1, ::-1])


@pytest.mark.parametrize("side", [9, 10])
def test_overlapping_pools_are_the_textbook_ones(side):
    pads = [(0, 0), (0, 1 - side % 2), (0, 1 - side % 2), (0, 0)]

    def windows(x, start, join):
        return jax.lax.reduce_window(x, start, join, (1, 3, 3, 1), (1, 2, 2, 1), pads)

    @jax.jit
    def everything(x, weights):
        largest, theirs = lambda x: forensics._max_pool(x, 3), lambda x: windows(x, -jnp.inf, jax.lax.max)
        grads = [jax.grad(lambda x, f=f: jnp.vdot(weights, f(x)))(x) for f in (largest, theirs)]
        means = windows(x, 0.0, jax.lax.add) / windows(jnp.ones_like(x), 0.0, jax.lax.add)
        return (largest(x), theirs(x)), grads, (forensics._mean_pool(x, 3), means)

    rng = np.random.default_rng(side)
    x = np.round(rng.normal(size=(2, side, side, 3)) * 2) / 2  # ties
    weights = rng.normal(size=(2, side // 2, side // 2, 3))
    maxima, grads, means = everything(jnp.float32(x), jnp.float32(weights))
    np.testing.assert_array_equal(*maxima)
    np.testing.assert_allclose(*grads, atol=1e-6)
    np.testing.assert_allclose(*means, atol=1e-6)


def test_training_updates_statistics_and_dropout_follows_the_key():
    detector = laplacian(SMALL, 0.5, channels=1)
    variables, train = drawn(detector), jax.jit(detector.train)
    (first, updated), (again, _), (other, _) = (train(variables, images_of(8, 1), jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not jnp.array_equal(first.logits, other.logits)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    assert not jnp.array_equal(updated["batch_stats"]["bn1"]["mean"], variables["batch_stats"]["bn1"]["mean"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: laplacian(63), "laplacian: image size must be at least 64, got 63"),
        (lambda: bondi(0), "bondi: image size"),
        (lambda: bayar(64, channels=2), r"bayar: channels must be 1 \(grey\) or 3"),
        (lambda: laplacian(widths=(8, 8)), "five widths"),
        (lambda: laplacian(kernels=(3, 3, 3, 3, 4)), "odd kernels"),
        (lambda: laplacian(norm="layer"), "norm 'layer' is unknown; known: batch, group, none"),
        (lambda: bondi(64).apply(drawn(bondi(64)), images_of(1, 1)), "given to a detector"),
    ],
)
def test_what_cannot_be_built_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_options_change_the_network():
    detector = laplacian(SMALL, widths=(4, 4, 4, 4, 8), kernels=(5, 3, 3, 3, 1), norm="none")
    variables = jax.eval_shape(detector.init, jax.random.key(0))
    assert set(variables) == {"params"} and variables["params"]["conv1"]["kernel"].shape == (5, 5, 3, 4)
    assert "bias" in variables["params"]["conv1"]


class Again:
    """The three networks stated a second time, from the papers' words, in PyTorch's layers."""

    def __init__(self, torch, variables):
        self.torch, self.f = torch, torch.nn.functional
        self.params, self.stats = variables["params"], variables.get("batch_stats", {})

    def tensor(self, leaf, *order):
        return self.torch.tensor(np.asarray(leaf).transpose(order) if order else np.asarray(leaf))

    def conv(self, x, name, **kwargs):
        layer = self.params[name]
        bias = self.tensor(layer["bias"]) if "bias" in layer else None
        return self.f.conv2d(x, self.tensor(layer["kernel"], 3, 2, 0, 1), bias, **kwargs)

    def dense(self, x, name):
        return self.f.linear(x, self.tensor(self.params[name]["kernel"], 1, 0), self.tensor(self.params[name]["bias"]))

    def norm(self, x, name):
        (mean, var), (scale, bias) = (
            [self.tensor(d[k]) for k in keys]
            for d, keys in ((self.stats[name], ("mean", "var")), (self.params[name], ("scale", "bias")))
        )
        return self.f.batch_norm(x, mean, var, scale, bias, eps=1e-5)

    def flat(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)  # our rows, columns, channels

    def laplacian(self, x):
        front = self.torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(x.shape[1], 1, 3, 3)
        x, acts = self.f.conv2d(x, front, groups=x.shape[1]), []
        for i in range(1, 6):
            acts.append(self.f.relu(self.norm(self.conv(x, f"conv{i}", padding=1), f"bn{i}")))
            x = self.f.avg_pool2d(acts[-1], 2) if i < 5 else acts[-1]
        return self.dense(x.mean((2, 3)), "dense"), acts

    def bondi(self, x):
        x, acts = (255 * x - 127.5) / 80, []
        for i in range(1, 5):
            acts.append(self.conv(x, f"conv{i}"))
            x = self.f.max_pool2d(acts[-1], 2, ceil_mode=True) if i < 4 else acts[-1]
        return self.dense(self.f.relu(self.dense(self.flat(x), "dense1")), "dense"), acts

    def bayar(self, x):
        kernel = np.array(self.params["constrained"]["kernel"])
        for i, o in np.ndindex(kernel.shape[2:]):
            part = kernel[:, :, i, o]
            part += (1 - (part.sum() - part[2, 2])) / 24
            part[2, 2] = -1
        x = self.f.conv2d(x, self.tensor(kernel, 3, 2, 0, 1))
        acts = [x]
        for i, how in zip(range(2, 6), ({"stride": 2, "padding": 3}, {"padding": 2}, {"padding": 2}, {}), strict=True):
            acts.append(self.torch.tanh(self.norm(self.conv(x, f"conv{i}", **how), f"bn{i}")))
            pool = self.f.max_pool2d if i < 5 else self.f.avg_pool2d
            x = pool(acts[-1], 3, 2, ceil_mode=True)
        x = self.flat(x)
        for name in ("dense1", "dense2"):
            x = self.torch.tanh(self.dense(x, name))
        return self.dense(x, "dense"), acts


@pytest.mark.parametrize("size", [64, 81])
def test_a_second_statement_agrees_layer_by_layer(network, size):
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    name, channels, _, _ = network
    detector = NETWORKS[name](size, channels=channels)
    variables, images = drawn(detector), images_of(3, channels, size)
    ours = jax.jit(detector.apply)(variables, images)
    with torch.no_grad():
        logits, acts = getattr(Again(torch, variables), name)(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    for (layer, act), other in zip(ours.acts.items(), acts, strict=True):
        other = other.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(act, other, atol=1e-4 * max(1e-3, np.abs(other).max()), rtol=0, err_msg=layer)
    np.testing.assert_allclose(ours.logits, logits.numpy(), atol=1e-4 * np.abs(logits.numpy()).max(), rtol=0)
