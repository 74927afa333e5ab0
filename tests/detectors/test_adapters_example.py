"""Attacks on somebody else's detector: the README's example, and universal over-firing."""

import textwrap

import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from ffjax import checkpoint, uap
from ffjax.detectors import adapters, layers
from ffjax.detectors.adapters import Convention, from_torch
from ffjax.engine import Compute
from ffjax.objectives import margin
from ffjax.uap import Source
from ffjax.universal import UapConfig
from ffjax.universal.patterns import lay_out

torch = pytest.importorskip("torch", reason="PyTorch modules need the extra: pip install 'ffjax[torch]'")
nn = torch.nn
SHAPE = (16, 16, 3)


@pytest.mark.slow
def test_over_firing_runs_on_somebody_elses_network(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(125, 2)
    )
    says = Convention(bounds=(0, 1), output="logits", fake=1)
    detector, variables = from_torch(net, SHAPE, says, layers=("1", "3"))
    source = Source("theirs", Partial(detector.apply, variables), layers(detector))
    config = UapConfig(steps=20, seeds=(0, 1), check=5)
    patterns = lay_out(config, [("theirs", source.layers)])
    fired = []
    state = uap.make(
        config, patterns, [source], SHAPE, Compute(), checkpoint.snapshots(tmp_path), lambda _, i: fired.append(i)
    )
    assert state.best.shape == (2, *SHAPE) and jnp.abs(state.best).max() <= 10 / 255 + 1e-7
    assert (fired[-1].objective[-1] > fired[0].objective[0]).all()


@pytest.mark.slow
def test_the_example_attacks_somebody_elses_detector(capsys):
    """The README's and the package docstring's ten lines, as they stand there."""
    example = textwrap.dedent(adapters.__doc__.split("means fake:\n\n")[1])
    names = {}
    torch.manual_seed(0)
    exec(compile(example, "example", "exec"), names)
    apply, variables = names["detector"].apply, names["variables"]
    clean, attacked = (margin(apply(variables, names[images])) for images in ("fakes", "attacked"))
    assert (attacked < clean).all() and capsys.readouterr().out.startswith("[Array(")
    assert jnp.abs(names["attacked"] - names["fakes"]).max() <= 8 / 255 + 1e-6
    assert names["attacked"].min() >= 0 and names["attacked"].max() <= 1
