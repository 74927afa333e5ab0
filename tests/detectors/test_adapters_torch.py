"""PyTorch modules as detectors: values, gradients, what is left alone, what is refused."""

import faulthandler

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ffjax.detectors import checks, layers
from ffjax.detectors.adapters import Convention, from_torch
from ffjax.detectors.checks import DetectorWarning
from ffjax.errors import InputError
from ffjax.objectives import margin

torch = pytest.importorskip("torch", reason="PyTorch modules need the extra: pip install 'ffjax[torch]'")
nn = torch.nn

SHAPE = (16, 16, 3)
IMAGES = checks.textures(SHAPE)
NORMAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LOGITS = Convention(bounds=(0, 1), output="logits", fake=1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def net(*last):
    """Two convolutions with BatchNorm, whose statistics are not those it starts with."""
    norm = nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-0.3, 0.3)
    norm.running_var.uniform_(0.5, 1.5)
    last = last or (nn.Linear(5, 2),)
    first = (nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True), norm, nn.Conv2d(6, 5, 3), nn.ReLU())
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), *last)


def in_jax(module):
    """The same network, written anew in JAX from the module's numbers."""
    p = {name: jnp.asarray(value.detach().numpy()) for name, value in module.state_dict().items()}

    def conv(x, name, stride, pad):
        kernel = p[f"{name}.weight"].transpose(2, 3, 1, 0)
        pads = [(pad, pad), (pad, pad)]
        y = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(y + p[f"{name}.bias"][None, None, None])

    def forward(images):
        x = (images - np.reshape(NORMAL["mean"], (1, 1, 1, 3))) / np.reshape(NORMAL["std"], (1, 1, 1, 3))
        x = conv(x.astype(jnp.float32), "0", 2, 1)
        mean, var, gain, shift = (
            p[f"2.{k}"][None, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        y = conv((x - mean) / jnp.sqrt(var + 1e-5) * gain + shift, "3", 1, 0)
        return y.mean((1, 2)) @ p["8.weight"].T + p["8.bias"][None], {"1": x, "4": y}

    return forward


def slope(forward):
    return jax.grad(lambda images: margin(forward(images)).sum())


@pytest.mark.slow
def test_values_gradients_and_activations_are_those_of_the_network_in_jax():
    module = net()
    detector, variables = from_torch(
        module, SHAPE, Convention(bounds=(0, 1), output="logits", fake=1, **NORMAL), layers=("1", "4")
    )
    ours, outputs = in_jax(module), jax.jit(detector.apply)(variables, IMAGES)
    logits, acts = ours(IMAGES)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-5)
    assert list(outputs.acts) == ["1", "4"] == list(layers(detector))
    for name, act in acts.items():
        np.testing.assert_allclose(outputs.acts[name], act, rtol=1e-5, atol=1e-5)

    def fired(acts):
        return sum(jnp.sum(act**2 * (i + 1)) for i, act in enumerate(acts.values()))

    readings = [
        (lambda x: margin(detector.apply(variables, x)).sum(), lambda x: (ours(x)[0] @ jnp.array([-1.0, 1.0])).sum()),
        (lambda x: fired(detector.apply(variables, x).acts), lambda x: fired(ours(x)[1])),
    ]
    for theirs, mine in readings:
        expected = jax.grad(mine)(jnp.asarray(IMAGES))
        for transform in (lambda f: f, jax.jit):
            found = transform(jax.grad(theirs))(jnp.asarray(IMAGES))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * jnp.abs(expected).max())


def test_gradients_agree_with_finite_differences():
    """A smooth network, whose central differences are good to float32 at a large step."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 14 * 14, 1), nn.Sigmoid())
    says = Convention(bounds=(0, 255), mean=127.5, std=100.0, output="probability", fake="low", channels="BGR")
    detector, variables = from_torch(module, SHAPE, says)
    forward = jax.jit(lambda x: margin(detector.apply(variables, x)))
    exact = slope(Partial(detector.apply, variables))(jnp.asarray(IMAGES))
    along = np.random.default_rng(0).choice([-1.0, 1.0], IMAGES.shape).astype(np.float32)
    numeric = (forward(IMAGES + 0.01 * along) - forward(IMAGES - 0.01 * along)) / 0.02
    np.testing.assert_allclose(jnp.sum(exact * along, axis=(1, 2, 3)), numeric, rtol=2e-3, atol=2e-4)


def test_the_module_is_left_as_it_was():
    module = net().train()
    module[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    detector, variables = from_torch(module, SHAPE, LOGITS, layers=("1",))
    slope(Partial(detector.apply, variables))(jnp.asarray(IMAGES))
    assert all(submodule.training and not submodule._forward_hooks for submodule in module.modules())
    assert flags == {name: p.requires_grad for name, p in module.named_parameters()}
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_training_the_module_further_does_not_change_the_detector():
    module = net()
    detector, variables = from_torch(module, SHAPE, LOGITS, check=False)
    before = detector.apply(variables, IMAGES).logits
    with torch.no_grad():
        module[3].weight.add_(1)
    np.testing.assert_array_equal(detector.apply(variables, IMAGES).logits, before)
    other, variables = from_torch(module, SHAPE, LOGITS, check=False)
    assert not jnp.allclose(other.apply(variables, IMAGES).logits, before)


def test_batch_norm_and_dropout_in_train_mode_are_switched_to_eval():
    module = net().train()
    detector, variables = from_torch(module, SHAPE, LOGITS)  # both would be refused by the checks
    with torch.no_grad():
        expected = module.eval()(torch.tensor(IMAGES).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(detector.apply(variables, IMAGES).logits, expected, rtol=1e-5, atol=1e-5)


def test_randomness_that_eval_does_not_stop_is_refused():
    class Restless(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x.flatten(1)[:, :2], 0.5, training=True) + x.mean((1, 2, 3))[:, None]

    with pytest.raises(InputError, match="from_torch: two calls on the same images differ"):
        from_torch(Restless(), SHAPE, LOGITS)


def test_batch_statistics_that_eval_does_not_stop_are_refused():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(InputError, match="from_torch: rows influence each other"):
        from_torch(nn.Sequential(norm, net()), SHAPE, LOGITS)


def test_a_detached_module_is_refused():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :2] - 0.5

    with pytest.raises(InputError, match="from_torch: the gradient of the verdict is zero on every image"):
        from_torch(Detached(), SHAPE, LOGITS)


def test_a_module_that_normalises_in_place_does_not_touch_our_images():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5).mul_(2.0).flatten(1)[:, :2]

    for channels in (1, 3):
        images = jnp.asarray(IMAGES[..., :channels])
        detector, variables = from_torch(InPlace(), (16, 16, channels), LOGITS)
        before = np.array(images)
        detector.apply(variables, images), slope(Partial(detector.apply, variables))(images)
        np.testing.assert_array_equal(images, before)


def test_masks_come_along_with_their_gradient():
    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x):
            mask = self.conv(x)
            return mask.mean((2, 3)), torch.sigmoid(mask)

    module = Segmenter()
    says = Convention(bounds=(0, 1), output="logit", fake="high", mask="probabilities")
    detector, variables = from_torch(module, SHAPE, says)
    with torch.no_grad():
        expected = module.conv(torch.tensor(IMAGES).permute(0, 3, 1, 2))[:, 0].numpy()
    outputs = detector.apply(variables, IMAGES)
    np.testing.assert_allclose(outputs.mask, expected, atol=1e-5)
    np.testing.assert_allclose(margin(outputs), expected.mean((1, 2)), atol=1e-5)

    class DeadMask(Segmenter):
        def forward(self, x):
            scores, mask = super().forward(x)
            return scores, (mask > 0.5).float()

    with pytest.raises(InputError, match="the gradient of the mask is zero on every image"):
        from_torch(DeadMask(), SHAPE, says)


def test_vmap_gives_every_lane_its_own_answer_and_gradient():
    detector, variables = from_torch(net(), SHAPE, LOGITS)
    forward = Partial(detector.apply, variables)
    stacks = jnp.stack([IMAGES, IMAGES[::-1], 1 - IMAGES])
    np.testing.assert_allclose(
        jax.vmap(lambda x: forward(x).logits)(stacks), jnp.stack([forward(x).logits for x in stacks]), atol=1e-6
    )
    expected = jnp.stack([slope(forward)(x) for x in stacks])
    np.testing.assert_allclose(jax.jit(jax.vmap(slope(forward)))(stacks), expected, atol=1e-6)
    weights = jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    one = jax.grad(lambda x, w: jnp.sum(forward(x).logits * w[None]))
    many = jax.vmap(one, (None, 0))(jnp.asarray(IMAGES), weights)
    np.testing.assert_allclose(many, jnp.stack([one(jnp.asarray(IMAGES), w) for w in weights]), atol=1e-6)


def test_loops_inside_a_program():
    detector, variables = from_torch(net(), SHAPE, LOGITS)
    step = slope(Partial(detector.apply, variables))

    @jax.jit
    def attack(images):
        return jax.lax.scan(lambda x, _: (x + jnp.sign(step(x)) / 255, None), images, length=3)[0]

    expected = jnp.asarray(IMAGES)
    for _ in range(3):
        expected = expected + jnp.sign(step(expected)) / 255
    np.testing.assert_allclose(attack(IMAGES), expected, atol=1e-6)


def test_a_second_derivative_is_refused():
    detector, variables = from_torch(net(), SHAPE, LOGITS)
    once = slope(Partial(detector.apply, variables))
    for twice in (jax.grad(lambda x: jnp.sum(once(x) ** 2)), lambda x: jax.jvp(once, (x,), (x,))):
        with pytest.raises(InputError, match="from_torch: a PyTorch detector can be differentiated once"):
            twice(jnp.asarray(IMAGES))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_modules_of_other_precisions(dtype):
    module = net().to(getattr(torch, dtype))
    detector, variables = from_torch(module, SHAPE, LOGITS, check=False)
    outputs = detector.apply(variables, IMAGES)
    assert outputs.logits.dtype == jnp.float32
    x = torch.tensor(IMAGES).permute(0, 3, 1, 2).to(getattr(torch, dtype))
    np.testing.assert_allclose(outputs.logits, module.eval()(x).detach().float().numpy(), atol=1e-6)
    assert jnp.isfinite(slope(Partial(detector.apply, variables))(jnp.asarray(IMAGES))).all()


def test_the_variables_are_a_digest_of_the_weights():
    module = net()
    (_, first), (_, again) = (from_torch(module, SHAPE, LOGITS, check=False) for _ in range(2))
    with torch.no_grad():
        module[0].bias[0] += 1e-3
    _, other = from_torch(module, SHAPE, LOGITS, check=False)
    assert jnp.array_equal(first["digest"], again["digest"]) and not jnp.array_equal(first["digest"], other["digest"])


class Wrong(nn.Module):
    """Returns `answer(images)`."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda x: {"cls": x}, "got dict; wrap the module in one that returns scores"),
        (lambda x: (x, None), "got Tensor, NoneType; wrap the module"),
        (lambda x: x.mean((2, 3)).argmax(1), "scores are torch.int64: a verdict has no margin"),
        (lambda x: x.mean((2, 3)).squeeze(), r"one image gives \(3,\), two give \(2, 3\): the batch is squeezed away"),
        (lambda x: x.mean((0, 2, 3)).reshape(1, 3), r"one image gives \(1, 3\), two give \(1, 3\)"),
        (lambda x: x.mean((2, 3)), r"scores of shape \(1, 3\) where logits \(B, 2\) were declared"),
        (lambda x: nn.Conv2d(4, 2, 3)(x), r"the module refuses images of shape \(1, 3, 16, 16\): Given groups=1"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(answer, match):
    with pytest.raises(InputError, match=f"^from_torch: {match}") as caught:
        from_torch(Wrong(answer), SHAPE, LOGITS)
    assert "\n" not in str(caught.value)


def test_what_is_no_module_and_what_is_no_layer_is_refused():
    with pytest.raises(InputError, match=r"from_torch: need a torch\.nn\.Module, got a function; wrap it in one"):
        from_torch(lambda x: x, SHAPE, LOGITS)
    with pytest.raises(InputError, match="from_torch: unknown layer 'conv1'; known: 0, 1, 2, 3, 4, 5, 6, 7, 8"):
        from_torch(net(), SHAPE, LOGITS, layers=("conv1",))
    module = net()
    module.spare = nn.ReLU()
    module.forward = lambda x: module[8](module[6](module[5](module[4](module[3](module[0](x))))))
    with pytest.raises(InputError, match="from_torch: layer 'spare' was not called"):
        from_torch(module, SHAPE, LOGITS, layers=("spare",))


def test_a_module_that_cannot_be_copied_is_refused():
    module = net()
    module.last = module[8].weight * 2  # the result of a computation, as old-style weight normalisation keeps it
    with pytest.raises(InputError, match="from_torch: the module cannot be copied: Only Tensors created explicitly"):
        from_torch(module, SHAPE, LOGITS)


def test_probabilities_declared_as_logits_are_refused():
    with pytest.raises(InputError, match="from_torch: declared logits, but every row lies in"):
        from_torch(net(nn.Linear(5, 2), nn.Softmax(dim=1)), SHAPE, LOGITS)
    with pytest.warns(DetectorWarning, match="declared a logit, but every score lies in"):
        from_torch(net(nn.Linear(5, 1), nn.Sigmoid()), SHAPE, Convention(bounds=(0, 1), output="logit", fake="high"))


@pytest.mark.slow
def test_large_batches_do_not_deadlock():
    """Callbacks that wait for JAX's thread pool have hung on machines of two cores: 12 MB a call, many in flight."""
    detector, variables = from_torch(net(), (256, 256, 3), LOGITS, check=False)

    @jax.jit
    def step(images):
        value, grads = jax.value_and_grad(lambda x: margin(detector.apply(variables, x)).sum())(images)
        return jnp.clip(images + jnp.sign(grads) / 255, 0, 1), value

    images, values = jax.random.uniform(jax.random.key(0), (16, 256, 256, 3)), []
    faulthandler.dump_traceback_later(300, exit=True)
    for _ in range(6):  # none is waited for before the next is sent
        images, value = step(images)
        values.append(value)
    jax.block_until_ready(values)
    faulthandler.cancel_dump_traceback_later()
    assert np.all(np.diff(np.array(values)) > 0)
