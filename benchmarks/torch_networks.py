"""The networks of ffjax.detectors as a PyTorch user writes them: torchvision's and timm's where these have them, else
stated plainly in nn modules. Weights are random; `build` checks that there are as many as in ours."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

VERSION = torch.__version__


def build(name: str, size: int, parameters: int) -> nn.Module:
    """The network in evaluation mode, channels_last. ValueError if its trainable numbers are not that many."""
    network: Any = NETWORKS[name](size).eval()  # typed Any: torch's own stubs do not know this `to`
    network = network.to(memory_format=torch.channels_last)
    found = sum(p.numel() for p in network.parameters())
    if found != parameters:
        raise ValueError(f"{name}: {found:,} numbers here, {parameters:,} in ffjax")
    return network


def gradient(network: nn.Module, images: np.ndarray) -> Callable[[], object]:
    """A function of nothing: d mean margin (+ mean mask) / d images, (B, H, W, 3) in [0, 1]."""
    x = torch.tensor(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last).requires_grad_()
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def run() -> object:
        said = network(x)
        logits, mask = said if isinstance(said, tuple) else (said, None)
        z = logits[:, 1] - logits[:, 0] if logits.shape[1] > 1 else logits[:, 0]
        return torch.autograd.grad(z.mean() + (0.0 if mask is None else mask.mean()), x)[0]

    return run


def vision(name: str) -> nn.Module:
    """torchvision's network of two classes."""
    return _torchvision().models.get_model(name, weights=None, num_classes=2)


def _torchvision() -> Any:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:  # built for another torch: only operators are missing that no network here uses
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
        return importlib.import_module("torchvision")


def vgg(width: int, hidden: int) -> nn.Module:
    """VGG-16's layers, narrower, on [0, 1]."""
    layers, given = [], 3
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for _ in range(depth):
            layers += conv(given, width * min(2**stage, 8), 3, padding=1)
            given = width * min(2**stage, 8)
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(given, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dense, nn.Linear(hidden, 2))


def xception(_: int) -> nn.Module:
    """timm's, which imports torchvision."""
    _torchvision()
    return importlib.import_module("timm").create_model("legacy_xception", num_classes=2)


def conv(*form: Any, norm: str = "", act: Callable[[], nn.Module] | None = nn.ReLU, **kwargs: Any) -> list[nn.Module]:
    """Convolution, with BatchNorm "before" or "after" the non-linearity."""
    bend = [act()] if act else []
    bn = [nn.BatchNorm2d(form[1])] if norm else []
    return [nn.Conv2d(*form, **kwargs), *(bn + bend if norm == "before" else bend + bn)]


class Parallel(nn.ModuleList):
    """Branches side by side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class Residual(nn.Module):
    """The input, or what `short` makes of it, added to the layers' result, then `end`."""

    def __init__(self, layers: list[nn.Module], short: list[nn.Module] | None = None, end: nn.Module | None = None):
        super().__init__()
        self.inner, self.short, self.end = nn.Sequential(*layers), nn.Sequential(*(short or [])), end or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.inner(x) + self.short(x))


def inception(given: int, widths: tuple[int, ...], port: bool) -> nn.Module:
    form: dict[str, Any] = {"bias": not port, "act": None if port else nn.ReLU}
    branches = [nn.Sequential(*conv(given, widths[0], 1, **form))]
    for d, width in enumerate(widths[1:], start=1):
        second = conv(width, width, 3, padding=d, dilation=d, **form)
        branches.append(nn.Sequential(*conv(given, width, 1, **form), *second))
    return Parallel(branches)


def meso(size: int, inceptions: bool, port: bool) -> nn.Module:
    form: dict[str, Any] = {"bias": not port, "norm": "after"}
    if inceptions:
        blocks, given = [], 3
        for first in (1, 2):
            blocks.append([inception(given, (first, 4, 4, 2), port), nn.BatchNorm2d(first + 10)])
            given = first + 10
    else:
        blocks, given = [conv(3, 8, 3, padding=1, **form), conv(8, 8, 5, padding=2, **form)], 8
    blocks += [conv(given, 16, 5, padding=2, **form), conv(16, 16, 5, padding=2, **form)]
    layers = [layer for block, pool in zip(blocks, (2, 2, 2, 4), strict=True) for layer in (*block, nn.MaxPool2d(pool))]
    dense = [nn.Linear((size // 32) ** 2 * 16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 2 if port else 1)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def resnet10(_: int) -> nn.Module:
    layers, given = conv(3, 8, 3, padding=1, norm="before", bias=False), 8
    for width in (16, 32, 64, 128):
        inner = conv(given, width, 3, 2, 1, norm="before", bias=False)
        inner += conv(width, width, 3, 1, 1, norm="before", act=None, bias=False)
        short = conv(given, width, 1, 2, norm="before", act=None, bias=False)
        layers, given = [*layers, Residual(inner, short, nn.ReLU())], width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 2))


class ClassNSeg(nn.Module):
    """Verdict, mask and reconstruction; returns the logits and the mask."""

    def __init__(self, _: int):
        super().__init__()
        plan = ((8, 1), (8, 2), (16, 1), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2), (128, 1))
        self.encoder = self._stages(3, plan, False)
        self.shared = self._stages(128, ((64, 1), (64, 2), (32, 1), (32, 2)), True)
        branch = ((16, 1), (16, 2), (8, 1), (8, 2))
        self.segment, self.reconstruct = (
            nn.Sequential(self._stages(32, branch, True), nn.ConvTranspose2d(8, out, 3, padding=1)) for out in (2, 3)
        )

    def _stages(self, given: int, plan: Any, transposed: bool) -> nn.Module:
        layers = []
        for width, stride in plan:
            layers += (
                [nn.ConvTranspose2d(given, width, 3, stride, 1, stride - 1), nn.BatchNorm2d(width), nn.ReLU()]
                if transposed
                else conv(given, width, 3, stride, 1, norm="before")
            )
            given = width
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent = self.encoder(x)
        fake, real = latent.chunk(2, 1)
        logits = torch.stack([real.abs().mean((1, 2, 3)), fake.abs().mean((1, 2, 3))], 1)
        forged = (logits[:, 1] > logits[:, 0]).view(-1, 1, 1, 1)
        shared = self.shared(torch.cat([torch.where(forged, fake, 0.0), torch.where(forged, 0.0, real)], 1))
        pair = self.segment(shared)
        return logits, pair[:, 1] - pair[:, 0]


class Statistics(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((2, 3)), x.std((2, 3))], 1)


class Capsules(nn.Module):
    """The trunk of VGG-19, N primary capsules, two rounds of routing."""

    def __init__(self, count: int):
        super().__init__()
        layers, given = [], 3
        for width, depth in ((64, 2), (128, 2), (256, 4)):
            for _ in range(depth):
                layers, given = layers + conv(given, width, 3, padding=1), width
            layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers)
        self.primary = nn.ModuleList(self._capsule() for _ in range(count))
        self.route = nn.Parameter(torch.randn(2, count, 4, 8))

    def _capsule(self) -> nn.Module:
        layers = conv(256, 64, 3, padding=1, norm="before") + conv(64, 16, 3, padding=1, norm="before")
        tail = [nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.Conv1d(8, 1, 3, 1, 1), nn.BatchNorm1d(1)]
        return nn.Sequential(*layers, Statistics(), *tail)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.trunk(images)
        capsules = self._squash(torch.cat([capsule(x) for capsule in self.primary], 1), 1)
        votes = torch.einsum("cnij,bnj->bcni", self.route, capsules)
        outputs = self._squash(votes.mean(2, keepdim=True), 3)
        outputs = self._squash(((votes * outputs).softmax(2) * votes).sum(2), 2)
        return outputs.softmax(1).mean(2).log()

    def _squash(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        norm = x.norm(dim=dim, keepdim=True)
        return norm / (1 + norm**2) * x


class Squeeze(nn.Sequential):
    """Squeeze and excitation."""

    def __init__(self, width: int):
        inner = conv(width, width // 4, 1, norm="before", bias=False)
        outer = conv(width // 4, width, 1, norm="before", act=nn.Sigmoid, bias=False)
        super().__init__(nn.AdaptiveAvgPool2d(1), *inner, *outer)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * super().forward(input)


def minifasnet(size: int, stages: Any, squeezed: bool) -> nn.Module:
    """stages: those of ffjax.detectors.minifasnet."""

    def layer(given: int, width: int, window: int = 1, stride: int = 1, linear: bool = False, **kwargs: Any):
        form: dict[str, Any] = {"norm": "before", "bias": False, "act": None if linear else lambda: nn.PReLU(width)}
        return conv(given, width, window, stride, **form, **{"padding": window // 2, **kwargs})

    layers, given = layer(3, 32, 3, 2) + layer(32, 32, 3, groups=32), 32
    for _, features, widths in stages:
        for i, width in enumerate(widths):
            halving = len(widths) == 1
            inner = layer(given, width) + layer(width, width, 3, 1 + halving, groups=width)
            inner += layer(width, features, linear=True)
            inner += [Squeeze(features)] if squeezed and not halving and i == len(widths) - 1 else []
            layers, given = layers + (inner if halving else [Residual(inner)]), features
    layers += layer(given, 512) + layer(512, 512, size // 16, linear=True, groups=512, padding=0)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(512, 128, bias=False), nn.BatchNorm1d(128), nn.Linear(128, 3, bias=False)
    )


class Laplacian(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        front = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
        return nn.functional.conv2d(x, front, groups=3)


def laplacian(_: int) -> nn.Module:
    layers, given = [Laplacian()], 3
    for width in (16, 32, 64, 128, 128):
        layers += conv(given, width, 3, padding=1, norm="before", bias=False) + [nn.AvgPool2d(2)]
        given = width
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 2))


def bondi(size: int) -> nn.Module:
    layers, given = [], 3
    for width, window in ((32, 4), (48, 5), (64, 5), (128, 5)):
        layers += [nn.Conv2d(given, width, window), nn.MaxPool2d(2, ceil_mode=True)]
        given = width
    return _flat(layers[:-1], size, (128, nn.ReLU()))


class Constrained(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        centre = torch.zeros(5, 5)
        centre[2, 2] = 1
        around = self.weight * (1 - centre)
        around = around + (1 - around.sum((2, 3), keepdim=True)) / 24
        return nn.functional.conv2d(input, around * (1 - centre) - centre)


def bayar(size: int) -> nn.Module:
    layers: list[nn.Module] = [Constrained(3, 3, 5, bias=False)]
    given = 3
    for width, window, stride, pad in ((96, 7, 2, 3), (64, 5, 1, 2), (64, 5, 1, 2), (128, 1, 1, 0)):
        pool = (nn.AvgPool2d if width == 128 else nn.MaxPool2d)(3, 2, ceil_mode=True)
        layers += [*conv(given, width, window, stride, pad, norm="before", act=nn.Tanh), pool]
        given = width
    return _flat(layers, size, (200, nn.Tanh()), (200, nn.Tanh()))


def _flat(layers: list[nn.Module], size: int, *dense: tuple[int, nn.Module]) -> nn.Module:
    """The layers and the dense ones after them, the first as wide as its input turns out."""
    network = nn.Sequential(*layers, nn.Flatten())
    given = network.eval()(torch.zeros(1, 3, size, size)).shape[1]
    for width, bend in dense:
        network.extend([nn.Linear(given, width), bend])
        given = width
    return network.append(nn.Linear(given, 2))


def _minifasnet(version: str) -> Callable[[int], nn.Module]:
    def built(size: int) -> nn.Module:
        from ffjax.detectors import minifasnet as ours

        return minifasnet(size, getattr(ours, version), version == "V1")

    return built


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "meso4": lambda size: meso(size, False, False),
    "mesoinception4": lambda size: meso(size, True, False),
    "resnet10": resnet10,
    "meso4_port": lambda size: meso(size, False, True),
    "mesoinception4_port": lambda size: meso(size, True, True),
    "xception": xception,
    "efficientnet_b0": lambda _: vision("efficientnet_b0"),
    "efficientnet_b4": lambda _: vision("efficientnet_b4"),
    "capsule_v1": lambda _: Capsules(3),
    "capsule_v2": lambda _: Capsules(10),
    "classnseg": ClassNSeg,
    "minifasnet_v1se": _minifasnet("V1"),
    "minifasnet_v2": _minifasnet("V2"),
    "vgg16": lambda _: vision("vgg16"),
    "vgg16_narrow": lambda _: vgg(16, 256),
    "resnet18": lambda _: vision("resnet18"),
    "resnet50": lambda _: vision("resnet50"),
    "laplacian": laplacian,
    "bondi": bondi,
    "bayar": bayar,
}
