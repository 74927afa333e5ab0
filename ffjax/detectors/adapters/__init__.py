"""Bring your own detector: somebody else's model, in whatever library, as a Detector that is attacked like any other.

What it takes and says is declared once, as a `Convention`, and checked at once (ffjax.detectors.checks). For example,
ten steps of sign gradients against a PyTorch detector whose class 0 means fake:

    import jax, jax.numpy as jnp
    from torch import nn
    from ffjax.detectors.adapters import Convention, from_torch
    from ffjax.objectives import margin

    theirs = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 2))  # whatever they have
    says = Convention(bounds=(0, 1), mean=0.5, std=0.5, output="logits", fake=0)
    detector, variables = from_torch(theirs, (32, 32, 3), says)  # checked: eval mode, live gradients, rows on their own
    slope = jax.jit(jax.grad(lambda images: margin(detector.apply(variables, images)).sum()))
    fakes = jax.random.uniform(jax.random.key(0), (8, 32, 32, 3))
    attacked = fakes
    for _ in range(10):
        stepped = attacked - jnp.sign(slope(attacked)) / 255
        attacked = jnp.clip(stepped, fakes - 8 / 255, fakes + 8 / 255).clip(0, 1)
    print([margin(detector.apply(variables, images)) for images in (fakes, attacked)])  # positive: called fake
"""

from ffjax.detectors.adapters.build import Adapted
from ffjax.detectors.adapters.command import command
from ffjax.detectors.adapters.convention import Convention, Raw
from ffjax.detectors.adapters.functions import from_function, from_keras, from_nnx
from ffjax.detectors.adapters.linen import from_linen
from ffjax.detectors.adapters.scores import BlackBox, Queries, from_scores
from ffjax.detectors.adapters.torch_module import from_torch

__all__ = [
    "Adapted",
    "BlackBox",
    "Convention",
    "Queries",
    "Raw",
    "command",
    "from_function",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_scores",
    "from_torch",
]
