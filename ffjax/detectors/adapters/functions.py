"""Models that are JAX already: plain functions, Flax NNX modules, Keras 3 models on the JAX backend."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from ffjax.detectors.adapters.build import Adapted, Shape, Ways, adapt, check_layers, library
from ffjax.detectors.adapters.convention import Convention
from ffjax.errors import InputError
from ffjax.types import Array, Variables


def from_function(
    fn: Callable[..., Any],
    shape: Shape,
    convention: Convention,
    variables: Variables | None = None,
    *,
    check: Any = True,
) -> Adapted:
    """A pure JAX function images -> answer, or (variables, images) -> answer if variables are given, as a Detector.

    answer: scores; or (scores, {name: activation}), an OrderedDict if fn is jitted, in order of depth; or Outputs whose
    logits are the scores. shape: (H, W, C) of one image of ffjax. Pass weights as `variables`: what a function closes
    over is compiled in as a constant. Raises InputError, and warns, as `checks` says; check=False asks nothing.

        from_function(lambda x: x.mean((1, 2, 3)), (64, 64, 3), Convention(bounds=(0, 1), output="logit", fake="high"))
    """
    call = (lambda _, images: fn(images)) if variables is None else fn
    return adapt("from_function", call, {} if variables is None else variables, shape, convention, check)


def from_nnx(model: nnx.Module, shape: Shape, convention: Convention, *, check: Any = True) -> Adapted:
    """A Flax NNX model as a Detector: split into its graph and its state, which is the variables; always in eval mode.

    The model itself is neither changed nor looked at again. Its answer is as in `from_function`; to show activations it
    returns (scores, {name: activation}). train runs the model in train mode with its random streams reseeded from the
    key, and returns the updated state. Raises InputError as `from_function`.

        from_nnx(net, (64, 64, 3), Convention(bounds=(-1, 1), output="logits", fake=1))
    """
    graph, *states = nnx.split(model, nnx.RngState, ...)  # random streams are no weights
    streams, variables = jax.tree.map(lambda leaf: leaf, states)  # NNX updates in place: these must not be its own

    def call(variables: Variables, images: Array) -> Any:
        copy: Any = nnx.merge(graph, streams, variables, copy=True)
        copy.eval()
        return copy(images)

    def train(variables: Variables, images: Array, key: Array) -> tuple[Any, Variables]:
        copy: Any = nnx.merge(graph, streams, variables, copy=True)
        copy.train()
        keys: dict[str, Any] = {name: jax.random.fold_in(key, i) for i, name in enumerate(_streams(streams))}
        nnx.reseed(copy, **keys)
        return copy(images), nnx.state(copy, nnx.RngState, ...)[1]

    return adapt("from_nnx", call, variables, shape, convention, check, Ways(train=train))


def _streams(state: Any) -> list[str]:
    """The names of a model's random streams."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return sorted({leaf.tag for leaf in leaves if isinstance(leaf, nnx.RngKey)})


def from_keras(
    model: Any, convention: Convention, shape: Shape | None = None, *, layers: Sequence[str] = (), check: Any = True
) -> Adapted:
    """A built Keras 3 model on the JAX backend (extra `keras`) as a Detector, called with training=False.

    shape: (H, W, C); None: the model's own input shape, where that is fixed. layers: names of layers of a functional or
    sequential model whose outputs are the activations, in the order given. Raises InputError for another backend, a
    shape that is not fixed, an unknown layer (listing the known ones), and as `from_function`.

        from_keras(model, Convention(bounds=(0, 1), output="probability", fake="low"), layers=("conv2d", "conv2d_1"))
    """
    keras = library("from_keras", "keras", "keras")
    backend = keras.backend.backend()
    if backend != "jax":
        raise InputError(f"from_keras: Keras runs on {backend}; set KERAS_BACKEND=jax before it is imported")
    check_layers("from_keras", layers, [layer.name for layer in model.layers])
    tapped = (
        keras.Model(model.inputs, [model.outputs, [model.get_layer(n).output for n in layers]]) if layers else model
    )
    variables = {
        "trainable": [v.value for v in tapped.trainable_variables],
        "non_trainable": [v.value for v in tapped.non_trainable_variables],
    }

    def call(variables: Variables, images: Array) -> Any:
        result, _ = tapped.stateless_call(variables["trainable"], variables["non_trainable"], images, training=False)
        if not layers:
            return result
        scores, acts = result
        return scores[0], OrderedDict(zip(layers, acts, strict=True))

    return adapt(
        "from_keras", call, variables, _keras_shape(model, convention) if shape is None else shape, convention, check
    )


def _keras_shape(model: Any, convention: Convention) -> Shape:
    sides = tuple(model.input_shape[1:])
    if len(sides) != 3 or None in sides:
        raise InputError(f"from_keras: the model takes images of {sides}: give shape=(height, width, channels)")
    return (sides[1], sides[2], sides[0]) if convention.layout == "NCHW" else (sides[0], sides[1], sides[2])
