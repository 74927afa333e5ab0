"""Flax Linen modules, with the outputs of their layers as activations."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ffjax.detectors.adapters.build import Adapted, Shape, Ways, adapt, check_layers, declared
from ffjax.detectors.adapters.convention import Convention, Raw, read
from ffjax.types import Array, Variables


def from_linen(
    module: nn.Module,
    variables: Variables,
    shape: Shape,
    convention: Convention,
    *,
    layers: Sequence[str] | None = None,
    nonlinearity: Callable[[Array], Array] | None = None,
    inference: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    check: Any = True,
) -> Adapted:
    """A Flax Linen module with its variables as a Detector; its init draws new variables.

    module: its answer is as in `from_function`.
    layers: submodules, by path ('block1/Conv_0'), whose outputs are the activations, in the order they are computed; a
        layer called again gives 'path:2'. None: every nn.Conv, ConvTranspose and ConvLocal.
    nonlinearity: applied to the activations, for networks that apply it outside their layers (jax.nn.relu).
    inference, training: keyword arguments of the module's call ({'train': False}). Without `training` the detector's
        train refuses; with it, dropout draws from the key and every collection but 'params' is updated.
    Raises InputError for an unknown layer, listing the known ones, and as `from_function`.

        from_linen(net, variables, (64, 64, 3), says, inference={"train": False}, layers=("Conv_0", "Conv_3"))
    """
    arguments, shape = dict(inference or {}), declared("from_linen", shape, convention)

    def run(
        variables: Variables, images: Array, arguments: Mapping[str, Any], mutable: Sequence[str] = (), **rngs: Any
    ) -> tuple[Raw, Variables]:
        order = []

        def wanted(submodule: nn.Module, method: str) -> bool:
            path = "/".join(submodule.path)
            keep = method == "__call__" and (_is_conv(submodule) if layers is None else path in layers)
            order.extend([path] * keep)  # the only record of the order of depth: flax's own is by name
            return keep

        taken = {"capture_intermediates": wanted, "mutable": ["intermediates", *mutable]}
        result, state = _linen(module, variables, images, **arguments, **taken, **rngs)
        raw = read(result)
        if layers is not None or not raw.acts:  # a module's own activations stand unless layers are named
            raw = raw._replace(acts=_caught(order, state.get("intermediates", {}), nonlinearity))
        return raw, {name: state[name] for name in mutable if name in state}

    def train(variables: Variables, images: Array, key: Array) -> tuple[Any, Variables]:
        moving = [name for name in variables if name != "params"]
        result, updated = run(variables, images, training or {}, moving, rngs={"dropout": key})
        return result, {**variables, **updated}

    def init(key: Array) -> Variables:
        return module.init(key, _blank(shape, convention), **arguments)

    def call(variables: Variables, images: Array) -> Any:
        return run(variables, images, arguments)[0]

    ways = Ways(init=init, train=None if training is None else train)
    if layers is not None:
        check_layers("from_linen", layers, _paths(module, variables, _blank(shape, convention), arguments))
    return adapt("from_linen", call, variables, shape, convention, check, ways)


def _linen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.apply(*args, **kwargs)  # typed Any: what a module returns depends on `mutable`


def _is_conv(submodule: nn.Module) -> bool:
    return isinstance(submodule, (nn.Conv, nn.ConvTranspose, nn.ConvLocal))


def _blank(shape: Shape, convention: Convention) -> Array:
    h, w, c = shape
    return jnp.zeros((1, c, h, w) if convention.layout == "NCHW" else (1, h, w, c))


def _caught(order: Sequence[str], tree: Any, nonlinearity: Callable[[Array], Array] | None) -> OrderedDict[str, Array]:
    """What flax captured, as name -> activation in the order of the calls."""
    acts, apply = OrderedDict(), nonlinearity or (lambda x: x)
    for path in order:
        again = sum(name.split(":")[0] == path for name in acts)
        node = tree
        for part in path.split("/") if path else ():
            node = node[part]
        acts[f"{path}:{again + 1}" if again else path] = apply(node["__call__"][again])
    return acts


def _paths(module: nn.Module, variables: Variables, images: Array, arguments: Mapping[str, Any]) -> list[str]:
    """The paths of all submodules that are called. Nothing is computed."""
    paths = []

    def note(submodule: nn.Module, method: str) -> bool:
        paths.extend(["/".join(submodule.path)] * (method == "__call__"))
        return False

    def trace(variables: Variables) -> Any:
        return _linen(module, variables, images, **arguments, capture_intermediates=note, mutable=["intermediates"])

    jax.eval_shape(trace, variables)
    return [path for path in dict.fromkeys(paths) if path]
