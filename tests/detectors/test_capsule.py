"""Capsule-Forensics: the six published heads, a PyTorch statement of the whole network, its quirks and its edges."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.detectors import capsule
from ffjax.detectors.capsule import capsule_v1, capsule_v2, head, torch_layout_v1, torch_layout_v2
from ffjax.detectors.layers import MEAN_AND_SPREAD
from ffjax.detectors.pytorch import convert, read_state
from ffjax.errors import InputError

SIZE = 24
HEADS = ("cgvsphoto/capsule_97", "deepfakes/capsule_95", "replay-attack/capsule_2")
HEADS += ("face2face/c0/capsule_29", "face2face/c23/capsule_35", "face2face/c40/capsule_54")
LAYOUTS = {capsule_v1: torch_layout_v1, capsule_v2: torch_layout_v2}


said = jax.jit(head)


def template(builder):
    return jax.eval_shape(builder().init, jax.random.key(0))


def drawn(builder, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name, wide = path[-1].key, len(shape.shape) > 1
        if name in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), shape.dtype)
        spread = 1.0 if name == "route_weights" else (2 / np.prod(shape.shape[:-1])) ** 0.5 if wide else 0.1
        return jnp.asarray(spread * rng.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, template(builder))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (9, SIZE, SIZE, 3))


def trunk_state(seed=0):
    """The trunk's numbers under torchvision's names, and small stand-ins for what its file holds beyond them."""
    rng, state = np.random.default_rng(seed), {}
    kernels = template(capsule_v1)["params"]["trunk"]
    for name, place in capsule.TRUNK.items():
        shape = kernels[name]["kernel"].shape[::-1]
        spread = (2 / np.prod(shape[1:])) ** 0.5
        state[f"features.{place}.weight"] = (spread * rng.normal(size=shape)).astype(np.float32)
        state[f"features.{place}.bias"] = (0.1 * rng.normal(size=shape[0])).astype(np.float32)
    beyond = ("features.19.weight", "features.34.bias", "classifier.0.weight", "classifier.6.bias")
    return state | dict.fromkeys(beyond, np.zeros(1, np.float32))


def published(shared, name):
    pytest.importorskip("torch", reason="published .pt files need torch")
    return read_state(shared / "capsule-forensics-v1" / "checkpoints" / f"{name}.pt")


@pytest.mark.shared
@pytest.mark.parametrize("name", HEADS)
def test_the_published_heads_on_given_features(shared, name):
    folder = shared / "capsule-forensics-v1"
    told = json.loads((folder / "golden.json").read_text())["checkpoints"][f"checkpoints/{name}.pt"]
    features = np.load(folder / "golden_features.npz")["features"].astype(np.float32).transpose(0, 2, 3, 1)
    variables = convert(published(shared, name) | trunk_state(), torch_layout_v1(), template(capsule_v1))
    found = said(variables, jnp.asarray(features))
    np.testing.assert_allclose(found.capsules.transpose(0, 2, 1), told["fea_ext_squashed"], atol=1e-3, rtol=0)
    opinions = jax.nn.softmax(found.outputs, axis=2)[..., ::-1]  # theirs: fake, real
    np.testing.assert_allclose(opinions, told["classes"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(jnp.exp(found.logits)[:, ::-1], told["class_mean"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(jax.nn.softmax(found.logits)[:, ::-1], told["class_mean"], atol=1e-4, rtol=0)


@pytest.mark.shared
def test_files_that_do_not_make_a_network_are_refused(shared):
    state, layout, want = published(shared, HEADS[0]), torch_layout_v1(), template(capsule_v1)
    with pytest.raises(InputError, match=r"missing features\.0\.bias"):
        convert(state, layout, want)  # no trunk
    lost = {key: value for key, value in state.items() if key != "fea_ext.ext_2.3.weight"}
    with pytest.raises(InputError, match=r"missing fea_ext\.ext_2\.3\.weight"):
        convert(lost | trunk_state(), layout, want)
    fourth = {key.replace("ext_3", "ext_4"): value for key, value in state.items() if "ext_3" in key}
    with pytest.raises(InputError, match=r"unexpected fea_ext\.ext_4\.0\.weight"):
        convert(state | fourth | trunk_state(), layout, want)
    with pytest.raises(InputError, match="missing"):
        convert(state | trunk_state(), torch_layout_v2(), template(capsule_v2))
    with pytest.raises(InputError, match="'fake_last' is unknown; known: real_first, fake_first"):
        torch_layout_v1("fake_last")


@pytest.mark.parametrize(("builder", "trainable"), [(capsule_v1, 471_321), (capsule_v2, 1_571_070)])
def test_parameter_counts(builder, trainable):
    params = template(builder)["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert count == {"trunk": 2_325_568, "capsules": trainable}


def restated(torch, branches, first_is_fake):
    """Both networks in PyTorch, under the authors' names, from the papers' account."""
    nn = torch.nn

    class Statistics(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((2, 3)), x.std((2, 3), unbiased=True)], 1)

    def branch():
        return nn.Sequential(
            *(nn.Conv2d(256, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Conv2d(64, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Statistics()),
            *(nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.Conv1d(8, 1, 3, 1, 1), nn.BatchNorm1d(1)),
        )

    def squash(x, dim):
        norm = x.norm(dim=dim, keepdim=True)
        return norm**2 / (1 + norm**2) * x / norm

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            stages, width = [], 3
            for wider, depth in ((64, 2), (128, 2), (256, 4)):
                for _ in range(depth):
                    stages, width = [*stages, nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()], wider
                stages.append(nn.MaxPool2d(2))
            self.features = nn.Sequential(*stages)
            for name in branches:
                *path, last = name.split(".")
                parent = self
                for part in path:
                    if part not in dict(parent.named_children()):
                        parent.add_module(part, nn.Module())
                    parent = parent.get_submodule(part)
                parent.add_module(last, branch())
            self.routing_stats = nn.Module()
            self.routing_stats.route_weights = nn.Parameter(torch.randn(2, len(branches), 4, 8))

        def forward(self, images):
            acts = {}
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_AND_SPREAD["imagenet"])
            x, names = (images - mean) / std, {place + 1: name for name, place in capsule.TRUNK.items()}
            for place, module in enumerate(self.features):
                x = module(x)
                if place in names:
                    acts[names[place]] = x
            inside = [self.get_submodule(name) for name in branches]
            acts["capsules1"] = torch.cat([b[:3](x) for b in inside], 1)
            acts["capsules2"] = torch.cat([b[:6](x) for b in inside], 1)
            u = squash(torch.cat([b(x) for b in inside], 1), 1)
            votes = torch.einsum("cnij,bnj->bcni", self.routing_stats.route_weights, u)
            outputs = squash(votes.mean(2, keepdim=True), 3)
            share = (votes * outputs).softmax(2)
            outputs = squash((share * votes).sum(2), 2)
            return acts, u, outputs.softmax(1).mean(2)[:, [1, 0] if first_is_fake else [0, 1]]

    return Network().eval()


@pytest.mark.slow
@pytest.mark.parametrize("builder", [capsule_v1, capsule_v2])
def test_every_activation_is_that_of_a_second_statement_in_pytorch(builder, images):
    torch = pytest.importorskip("torch", reason="compared with PyTorch")
    torch.manual_seed(0)
    names = {capsule_v1: [f"fea_ext.ext_{i}" for i in (1, 2, 3)]}
    names[capsule_v2] = [f"fea_ext.capsules.{i}" for i in range(10)]
    theirs = restated(torch, names[builder], builder is capsule_v1)
    for key, value in theirs.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
        elif key.endswith("weight") and value.ndim > 2:
            value.mul_(2.4)  # keeps the signal alive through eleven layers
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    renamed = {key.replace("features.", "vgg_1."): value for key, value in state.items()}
    variables = convert(state, LAYOUTS[builder](), template(builder))
    again = convert(renamed, LAYOUTS[builder](), template(builder))
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    ours = jax.jit(builder(SIZE).apply)(variables, images)
    with torch.no_grad():
        acts, primary, probability = theirs(torch.tensor(np.asarray(images).transpose(0, 3, 1, 2)))
    assert tuple(ours.acts) == tuple(acts)
    for name, told in acts.items():
        told = told.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours.acts[name], told, atol=1e-4 * np.abs(told).max(), rtol=0, err_msg=name)
    found = said(variables, capsule.trunk_output(variables, images))
    np.testing.assert_allclose(found.capsules, primary.numpy(), atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(ours.logits), probability.numpy(), atol=1e-5)
    assert np.ptp(probability.numpy()[:, 1]) > 1e-3  # the images are told apart, a hundred times more finely


@pytest.fixture(scope="module")
def v1():
    return drawn(capsule_v1)


def test_the_head_is_what_apply_runs(v1, images):
    whole = jax.jit(capsule_v1(SIZE).apply)(v1, images)
    part = jax.jit(lambda v, x: head(v, capsule.trunk_output(v, x)))(v1, images)
    np.testing.assert_allclose(part.logits, whole.logits, atol=1e-5)
    assert part.capsules.shape == (9, 3, 8) and part.outputs.shape == (9, 4, 2)
    assert jnp.linalg.norm(part.capsules, axis=1).max() < 1 and jnp.linalg.norm(part.outputs, axis=1).max() < 1


def test_logits_never_leave_the_range_that_is_told(v1):
    features = 1e6 * jax.random.uniform(jax.random.key(0), (8, 3, 3, 256)) ** 4
    logits = said(v1, features).logits
    assert jnp.isfinite(logits).all() and jnp.exp(logits).min() > 0.119 and jnp.exp(logits).max() < 0.881


def margin(apply):
    return jax.jit(jax.grad(lambda x, v: jnp.sum(apply(v, x).logits @ jnp.array([-1.0, 1.0]))))


@pytest.mark.slow
def test_as_released_no_gradient_reaches_the_image(v1, images):
    flat = [jnp.full((1, SIZE, SIZE, 3), grey) for grey in (0.0, 0.5, 1.0)]
    fixed, released = (capsule_v1(SIZE, features=value).apply for value in ("fixed", "as_released"))
    images = jnp.concatenate([images, *flat])
    grads = margin(fixed)(images, v1)
    assert jnp.isfinite(grads).all() and (jnp.abs(grads).max((1, 2, 3)) > 0)[:9].all()
    assert not margin(released)(images, v1).any()
    np.testing.assert_array_equal(jax.jit(fixed)(v1, images).logits, jax.jit(released)(v1, images).logits)


def test_nothing_to_see_is_finite_and_so_are_its_gradients(v1):
    """Constant maps have no deviation, and dead capsules no norm; the released code returns NaN for both."""
    still = jax.tree.map(jnp.zeros_like, v1) | {"batch_stats": jax.tree.map(jnp.ones_like, v1["batch_stats"])}
    gradient = jax.jit(jax.value_and_grad(lambda x, v: head(v, x).logits[:, 1].sum()))
    for features in (jnp.zeros((8, 3, 3, 256)), jnp.full((8, 3, 3, 256), 7.0)):
        for variables in (v1, still):
            assert all(jnp.isfinite(leaf).all() for leaf in gradient(features, variables))
    np.testing.assert_allclose(said(still, jnp.zeros((8, 3, 3, 256))).logits, np.log(0.5), rtol=1e-6)


def test_the_statistics_are_the_mean_and_the_unbiased_deviation():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5 * 16)).astype(np.float32)
    told = np.stack([x.mean((1, 2)), x.std((1, 2), ddof=1)], -1).reshape(2, 5, 16, 2)
    found = capsule._statistics(jnp.asarray(x), 5).reshape(2, 16, 5, 2).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found, told, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["frozen", "trained"])
def test_the_trunk_is_trained_only_where_asked(v1, images, trunk):
    detector = capsule_v1(SIZE, trunk=trunk)

    @functools.partial(jax.jit, static_argnums=0)
    def slope(part, variables, images):
        def logits(params):
            varied = {**variables, "params": variables["params"] | {part: params}}
            return detector.train(varied, images, jax.random.key(0))[0].logits

        start = variables["params"][part]
        return jax.jvp(logits, (start,), (jax.tree.map(jnp.ones_like, start),))[1]

    assert slope("trunk", v1, images).any() == (trunk == "trained")
    assert slope("capsules", v1, images).any()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"noise": 0.01}, {"dropout": 0.05}])
def test_training_draws_what_it_is_told_to(v1, images, options):
    train = jax.jit(capsule_v1(SIZE, **options).train)
    (one, updated), (again, _), (other, _) = (train(v1, images, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.logits, again.logits)
    assert jnp.array_equal(one.logits, other.logits) == (not options)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], v1["params"])
    for before, after in zip(*map(jax.tree.leaves, (v1["batch_stats"], updated["batch_stats"])), strict=True):
        assert jnp.isfinite(after).all() and not jnp.array_equal(before, after)


def test_convolutions_group_by_group_are_the_compilers_own():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 6, 12), (3, 3, 4, 6)))
    rest = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 3}
    own = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **rest)
    found = capsule._group_by_group(x, kernel, (1, 1), ((1, 1), (1, 1)), **rest)
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"features": "detached"}, "'detached' is unknown; known: fixed, as_released"),
        ({"trunk": "thawed"}, "'thawed' is unknown; known: frozen, trained"),
        ({"size": 8}, "image size must be at least 16, got 8"),
    ],
)
def test_unknown_options_are_refused(options, known):
    for builder in (capsule_v1, capsule_v2):
        with pytest.raises(InputError, match=f"{builder.__name__}: .*{known}"):
            builder(**options)
