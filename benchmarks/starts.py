"""Where attacks on verdicts alone begin, for peers as for ours (ffjax.attacks.decision)."""

from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]

STARTED = ("boundary", "hop_skip_jump")
"""Attacks that walk from an image of the other verdict."""


def found(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each image the first of its mean colour, black, white and noise that the network calls otherwise: where ours
    begins too. The image itself where there is none."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    flat = [images.mean((2, 3), keepdim=True).expand_as(images), torch.zeros_like(images), torch.ones_like(images)]
    begun = images.clone()
    for candidate in (noise, *reversed(flat)):  # what comes later is put over what came before
        other = model(candidate).argmax(1) != labels
        begun[other] = candidate[other]
    return begun
