"""The pool of Meso's first form, differentiated twice."""

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.detectors.pooling import first_maximum


def test_first_maximum_has_a_gradient_of_its_gradient_in_reverse():
    """As a penalty on input gradients takes it: of the sum of squares of d sum(w max(x)) / d x, by w and by x."""
    rng = np.random.default_rng(4)
    x, w = (jnp.asarray(rng.normal(size=size).astype(np.float32)) for size in ((3, 4, 5), (3, 5)))

    def penalty(x, w):
        slope = jax.grad(lambda x: jnp.sum(w * first_maximum(x, 1) ** 2))(x)
        return jnp.sum(slope**2)

    by_x, by_w = jax.jit(jax.grad(penalty, argnums=(0, 1)))(x, w)
    top = np.asarray(x).max(axis=1)  # the slope is 2 w m at the maximum m and 0 elsewhere
    np.testing.assert_allclose(by_w, 8 * np.asarray(w) * top**2, rtol=1e-5)
    at = np.asarray(x) == top[:, None]
    np.testing.assert_allclose(by_x, at * (8 * np.asarray(w) ** 2 * top)[:, None], rtol=1e-5)
