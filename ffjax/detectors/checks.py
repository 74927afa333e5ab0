"""Is a detector what it is declared to be, and can it be attacked at all? Asked before an attack, answered in words.

Every fault here has passed unnoticed in published work and looked like robustness or like success: probabilities taken
for logits, gradients that are zero because something was detached, rows that share batch statistics (PEERS 4a, 23-26).
A fault that makes every result wrong raises InputError; one that may be meant is returned as a warning.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ffjax.errors import InputError
from ffjax.types import Array, Detector, Forward, Outputs, Variables

PLAIN = {"black": 0.0, "grey": 0.5, "white": 1.0}
EXACT = 1e-5
"""Two answers of one program to the same row in the same place are the same if they differ by less than this share of
the answer's size: they are computed alike and come out bit-equal, but for sums that a GPU orders by chance."""
SHARE, ROUNDING = 1e-3, 1e-4
"""In another place, or in a batch of another size, a row may be computed by another kernel: a difference of this share
of the answer's spread over images, plus this share of its size, is rounding. Whatever depends on the values of other
rows, however little, has been told by EXACT."""
RESOLVED = 1e-6
"""What float32 tells apart in a probability near 1, a few units in the last place, of which a logarithm makes much."""
LARGE = 17
"""Rows that a batch has at least where rows are asked about among others: some networks join rows from 16 on."""
BOUNDS = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))
SATURATED = 25.0
"""A margin past which a float32 probability says nothing more (the logarithm of 1e-11)."""


class DetectorWarning(UserWarning):
    """A detector does something that may be meant but usually is a mistake."""


def textures(shape: tuple[int, int, int]) -> np.ndarray:
    """(6, H, W, C) float32 in [0, 1], always the same: two each of noise, of faint noise and of random blocks."""
    rng, (h, w, c) = np.random.default_rng(0), shape
    noise = rng.uniform(size=(4, h, w, c))
    noise[2:] = 0.4 + 0.2 * noise[2:]
    blocks = rng.uniform(size=(2, 4, 4, c)).repeat(-(-h // 4), axis=1).repeat(-(-w // 4), axis=2)
    return np.concatenate([noise, blocks[:, :h, :w]]).astype(np.float32)


def with_plain(images: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """A black, a grey and a white image before `images`, (B, H, W, C) float32. InputError if those do not fit."""
    try:
        images = np.asarray(images, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"check: need two or more images of {tuple(shape)}, got {type(images).__name__}") from None
    if images.ndim != 4 or images.shape[1:] != tuple(shape) or len(images) < 2:
        raise InputError(f"check: need two or more images of {tuple(shape)}, got an array of {images.shape}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise InputError(f"check: images must lie in [0, 1], got {images.min():g} to {images.max():g}")
    plain = [np.full((1, *shape), grey, np.float32) for grey in PLAIN.values()]
    return np.concatenate([*plain, images])


def examine(
    detector: Detector,
    variables: Variables,
    images: Any,
    *,
    gradient: bool = True,
    name: str = "detector",
    squashed: Sequence[str] = (),
) -> tuple[str, ...]:
    """Runs a detector on black, grey and white images and on `images` (B, H, W, C) in [0, 1], at least two.

    Raises InputError, in one line that begins with `name`: outputs of a wrong shape or type; values that are not
    finite; two calls that differ; rows that depend on their batch-mates, their place or the size of the batch, up to
    twice this one and 17 rows at least; a gradient of a head (verdict, mask) that is zero or not finite on all of
    `images`. Returns, as one line each: gradients that are zero on some of them, or not finite on plain ones.
    gradient=False leaves gradients out. squashed: heads ("logits", "mask") that are logarithms of probabilities, where
    the rounding of these is no fault.
    Cost: two forwards of the batch, two of twice the batch and one of a single image, and a gradient per head. Matrix
    products are computed in full float32, so that an accelerator's rounding is not taken for a fault.
    """
    batch = jnp.asarray(with_plain(images, detector.shape))
    ask = Partial(jax.jit(detector.apply), variables)  # a jit of its own, which forgets the model with it
    with jax.default_matmul_precision("highest"):
        first = ask(batch)
        _check_shapes(first, len(batch), name)
        _check_finite(first, name)
        _check_repeats(first, ask(batch), name, squashed)
        _check_rows(ask, batch, first, name, squashed)
        return tuple(_gradients(ask, batch, first, name)) if gradient else ()


def _heads(outputs: Outputs) -> dict[str, np.ndarray]:
    """What is compared: every output by the name a message calls it."""
    heads = {"logits": outputs.logits} | ({} if outputs.mask is None else {"mask": outputs.mask})
    return {k: np.asarray(v) for k, v in (heads | {f"activation {k}": v for k, v in outputs.acts.items()}).items()}


def _check_shapes(outputs: Outputs, rows: int, name: str) -> None:
    for head, value in _heads(outputs).items():
        ndim = {"logits": 2, "mask": 3}.get(head, 4)
        if value.ndim != ndim or value.shape[0] != rows or (head == "logits" and value.shape[1] != 2):
            wanted = {"logits": "(B, 2)", "mask": "(B, h, w)"}.get(head, "(B, h, w, c)")
            raise InputError(f"{name}: {head} of shape {value.shape} for {rows} images, not {wanted}")
        if value.dtype != np.float32:
            raise InputError(f"{name}: {head} is {value.dtype}, not float32")


def _check_finite(outputs: Outputs, name: str) -> None:
    for head, value in _heads(outputs).items():
        bad = [_image(i) for i in np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))]
        if bad:
            raise InputError(f"{name}: {head} is NaN or infinite on {', '.join(bad)}")


def _image(row: Any) -> str:
    """What a row of the batch is called."""
    return f"a {list(PLAIN)[row]} image" if row < len(PLAIN) else f"image {row - len(PLAIN)}"


def _check_repeats(first: Outputs, again: Outputs, name: str, squashed: Sequence[str]) -> None:
    for head, (apart, _) in _apart(first, again, squashed, exact=True):
        raise InputError(
            f"{name}: two calls on the same images differ by {apart:.2g} in {head}: dropout or noise is on"
        )


def _check_rows(forward: Forward, batch: Array, first: Outputs, name: str, squashed: Sequence[str]) -> None:
    """The same image among others, in another place and alone must get the same answer."""
    rows, mates = len(batch), (1 - batch / 2, batch[::-1])
    many = [jnp.resize(extra, (max(rows, LARGE - rows), *batch.shape[1:])) for extra in mates]
    some, others = (forward(jnp.concatenate([batch, extra])) for extra in many)
    for head, (apart, row) in _apart(_rows(some, 0, rows), _rows(others, 0, rows), squashed, exact=True):
        raise InputError(
            f"{name}: rows influence each other: {head} of {_image(row)} moves by {apart:.2g} "
            "with its batch-mates (statistics or a normaliser over the batch?)"
        )
    for head, (apart, row) in _apart(first, _rows(others, 0, rows), squashed):
        raise InputError(f"{name}: {head} of {_image(row)} moves by {apart:.2g} with the size of the batch")
    turned = jax.tree.map(lambda x: x[::-1], _rows(others, rows, 2 * rows))
    for head, (apart, row) in _apart(first, turned, squashed):
        raise InputError(f"{name}: {head} of {_image(row)} moves by {apart:.2g} with its place in the batch")
    # the faintest image: alone, it has neither the range nor the statistics of the batch
    lone = len(PLAIN) + int(np.ptp(np.asarray(batch[len(PLAIN) :]), axis=(1, 2, 3)).argmin())
    alone = forward(batch[lone : lone + 1])
    _check_shapes(alone, 1, name)
    for head, (apart, _) in _apart(first, alone, squashed, lone):
        raise InputError(f"{name}: {head} of {_image(lone)} moves by {apart:.2g} when it is asked about alone")


def _rows(outputs: Outputs, start: int, stop: int) -> Outputs:
    return jax.tree.map(lambda x: x[start:stop], outputs)


def _apart(
    first: Outputs, second: Outputs, squashed: Sequence[str], lone: int | None = None, exact: bool = False
) -> Iterator[tuple[str, tuple[float, int]]]:
    """(head, (largest difference, its row)) of the heads that are not the same. `first` is the whole batch; `second`
    is either as long, or the one row `lone`."""
    for (head, a), b in zip(_heads(first).items(), _heads(second).values(), strict=True):
        size, spread = np.abs(a).max(), np.ptp(a, axis=0).max()
        ours = a if lone is None else a[lone : lone + 1]
        allowed = EXACT * size if exact else SHARE * spread + ROUNDING * size
        allowed = allowed + (RESOLVED * np.exp(np.abs(ours)) if head in squashed else 0)
        gaps = np.abs(ours - b)
        over = (gaps - allowed).reshape(len(ours), -1).max(axis=1)
        if not over.max() <= 0:
            row = int(over.argmax())
            yield head, (float(gaps[row].max()), row)


def _gradients(forward: Forward, batch: Array, first: Outputs, name: str) -> Iterator[str]:
    """Warnings about the input gradient of every head; InputError if it cannot be used at all."""
    own, margins = np.arange(len(batch)) >= len(PLAIN), np.asarray(first.logits[:, 1] - first.logits[:, 0])
    for head in ("verdict",) if first.mask is None else ("verdict", "mask"):
        grads = np.asarray(_gradient(forward, batch, head)).reshape(len(batch), -1)
        finite = np.asarray(np.isfinite(grads).all(axis=1))
        dead = np.asarray((grads == 0).all(axis=1))
        wild = f"{name}: the gradient of the {head} is NaN or infinite on {_named(~finite)}"
        if not finite[own].all():
            raise InputError(wild)
        if not finite.all():
            yield wild
        if dead[own].all():
            full = " (verdicts are saturated)" if head == "verdict" and _saturated(2 * margins[own]) else ""
            raise InputError(
                f"{name}: the gradient of the {head} is zero on every image{full}: detached, rounded or thresholded "
                "inside; an attack would take that for robustness"
            )
        if dead[own].any():
            yield f"{name}: the gradient of the {head} is zero on {_named(dead & own)}"


def _named(rows: np.ndarray) -> str:
    return ", ".join(_image(i) for i in np.flatnonzero(rows))


def _gradient(forward: Forward, images: Array, head: str) -> Array:
    """d head / d image, each row's own; a mask is weighed by random signs, so that no symmetry cancels it."""

    def total(images: Array) -> Array:
        outputs = forward(images)
        if head == "verdict" or outputs.mask is None:
            return jnp.sum(outputs.logits[:, 1] - outputs.logits[:, 0])
        return jnp.sum(outputs.mask * jax.random.rademacher(jax.random.key(0), outputs.mask.shape, jnp.float32))

    return jax.grad(total)(images)


def examine_scores(scores: np.ndarray, output: str, *, name: str = "detector") -> tuple[str, ...]:
    """Raw scores of several images, (B, K), (B, 1) or (B,), against what they are declared to be (Convention.output).

    Raises InputError for scores that are the same for all images, for softmax probabilities declared as logits and for
    logits declared as probabilities. Returns warnings of what logits may do, but seldom by chance: all lie in [0, 1],
    as a sigmoid's do, or have rows of one sum other than 0, as a scaled softmax's; and of scores that take two values
    only. A scaled sigmoid passes: nothing tells it from a logit.
    """
    rows = scores.reshape(len(scores), -1)
    if not np.isfinite(rows).all():
        raise InputError(f"{name}: scores are NaN or infinite")
    if (np.ptp(rows, axis=0) <= 1e-6 * np.abs(rows).max(axis=0)).all():
        raise InputError(
            f"{name}: all {len(rows)} images get the same scores: it is dead, given wrong bounds, or needs photographs "
            "(give some as check=)"
        )
    found = _unlike_logits(rows, output, name) if output in ("logits", "logit") else ()
    if output in ("probabilities", "probability"):
        _check_probabilities(rows, output, name)
    if max(len(np.unique(column)) for column in rows.T) <= 2:
        found += (
            f"{name}: scores take only the values {', '.join(f'{value:.4g}' for value in np.unique(rows))}: decisions, "
            "or saturated by wrong bounds; only decision-based attacks make sense",
        )
    return found


def _inside(values: np.ndarray) -> bool:
    """Whether values could be probabilities."""
    return bool(values.min() >= -1e-6 and values.max() <= 1 + 1e-6)


def _unlike_logits(rows: np.ndarray, output: str, name: str) -> tuple[str, ...]:
    sums, moved = rows.sum(axis=1), np.ptp(rows, axis=0).max()
    if output == "logits" and _inside(rows) and np.abs(sums - 1).max() < 1e-3:
        raise InputError(
            f"{name}: declared logits, but every row lies in [0, 1] and sums to 1: these are probabilities"
        )
    if output == "logit" and _inside(rows):
        return (f"{name}: declared a logit, but every score lies in [0, 1]: if it is a sigmoid, declare 'probability'",)
    if output == "logits" and _inside(rows):
        return (
            f"{name}: declared logits, but every score lies in [0, 1]: a sigmoid per class? (an untrained network may)",
        )
    if output == "logits" and np.ptp(sums) < 1e-3 * moved and np.abs(sums).max() > 1e-3 * np.abs(rows).max():
        return (f"{name}: declared logits, but every row sums to {sums[0]:.4g}: a softmax, scaled?",)
    return ()


def _check_probabilities(rows: np.ndarray, output: str, name: str) -> None:
    sums = rows.sum(axis=1)
    if not _inside(rows):
        raise InputError(
            f"{name}: declared {output}, but scores range from {rows.min():.3g} to {rows.max():.3g}: these are logits"
        )
    if output == "probabilities" and np.abs(sums - 1).max() > 1e-3:
        raise InputError(
            f"{name}: declared probabilities, but rows sum to {sums.min():.3g} .. {sums.max():.3g}, not 1: "
            "logits, or a sigmoid per class"
        )


def examine_mask(mask: np.ndarray, kind: str, *, name: str = "detector") -> tuple[str, ...]:
    """A raw mask against what it is declared to hold (Convention.mask). InputError for logits declared as
    probabilities; a warning for logits that all lie in [0, 1]."""
    if kind == "probabilities" and np.isfinite(mask).all() and not _inside(mask):
        raise InputError(
            f"{name}: declared a mask of probabilities, but it ranges from {mask.min():.3g} to {mask.max():.3g}: logits"
        )
    if kind == "logits" and _inside(mask):
        return (f"{name}: declared a mask of logits, but all of it lies in [0, 1]: probabilities?",)
    return ()


def examine_bounds(
    margins: Callable[[tuple[float, float]], np.ndarray], bounds: tuple[float, float], *, name: str = "detector"
) -> tuple[str, ...]:
    """A warning if declared bounds look wrong: verdicts that hardly move over all images, or are saturated on most, and
    do neither under other usual bounds. margins: bounds -> (B,) z_fake - z_real of the same images.

    It cannot tell apart bounds under which both look alive, such as (0, 1) and (-1, 1), and where a deviation has been
    declared, which gives the scale away, nothing is known: there bounds are the caller's word.
    """
    said = margins(bounds)
    fault = "hardly move over all images" if _stiff(said) else "are saturated" if _saturated(said) else ""
    for other in BOUNDS if fault else ():
        found = margins(other)
        alive = np.ptp(found) > np.abs(found).max() / 4 and not _saturated(found)
        if other != bounds and alive:
            return (f"{name}: bounds {bounds} look wrong: verdicts {fault}, but not under {other}",)
    return ()


def _stiff(margins: np.ndarray) -> bool:
    return bool(np.ptp(margins) < 0.02 * np.abs(margins).max())


def _saturated(margins: np.ndarray) -> bool:
    return bool(np.median(np.abs(margins)) > SATURATED)
