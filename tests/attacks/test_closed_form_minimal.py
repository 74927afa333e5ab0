"""The least distance on a linear detector where the box [0, 1] cuts in, against an oracle (inside the box:
test_minimal_norm, and test_carlini_wagner)."""

import interior
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_minimal_norm import least

from ffjax import engine, goals
from ffjax.attacks import ATTACKS
from ffjax.engine import Compute
from ffjax.objectives import margin
from ffjax.types import AttackResult, Batch, Outputs

COMPUTE = Compute(batch=16, least=16, devices=1, execution="fused")
CORNERED = oracles.cornered(16)


def attacked(name, norm) -> AttackResult:
    return engine.run(ATTACKS[name].build(goals.verdict(), norm), interior.FORWARD, CORNERED, np.inf, 0, COMPUTE)


CLOSEST = {
    ("deepfool", "linf"): 1.02, ("deepfool", "l2"): 1.02, ("ddn", "l2"): 1.05, ("fmn", "linf"): 1.02,
    ("fmn", "l2"): 1.02, ("fmn", "l1"): 1.02, ("fab", "linf"): 1.02, ("fab", "l2"): 1.02, ("fab", "l1"): 1.02,
}  # fmt: skip


@pytest.mark.parametrize(("name", "norm"), CLOSEST, ids=[f"{name}-{norm}" for name, norm in CLOSEST])
def test_the_least_distance_where_the_box_cuts_in(name, norm):
    result, oracle = attacked(name, norm), closest(norm)
    assert result.success.all()
    assert (result.distance / oracle).min() > 0.999 and (result.distance / oracle).max() < CLOSEST[name, norm]


def test_the_fewest_components_where_the_box_cuts_in():
    """A whole number: one component too many is half as many again of two."""
    result, oracle = attacked("fmn", "l0"), closest("l0")
    assert result.success.all() and np.all(result.distance >= oracle)
    assert np.all(result.distance <= oracle + 1) and np.mean(result.distance == oracle) > 0.7


def test_the_fewest_components_among_many():
    """Of 6,912, where a step of a length in l_2 leaves next to nothing to each and half of these rows would not be
    broken."""
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(48, 48, 3)).astype(np.float32)
    pictures = rng.uniform(0, 1, (8, *slope.shape)).astype(np.float32)
    gaps = np.linspace(20, 120, 8)
    batch = Batch(pictures, np.zeros(8, np.int32), np.arange(8, dtype=np.int32))

    def forward(images):
        said = jnp.einsum("nijk,ijk->n", images - pictures, slope, precision="highest") - gaps
        return Outputs(jnp.stack([jnp.zeros(8), said], 1), None, {})

    compute = Compute(batch=8, least=8, devices=1, execution="fused")
    process = ATTACKS["fmn"].build(goals.verdict(), "l0")
    result = engine.run(process, jax.tree_util.Partial(forward), batch, np.inf, 0, compute)
    oracle = np.array([oracles.cheapest(x, slope, gap, "l0") for x, gap in zip(pictures, gaps, strict=True)])
    assert oracle.min() > 5 and oracle.max() > 40
    assert result.success.all() and np.all(result.distance >= oracle) and (result.distance / oracle).max() < 1.6


def closest(norm) -> np.ndarray:
    said = np.abs(np.asarray(margin(interior.FORWARD(CORNERED.images)), np.float64))  # type: ignore[arg-type]
    ways = oracles.toward(CORNERED)
    rows = zip(CORNERED.images, ways, said, strict=True)
    return np.array([oracles.cheapest(x, way, gap, norm) for x, way, gap in rows])


@given(
    x=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=6, max_size=6),
    slope=st.lists(st.sampled_from([-3.0, -1.0, 0.5, 2.0]), min_size=6, max_size=6),
    share=st.floats(0.05, 0.95),
    norm=st.sampled_from(["linf", "l2", "l1"]),
)
def test_the_oracle_agrees_with_linear_programs(x, slope, share, norm):
    x, slope = np.array(x), np.array(slope)
    gap = share * oracles.most(x, slope, 1e6, norm)
    if gap > 0:
        np.testing.assert_allclose(oracles.cheapest(x, slope, gap, norm), least(x, slope, gap, norm), rtol=2e-3)
