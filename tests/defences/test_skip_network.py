"""The skip network is the paper's: its numbers, its layers beside PyTorch's, and every image's its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.defences import skip_network
from ffjax.defences.skip_network import NETWORKS, Skip

SMALL = Skip((4, 6), (0, 3), 5)
SIZE = 16


def params(network: Skip = SMALL, rows: int = 3, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), rows)
    drawn = jax.vmap(lambda key: skip_network.init(network, key))(keys)
    # scales and shifts that are not 1 and 0, so that a wrong one shows
    move = jax.random.normal(jax.random.key(9), (64,))
    return {k: v + 0.3 * move[: v.shape[-1]][None] if k.endswith(("_scale", "_shift")) else v for k, v in drawn.items()}


def z(network: Skip = SMALL, size: int = SIZE):
    return skip_network.code(jax.random.key(1), network, size, size)


@pytest.mark.parametrize(("name", "count"), [("paper", 574_915), ("denoising", 2_217_831), ("small", 37_423)])
def test_it_has_as_many_numbers_as_the_papers(name, count):
    drawn = jax.eval_shape(lambda key: skip_network.init(NETWORKS[name], key), jax.random.key(0))
    assert sum(x.size for x in drawn.values()) == count


@pytest.mark.parametrize("network", [SMALL, Skip((4, 4, 4), (2, 0, 1), 3)])
def test_it_draws_what_pytorch_draws_and_learns_what_it_learns(network):
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    from benchmarks import torch_skip

    given, code, target = params(network), z(network), np.random.default_rng(0).uniform(size=(3, SIZE, SIZE, 3))

    def errors(p):
        drawn = skip_network.apply(network, p, code)
        return jnp.sum(jnp.mean(jnp.square(drawn - target.astype(np.float32)), axis=(1, 2, 3))), drawn

    (_, drawn), slope = jax.value_and_grad(errors, has_aux=True)(given)
    for b in range(3):
        net = torch_skip.loaded(network, {k: v[b] for k, v in given.items()})
        made = net(torch.tensor(np.asarray(code)).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        np.testing.assert_allclose(drawn[b], made.detach().numpy(), atol=1e-5)
        (made - torch.tensor(target[b], dtype=torch.float32)).square().mean().backward()
        for name, module in torch_skip.parts(net, network).items():
            if name.endswith("_norm"):
                mine, theirs = slope[name.replace("norm", "scale")][b], module.weight.grad
            else:
                mine, theirs = slope[name][b], module.weight.grad.permute(2, 3, 1, 0)
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=2e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("rows", "window", "stride"), [(3, 3, 1), (3, 3, 2), (1, 3, 2), (3, 1, 1)])
def test_the_forms_of_a_convolution_agree_and_so_do_their_gradients(rows, window, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, 8, 8, 5)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(3, window, window, 5, 4)), jnp.float32)
    weigh = jnp.asarray(rng.normal(size=(3, 8 // stride, 8 // stride, 4)), jnp.float32)

    def both(form):
        return form(x, kernels, stride), jax.grad(lambda x, k: jnp.sum(weigh * form(x, k, stride)), (0, 1))(x, kernels)

    first, second = both(skip_network.one_by_one), both(skip_network.grouped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), first, second)


def test_a_bias_before_a_normalisation_has_no_effect_and_no_gradient():
    given = params()
    moved = {k: v + 7.0 if k.endswith("_bias") and k != "last_bias" else v for k, v in given.items()}
    np.testing.assert_array_equal(skip_network.apply(SMALL, given, z()), skip_network.apply(SMALL, moved, z()))
    slope = jax.grad(lambda p: jnp.sum(skip_network.apply(SMALL, p, z())))(given)
    assert all(not np.any(slope[k]) for k in slope if k.endswith("_bias") and k != "last_bias")
    assert np.any(slope["last_bias"])


def test_doubling_keeps_pixel_centres():
    x = jnp.arange(4.0)[None, :, None, None] * jnp.ones((1, 4, 4, 2))
    line = skip_network._doubled(x)[0, :, 0, 0]
    np.testing.assert_allclose(line, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize(
    ("size", "canvas"), [((64, 96), (64, 96)), ((48, 64), (64, 64)), ((1, 32), (64, 64)), ((299, 300), (320, 320))]
)
def test_an_image_is_drawn_on_the_next_canvas_that_the_scales_fit(size, canvas):
    assert skip_network.canvas(NETWORKS["paper"], *size) == canvas
    assert skip_network.code(jax.random.key(0), NETWORKS["paper"], *size).shape == (*canvas, 32)
