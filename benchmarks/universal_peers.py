"""The peers of benchmarks.universal: GD-UAP as one writes it in PyTorch, and ART's UniversalPerturbation."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.peers import Verdict, restated

__all__ = ["art", "gd_uap", "restated"]


def gd_uap(model: Verdict, size: Sequence[int], eps: float, steps: int, rate: float, seed: int) -> np.ndarray:
    """(H, W, 3): max_v sum_i log ||l_i(v)||_2 over the outputs l_i of the convolutions' ReLUs, v fed alone, Adam,
    clamped to +-eps after each step; halved where it has settled with more than half of it at the bound. The same
    algorithm as ffjax's gd_uap, which also scores it now and then."""
    torch.manual_seed(seed)
    v = ((2 * torch.rand(1, 3, *size[:2]) - 1) * eps).requires_grad_(True)
    optimiser, before = torch.optim.Adam([v], lr=rate), 0.0
    acts: list[torch.Tensor] = []

    def keep(module: nn.Module, given: Any, act: Any) -> None:
        acts.append(act)

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, nn.ReLU)]
    try:
        for _ in range(steps):
            acts.clear()
            optimiser.zero_grad()
            model(v)
            (-torch.stack([torch.log(torch.linalg.vector_norm(a)) for a in acts]).sum()).backward()
            optimiser.step()
            with torch.no_grad():
                v.clamp_(-eps, eps)
                at = float((v.abs() >= eps).float().mean())
                if at > 0.5 and abs(at - before) < 1e-5:
                    v.mul_(0.5)
                before = at
    finally:
        for hook in hooks:
            hook.remove()
    return v.detach()[0].permute(1, 2, 0).numpy()


def art(model: Verdict, x: np.ndarray, eps: float, enough: float, seed: int) -> np.ndarray:
    """(H, W, 3): Moosavi-Dezfooli's with DeepFool inside, as a user calls it; x (N, H, W, 3) in [0, 1]."""
    from art.attacks.evasion import UniversalPerturbation  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    random.seed(seed)
    np.random.seed(seed)
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    classifier: Any = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), images.shape[1:], 2, clip_values=(0.0, 1.0), device_type="cpu"
    )
    inside = {"max_iter": 10, "epsilon": 0.02, "verbose": False}
    attack = UniversalPerturbation(
        classifier, "deepfool", inside, delta=1 - enough, max_iter=20, eps=eps, norm=np.inf, verbose=False
    )
    attack.generate(images)
    noise = attack.noise
    return np.zeros(x.shape[1:], np.float32) if noise is None else noise[0].transpose(1, 2, 0).astype(np.float32)
