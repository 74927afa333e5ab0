"""PyTorch modules: the forward and the gradient of the input, through callbacks from JAX."""

import copy
import functools
import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ffjax.detectors.adapters.build import Adapted, Shape, Ways, adapt, check_layers, declared, library, one_line
from ffjax.detectors.adapters.convention import Convention, Raw
from ffjax.errors import InputError
from ffjax.types import Array, Variables

Arrays = tuple[np.ndarray, ...]


def from_torch(
    module: Any, shape: Shape, convention: Convention, *, layers: Sequence[str] = (), check: Any = True
) -> Adapted:
    """A PyTorch module (extra `torch`) as a Detector: its forward and its input gradient, under jit, scan and vmap.

    module: images (B, C, H, W), or (B, H, W, C) if the convention says NHWC -> scores, or (scores, mask), the mask
        (B, h, w) or of one channel. A deep copy is taken and put into eval mode; the module itself keeps its modes,
        requires_grad flags and gradients, and training it further does not change the detector. The copy stays on
        the module's device; images travel through the host.
    layers: submodules, by their names in named_modules(), whose outputs are the activations, in the order given. Each
        is copied to JAX at every call, so name those that are read. TorchScript modules show none.
    Differentiable once, backwards: jax.jvp and second derivatives raise. The gradient runs the forward anew, so a
    value with its gradient costs two forwards and a backward, the gradient alone one of each.
    On a CPU that is split into several devices a callback and a collective can wait for each other: use one device.
    The variables hold no weights, only a digest of them (frozen TorchScript shows none to digest). Raises InputError
    for what is no module, an unknown layer (listing the known ones), and as `from_function`.

        from_torch(net, (64, 64, 3), Convention(bounds=(0, 1), mean=0.5, std=0.5, output="logits", fake=0))
    """
    torch = library("from_torch", "torch", "torch")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"from_torch: need a torch.nn.Module, got a {type(module).__name__}; wrap it in one")
    shape = declared("from_torch", shape, convention)
    check_layers("from_torch", layers, [name for name, _ in module.named_modules() if name])
    if layers and isinstance(module, torch.jit.ScriptModule):
        raise InputError("from_torch: the layers of a TorchScript module cannot be caught: give no layers")
    host = _Host(
        torch, _copied(torch, module), tuple(layers), (convention.layout or "NCHW") == "NCHW", threading.Lock()
    )
    call = _bridge(host, *_tried(host, shape))
    ways = Ways(layout="NCHW", turned=True)
    return adapt("from_torch", lambda _, images: call(images), _digest(host), shape, convention, check, ways)


class _Host(NamedTuple):
    """What a callback needs: the library, the copy of the module, the layers to catch, whether it takes NCHW, and a
    lock, since JAX may call from two threads and what is caught belongs to one."""

    torch: Any
    module: Any
    layers: tuple[str, ...]
    nchw: bool
    lock: threading.Lock


def _copied(torch: Any, module: Any) -> Any:
    if any(map(torch.nn.parameter.is_lazy, itertools.chain(module.parameters(), module.buffers()))):
        raise InputError("from_torch: the module has lazy layers without weights yet: call it on images first")
    try:
        with torch.no_grad():  # else TorchScript's copies are results of a computation, with a gradient
            twin = copy.deepcopy(module).eval()
            for parameter in twin.parameters():
                parameter.requires_grad_(False)
    except Exception as error:  # weights that are themselves results of a computation, for one
        raise InputError(f"from_torch: the module cannot be copied: {one_line(error)}") from error
    return twin


def _digest(host: _Host) -> Variables:
    """The weights as 32 bytes, by which a run that is resumed knows them again."""
    found = hashlib.sha256()
    for name, value in host.module.state_dict().items():
        if isinstance(value, host.torch.Tensor):
            found.update(name.encode() + value.cpu().to(host.torch.float64).numpy().tobytes())
    return {"digest": jnp.asarray(np.frombuffer(found.digest(), np.uint8))}


def _tried(host: _Host, shape: Shape) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """The shapes of the answers to one image, without its row, and whether there is a mask among them."""
    shapes = []
    for rows in (1, 2):
        with host.torch.no_grad():
            answers, masked = _run(host, host.torch.full((rows, *shape), 0.5))
        if not answers[0].is_floating_point():
            raise InputError(f"from_torch: scores are {answers[0].dtype}: a verdict has no margin")
        shapes.append([tuple(answer.shape) for answer in answers])
    for one, two in zip(*shapes, strict=True):
        if one != (1, *two[1:]) or two[0] != 2:
            raise InputError(f"from_torch: one image gives {one}, two give {two}: the batch is squeezed away or joined")
    return tuple(two[1:] for two in shapes[1]), masked


def _run(host: _Host, images: Any) -> tuple[list[Any], bool]:
    """Images (n, H, W, C) -> [scores, mask if any, activations], and whether there is a mask."""
    at = next((p for p in host.module.parameters() if p.is_floating_point()), images)
    x = images.permute(0, 3, 1, 2) if host.nchw else images
    # a copy, contiguous as authors expect it (`view`), and ours: some networks normalise their input in place
    x = x.clone(memory_format=host.torch.contiguous_format).to(at.device, at.dtype)
    caught: dict[str, Any] = {}
    with host.lock:
        hooks = [host.module.get_submodule(name).register_forward_hook(_catch(caught, name)) for name in host.layers]
        try:
            result = host.module(x)
        except Exception as error:  # whatever a foreign model raises
            sizes = tuple(x.shape)
            raise InputError(f"from_torch: the module refuses images of shape {sizes}: {one_line(error)}") from error
        finally:
            for hook in hooks:
                hook.remove()
    answers = list(result) if isinstance(result, (tuple, list)) and len(result) == 2 else [result]
    silent = [name for name in host.layers if name not in caught]
    if silent:
        raise InputError(f"from_torch: layer {silent[0]!r} was not called")
    every = answers + [caught[name] for name in host.layers]
    if not all(isinstance(answer, host.torch.Tensor) for answer in every):
        kinds = ", ".join(type(answer).__name__ for answer in every)
        raise InputError(
            f"from_torch: got {kinds}; wrap the module in one that returns scores or (scores, mask) tensors"
        )
    return every, len(answers) == 2


def _catch(caught: dict[str, Any], name: str) -> Callable[..., None]:
    """A hook that keeps the output of a layer's first call."""

    def hook(module: Any, arguments: Any, output: Any) -> None:
        caught.setdefault(name, output)

    return hook


def _bridge(host: _Host, shapes: tuple[tuple[int, ...], ...], masked: bool) -> Callable[[Array], Raw]:
    """The module as a JAX function, with the gradient that PyTorch gives."""

    @_once
    def forward(images: Array) -> tuple[Array, ...]:
        answers = tuple(jax.ShapeDtypeStruct((images.shape[0], *shape), jnp.float32) for shape in shapes)
        ask = functools.partial(_forward, host)
        return jax.pure_callback(ask, answers, images, vmap_method="broadcast_all")

    def backward(images: Array, cotangents: tuple[Any, ...]) -> tuple[Array]:
        # answers that nothing reads are not sent back: a large network's activations would be mostly zeros
        live = tuple(i for i, c in enumerate(cotangents) if not isinstance(c, SymbolicZero))
        return (_pullback(host, live)(images, *(cotangents[i] for i in live)),)

    call = jax.custom_vjp(forward)
    call.defvjp(lambda images: (forward(images.value), images.value), backward, symbolic_zeros=True)

    def raw(images: Array) -> Raw:
        scores, *rest = call(images)
        mask = rest.pop(0) if masked else None
        return Raw(scores, mask, OrderedDict(zip(host.layers, rest, strict=True)))

    return raw


def _pullback(host: _Host, live: tuple[int, ...]) -> Callable[..., Array]:
    """(images, cotangents of the answers numbered in `live`) -> the gradient of images."""

    @_once
    def pull(images: Array, *cotangents: Array) -> Array:
        back = functools.partial(_backward, host, live)
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return jax.pure_callback(back, shape, images, *cotangents, vmap_method="broadcast_all")

    return pull


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing to be differentiated: it runs where a first derivative is taken already."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise InputError("from_torch: a PyTorch detector can be differentiated once, and this asks for a second time")

    return guarded


def _tensor(host: _Host, array: Any, row: int) -> Any:
    """An array as a tensor without copying, its leading axes joined so that `row` axes of one row remain."""
    tensor = host.torch.from_dlpack(jax.block_until_ready(array))
    return tensor.reshape(-1, *tensor.shape[tensor.ndim - row :])


def _forward(host: _Host, images: Array) -> Arrays:
    """Runs on the host: images (..., H, W, C) -> answers (..., and a row's shape)."""
    with host.torch.no_grad():
        answers, _ = _run(host, _tensor(host, images, 3))
    return tuple(_array(answer, images.shape[:-3]) for answer in answers)


def _backward(host: _Host, live: tuple[int, ...], images: Array, *cotangents: Array) -> np.ndarray:
    """Runs on the host: the gradient of images (..., H, W, C)."""
    leaf, lead = _tensor(host, images, 3).detach().requires_grad_(), images.ndim - 3
    with host.torch.enable_grad():
        answers, _ = _run(host, leaf)
        pairs = [(answers[i], _tensor(host, c, c.ndim - lead)) for i, c in zip(live, cotangents, strict=True)]
        pairs = [(answer, c.to(answer.device, answer.dtype)) for answer, c in pairs if answer.requires_grad]
        gradient = _gradient(host, leaf, pairs)
    return np.zeros(images.shape, np.float32) if gradient is None else _array(gradient, images.shape[:-3])


def _gradient(host: _Host, leaf: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    """d sum <answer, cotangent> / d leaf, or None where nothing depends on it."""
    if not pairs:
        return None
    answers, cotangents = zip(*pairs, strict=True)
    return host.torch.autograd.grad(answers, leaf, cotangents, allow_unused=True)[0]


def _array(tensor: Any, lead: tuple[int, ...]) -> np.ndarray:
    return tensor.detach().float().cpu().numpy().reshape(*lead, *tensor.shape[1:])
