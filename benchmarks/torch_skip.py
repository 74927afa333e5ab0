"""The skip network of Deep Image Prior as a PyTorch user writes it, and its fit: one image at a time, as the paper's
code runs it, or several at once by torch.func's vmap."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from ffjax.defences.skip_network import EPSILON, SLOPE, Skip
from ffjax.errors import InputError


class Beside(nn.Module):
    """The channels of the branch that leads past a scale, then those of the scale."""

    def __init__(self, past: nn.Module, through: nn.Module):
        super().__init__()
        self.past, self.through = past, through

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.past(x), self.through(x)], dim=1)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=EPSILON, track_running_stats=False)


def _block(given: int, made: int, window: int, stride: int = 1) -> list[nn.Module]:
    mirrored: list[nn.Module] = [nn.ReflectionPad2d(window // 2)] if window > 1 else []
    return [*mirrored, nn.Conv2d(given, made, window, stride), _norm(made), nn.LeakyReLU(SLOPE)]


def device(backend: str) -> str:
    """That of PyTorch which is the same hardware as JAX's backend. InputError where PyTorch has it not."""
    if backend != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("PyTorch sees no GPU here and JAX does: their times are not to be compared")
    return "cuda"


def network(skip: Skip) -> nn.Module:
    """(1, code, H, W) -> (1, 3, H, W) in (0, 1)."""

    def scale(i: int, given: int) -> nn.Module:
        made, last = skip.channels[i], i + 1 == len(skip.channels)
        inside = made if last else skip.channels[i + 1]
        deeper = [] if last else [scale(i + 1, made)]
        deep: nn.Module = nn.Sequential(
            *_block(given, made, 3, 2), *_block(made, made, 3), *deeper, nn.Upsample(scale_factor=2, mode="bilinear")
        )
        past = skip.skips[i]
        joined = Beside(nn.Sequential(*_block(given, past, 1)), deep) if past else deep
        return nn.Sequential(joined, _norm(inside + past), *_block(inside + past, made, 3), *_block(made, made, 1))

    return nn.Sequential(scale(0, skip.code), nn.Conv2d(skip.channels[0], 3, 1), nn.Sigmoid())


def parts(whole: nn.Module, skip: Skip) -> dict[str, Any]:
    """Its modules by the names of ffjax.defences.skip_network: convolutions as there, normalisations by what they
    normalise and '_norm'."""
    convs = [m for m in whole.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in whole.modules() if isinstance(m, nn.BatchNorm2d)]
    inwards, outwards = [], []
    for i, past in enumerate(skip.skips):
        inwards += [f"skip{i}"] * bool(past) + [f"down{i}", f"deep{i}"]
        outwards = [f"joined{i}", f"up{i}", f"mix{i}", *outwards]
    found = dict(zip([*inwards, *(n for n in outwards if n[:6] != "joined"), "last"], convs, strict=True))
    return found | dict(zip([f"{name}_norm" for name in (*inwards, *outwards)], norms, strict=True))


def loaded(skip: Skip, params: Mapping[str, np.ndarray]) -> nn.Module:
    """The network with one image's parameters of ffjax.defences.skip_network."""
    whole = network(skip)
    for name, module in parts(whole, skip).items():
        if name.endswith("_norm"):
            weight, bias = (params[name.replace("norm", part)] for part in ("scale", "shift"))
        else:
            weight, bias = np.transpose(params[name], (3, 2, 0, 1)), params[f"{name}_bias"]
        module.weight.data, module.bias.data = (torch.tensor(np.asarray(x)) for x in (weight, bias))
    return whole


def one_at_a_time(
    skip: Skip, image: np.ndarray, rate: float, noise: float, device: str = "cpu"
) -> Callable[[], np.ndarray]:
    """A function of nothing that does one step of Adam on one image (H, W, 3), and says the error (1,) before it."""
    net = network(skip).to(device)
    adam = torch.optim.Adam(net.parameters(), rate)
    target = torch.tensor(image, device=device).permute(2, 0, 1)[None]
    z = 0.1 * torch.rand(1, skip.code, *image.shape[:2], device=device)

    def step() -> np.ndarray:
        adam.zero_grad()
        loss = (net(z + noise * torch.randn_like(z)) - target).square().mean()
        loss.backward()
        adam.step()
        return loss.detach().cpu().numpy()[None]

    return step


def batched(skip: Skip, images: np.ndarray, rate: float, noise: float, device: str = "cpu") -> Callable[[], np.ndarray]:
    """The same for all images (B, H, W, 3) at once, a network each, by torch.func; the errors (B,)."""
    nets = [network(skip).to(device) for _ in images]
    params, _ = torch.func.stack_module_state(nets)
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    adam = torch.optim.Adam(list(leaves.values()), rate)
    target = torch.tensor(images, device=device).permute(0, 3, 1, 2)
    z = 0.1 * torch.rand(len(images), skip.code, *images.shape[1:3], device=device)

    def drawn(one: Any, code: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(nets[0], one, (code[None],))[0]

    def step() -> np.ndarray:
        adam.zero_grad()
        made = torch.func.vmap(drawn)(leaves, z + noise * torch.randn_like(z))
        each = (made - target).square().mean(dim=(1, 2, 3))
        each.sum().backward()
        adam.step()
        return each.detach().cpu().numpy()

    return step
