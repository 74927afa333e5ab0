"""ResNet, VGG, EfficientNet and Xception beside PyTorch's, layer by layer, at random weights and running statistics."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.detectors import efficientnet, resnet, vgg, xception
from ffjax.detectors.pytorch import convert

OPTIONS = {"normalise": "none"}
apply = jax.jit(lambda detector, variables, images: detector.apply(variables, images), static_argnums=0)


def vision():
    """(torch, torchvision), or the test is skipped."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("compares with torchvision")
    try:
        import torchvision
    except RuntimeError:  # built for another torch: only operators are missing that no network here uses
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
        import torchvision
    return torch, torchvision


def randomised(torch, model, seed=0):
    """The model in evaluation mode, its affine numbers and running statistics drawn at random."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def watched(model, modules):
    """Fills a dict with what these modules put out: act name -> NHWC."""
    seen = {}
    for name, (module, after) in modules.items():

        def hook(_, __, out, name=name, after=after):
            seen[name] = after(out.detach()).permute(0, 2, 3, 1).numpy()

        model.get_submodule(module).register_forward_hook(hook)
    return seen


def kept(out):
    return out.clone()  # a ReLU in place may follow


def rectified(out):
    return out.clamp(min=0)


def resnet_acts(depths):
    blocks = [f"layer{stage}.{i}" for stage, depth in enumerate(depths, 1) for i in range(depth)]
    return {"stem": ("bn1", rectified)} | {f"block{k}": (name, kept) for k, name in enumerate(blocks, 1)}


def vgg_acts(batch_norm):
    names = vgg.torch_layout("batch" if batch_norm else "none").names
    return {key: (names[key.replace("conv", "bn") if batch_norm else key], rectified) for key in names if "conv" in key}


def efficientnet_acts(arch):
    names = efficientnet.torch_layout(arch).names
    blocks = list(dict.fromkeys(name.partition(".block.")[0] for key, name in names.items() if "block" in key))
    ends = {"stem": ("features.0", kept)} | {f"block{k}": (name, kept) for k, name in enumerate(blocks, 1)}
    return ends | {"head": ("features.8", kept)}


def xception_acts():
    plain = {f"conv{i}": (f"bn{i}", rectified) for i in (1, 2, 3, 4)}
    blocks = {f"block{i}": (f"block{i}", rectified) for i in range(1, 13)}
    return {key: (plain | blocks)[key] for key in ("conv1", "conv2", *blocks, "conv3", "conv4")}


NETWORKS = {  # ours, torchvision's name, layout, act -> (module there, what is done to its output), parameters
    "resnet18": (resnet.resnet18, "resnet18", resnet.torch_layout("resnet18"), resnet_acts((2, 2, 2, 2)), 11_177_538),
    "resnet50": (resnet.resnet50, "resnet50", resnet.torch_layout("resnet50"), resnet_acts((3, 4, 6, 3)), 23_512_130),
    "vgg16": (vgg.vgg16, "vgg16", vgg.torch_layout(), vgg_acts(False), 134_268_738),
    "vgg16_bn": (partial(vgg.vgg16, norm="batch"), "vgg16_bn", vgg.torch_layout("batch"), vgg_acts(True), 134_277_186),
    "efficientnet_b0": (
        efficientnet.efficientnet_b0,
        "efficientnet_b0",
        efficientnet.torch_layout("efficientnet_b0"),
        efficientnet_acts("efficientnet_b0"),
        4_010_110,
    ),
    "efficientnet_b4": (
        efficientnet.efficientnet_b4,
        "efficientnet_b4",
        efficientnet.torch_layout("efficientnet_b4"),
        efficientnet_acts("efficientnet_b4"),
        17_552_202,
    ),
    "xception": (xception.xception, "timm:legacy_xception", xception.torch_layout(), xception_acts(), 20_811_050),
}


def both(name, size, rows=2):
    """Our logits and acts, theirs, and the pieces to go on with."""
    torch, torchvision = vision()
    builder, theirs, layout, modules, _ = NETWORKS[name]
    if theirs.startswith("timm:"):
        timm = pytest.importorskip("timm", reason="compares with timm")
        model = timm.create_model(theirs.removeprefix("timm:"), num_classes=2)
    else:
        model = torchvision.models.get_model(theirs, weights=None, num_classes=2)
    model = randomised(torch, model)
    detector = builder(size, **OPTIONS)
    images = np.random.default_rng(1).uniform(0, 1, (rows, size, size, 3)).astype(np.float32)
    seen = watched(model, modules)
    inputs = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    logits = model(inputs)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), inputs)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    variables = convert(state, layout, jax.eval_shape(detector.init, jax.random.key(0)))
    return detector, variables, images, logits.detach().numpy(), seen, gradient.permute(0, 2, 3, 1).numpy()


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_every_activation_are_torchvision_s(name):
    detector, variables, images, logits, seen, gradient = both(name, 64)
    ours = apply(detector, variables, images)
    parameters = jax.eval_shape(NETWORKS[name][0]().init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == NETWORKS[name][4]
    assert tuple(ours.acts) == tuple(seen) == tuple(NETWORKS[name][3])
    for layer, act in ours.acts.items():
        close(act, seen[layer])
    close(ours.logits, logits)
    margin = jax.jit(jax.grad(lambda x, v: (detector.apply(v, x).logits @ jnp.array([-1.0, 1.0])).sum()))
    close(margin(images, variables), gradient)
