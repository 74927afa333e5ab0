"""PyTorch modules of unusual kinds: TorchScript, layers without weights yet."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.detectors import checks
from ffjax.detectors.adapters import Convention, from_torch
from ffjax.errors import InputError
from ffjax.objectives import margin

torch = pytest.importorskip("torch", reason="PyTorch modules need the extra: pip install 'ffjax[torch]'")
nn = torch.nn

SHAPE = (16, 16, 3)
IMAGES = checks.textures(SHAPE)
LOGITS = Convention(bounds=(0, 1), output="logits", fake=1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(1176, 2))


def slope(apply, variables):
    return jax.grad(lambda images: margin(apply(variables, images)).sum())(jnp.asarray(IMAGES))


def test_torchscript_is_a_module_like_any_other():
    module = net().eval()
    with warnings.catch_warnings():  # PyTorch advises against it, yet that is how detectors are handed over
        warnings.simplefilter("ignore")
        scripts = torch.jit.script(module), torch.jit.trace(module, torch.zeros(1, 3, 16, 16))
    plain, _ = from_torch(module, SHAPE, LOGITS, check=False)
    expected = slope(plain.apply, {})
    for script in scripts:
        detector, variables = from_torch(script, SHAPE, LOGITS)
        found = slope(detector.apply, variables)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * jnp.abs(expected).max())
        assert all(p.requires_grad for p in script.parameters())
        with pytest.raises(InputError, match="from_torch: the layers of a TorchScript module cannot be caught"):
            from_torch(script, SHAPE, LOGITS, layers=("0",))


def test_a_module_without_weights_yet_is_refused():
    with pytest.raises(InputError, match=r"^from_torch: the module has lazy layers without weights yet: call it on"):
        from_torch(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), SHAPE, LOGITS)


def test_a_shape_may_be_a_list_and_must_be_one():
    assert from_torch(net(), list(SHAPE), LOGITS, check=False).detector.shape == SHAPE
    with pytest.raises(InputError, match="from_torch: shape must be"):
        from_torch(net(), 16, LOGITS)
