"""From a foreign model's call to a Detector: the conventions applied, the shapes tried, the checks run."""

import importlib
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.detectors import checks
from ffjax.detectors.adapters.convention import Convention, Layout, prepare, read, to_outputs
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Outputs, Variables

Call = Callable[[Variables, Array], Any]
"""(variables, images as the model takes them) -> its answer in its own terms: anything `read` knows."""

Bounds = tuple[float, float]
Shape = tuple[int, int, int]


def _logged(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], InputError))


# JAX logs a page of traceback for what a callback raises before it raises it again: our one line needs no such company
logging.getLogger("jax._src.callback").addFilter(_logged)


class Adapted(NamedTuple):
    """Somebody else's model as ours, with its weights: `Partial(detector.apply, variables)` is the Forward to attack,
    `Loaded(name, *adapted, {})` an entry of a study."""

    detector: Detector
    variables: Variables


class Ways(NamedTuple):
    """Where one adapter differs from the rest.

    layout: the axes of images, activations and mask where the convention leaves them open. init, train: as in
        Detector, train in the model's own terms; None: init gives the weights that came with the model, train refuses.
    turned: the call turns the axes of images itself. cheap: asking is free, so gradients and other bounds are tried.
    """

    layout: Layout = "NHWC"
    init: Callable[[Array], Variables] | None = None
    train: Callable[[Variables, Array, Array], tuple[Any, Variables]] | None = None
    turned: bool = False
    cheap: bool = True


def adapt(
    who: str,
    call: Call,
    variables: Variables,
    shape: Shape,
    convention: Convention,
    check: Any = True,
    ways: Ways = Ways(),  # noqa: B008 (a NamedTuple does not change)
) -> Adapted:
    """A foreign call as a Detector for images of `shape` (H, W, C), checked unless check is False.

    who: begins every message. check: True, or images (B, H, W, C) in [0, 1] to check with besides black, grey and
    white ones. Raises InputError, and warns with checks.DetectorWarning, as `checks` says.
    """
    shape = declared(who, shape, convention)
    nchw = (convention.layout or ways.layout) == "NCHW"

    def taken(images: Array, bounds: Bounds | None = None) -> Array:
        _check_images(images, shape)
        x = prepare(images, convention, bounds)
        return jnp.transpose(x, (0, 3, 1, 2)) if nchw and not ways.turned else x

    def apply(variables: Variables, images: Array) -> Outputs:
        return to_outputs(read(call(variables, taken(images))), convention, nchw)

    def train(variables: Variables, images: Array, key: Array) -> tuple[Outputs, Variables]:
        if ways.train is None:
            raise InputError(f"{who}: no training forward came with this model: it was brought to be attacked")
        result, updated = ways.train(variables, taken(images), key)
        return to_outputs(read(result), convention, nchw), updated

    def scores(variables: Variables, images: Array, bounds: Bounds) -> tuple[Array, Array, Array | None]:
        raw = read(call(variables, taken(images, bounds)))
        logits = to_outputs(raw, convention, nchw).logits
        return raw.scores, logits[:, 1] - logits[:, 0], raw.mask

    detector = Detector(ways.init or (lambda key: variables), apply, train, shape)
    _try_shapes(who, detector, variables)
    if check is not False:
        _check(who, detector, variables, convention, check, scores, ways.cheap)
    return Adapted(detector, variables)


def _check(who, detector, variables, convention, check, scores, cheap: bool) -> None:
    """Everything in `checks`: the raw scores first, since what they are declared to be explains most other faults."""
    images = checks.with_plain(checks.textures(detector.shape) if check is True else check, detector.shape)
    ask, memo = jax.jit(scores), {}
    squashed = ["logits"] * (convention.output in ("probabilities", "probability"))
    squashed += ["mask"] * (convention.mask == "probabilities")

    def asked(bounds: Bounds) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if bounds not in memo:  # a model that is asked over a network is not asked twice
            memo[bounds] = jax.tree.map(np.asarray, ask(variables, images, bounds))
        return memo[bounds]

    def found() -> Iterator[str]:  # one after the other: a warning is the reason for a refusal that may follow
        raw, _, mask = asked(convention.bounds)
        yield from checks.examine_scores(raw, convention.output, name=who)
        yield from () if mask is None else checks.examine_mask(mask, convention.mask, name=who)
        if cheap and np.all(np.equal(convention.std, 1)):  # a deviation has given the scale away already
            yield from checks.examine_bounds(lambda bounds: asked(bounds)[1], convention.bounds, name=who)
        own = images[len(checks.PLAIN) :]
        yield from checks.examine(detector, variables, own, gradient=cheap, name=who, squashed=squashed)

    try:
        for message in found():
            warnings.warn(message, checks.DetectorWarning, stacklevel=4)
    except jax.errors.JaxRuntimeError as error:  # what a callback raised comes wrapped in a traceback
        said = _raised(error)
        raise InputError(
            said if said.startswith(who) else f"{who}: the model fails when it is called: {said}"
        ) from error


def _try_shapes(who: str, detector: Detector, variables: Variables) -> None:
    """Traces the model for one image and for eight, so that what it cannot take is said now and in one line."""
    for rows in (1, 8):
        images = jax.ShapeDtypeStruct((rows, *detector.shape), jnp.float32)
        try:
            logits = jax.eval_shape(detector.apply, variables, images).logits
        except InputError as error:
            raise InputError(f"{who}: {error}") from None
        except Exception as error:  # whatever a foreign model raises
            raise InputError(
                f"{who}: the model refuses {rows} images of {detector.shape}: {one_line(error)}"
            ) from error
        if logits.shape[0] != rows:
            raise InputError(f"{who}: {rows} images give {logits.shape[0]} scores: the model joins or drops rows")


def declared(who: str, shape: Any, convention: Any) -> Shape:
    """The shape, given in any sequence, as a tuple. InputError where it or the convention is none, or they disagree."""
    if not isinstance(convention, Convention):
        raise InputError(f"{who}: need a Convention, got a {type(convention).__name__}")
    try:
        h, w, c = map(operator.index, shape)
    except (TypeError, ValueError):
        h = w = c = 0
    if min(h, w, c) < 1:
        raise InputError(f"{who}: shape must be (height, width, channels) in whole numbers, got {shape!r}")
    shape = (h, w, c)
    if convention.channels == "BGR" and shape[2] != 3:
        raise InputError(f"{who}: BGR was declared for images of {shape[2]} channels")
    for name in ("mean", "std"):
        if np.size(getattr(convention, name)) not in (1, shape[2]):
            raise InputError(f"{who}: {name} has {np.size(getattr(convention, name))} values for {shape[2]} channels")
    return shape


def _check_images(images: Array, shape: Shape) -> None:
    if images.ndim != 4 or images.shape[1:] != shape:
        sides = ", ".join(map(str, shape))
        raise InputError(f"images of shape {tuple(images.shape)} given to a detector of (B, {sides})")


def check_layers(who: str, layers: Sequence[str], known: Sequence[str]) -> None:
    """InputError for the first name that is not known, listing those that are."""
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise InputError(f"{who}: unknown layer {unknown[0]!r}; known: {', '.join(known)}")


def library(who: str, name: str, extra: str) -> Any:
    """An optional library. InputError, saying how to install it, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{who}: needs {name}: pip install 'ffjax[{extra}]' ({one_line(error)})") from None


def _raised(error: BaseException) -> str:
    """The last line of a traceback inside a message; ours without the name of its class."""
    found = re.findall(r"^\S*(?:Error|Exception)\b: .*$", str(error), re.MULTILINE)
    return found[-1].removeprefix("InputError: ")[:200] if found else one_line(error)


def one_line(error: BaseException) -> str:
    """The first line of an error that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
