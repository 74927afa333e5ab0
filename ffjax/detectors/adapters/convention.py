"""What somebody else's model takes and says, declared once, and the step from it to ffjax's images and logits."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.errors import InputError
from ffjax.types import Array, Outputs

FLOOR = 1e-12
"""Added to a probability before its logarithm, so that an exact 0 has a finite logit and a finite derivative."""

Output = Literal["logits", "probabilities", "logit", "probability"]
Layout = Literal["NHWC", "NCHW"]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What a foreign model expects of images and what its outputs mean. The first three fields have no default, since
    nobody can guess them and a wrong guess is silent. InputError for values that contradict one another.

    An image x of ffjax (RGB, [0, 1]) reaches the model as (low + x * (high - low) - mean) / std, turned to its own
    order of channels and axes; gradients are taken through all of it.
    """

    bounds: tuple[float, float]
    """Values of black and white before normalisation: (0, 1), (0, 255), (-1, 1), ... Wrong ones are warned about where
    verdicts show it, and cannot be known once a `std` other than 1 is declared: it may be meant for them."""
    output: Output
    """Two or more `logits` or `probabilities` (B, K); or one `logit` or `probability` (B,) or (B, 1)."""
    fake: int | tuple[int, ...] | Literal["high", "low"]
    """The index of the fake class, or the indices where several classes are kinds of fake (their logits are joined by
    logsumexp, their probabilities summed); for one output, whether a high or a low value says fake."""
    classes: int = 2
    """K, the number of `logits` or `probabilities`."""
    mean: float | tuple[float, ...] = 0.0
    """Subtracted: one number, or one per channel in the model's own order; on the scale of `bounds`."""
    std: float | tuple[float, ...] = 1.0
    """Divided by, likewise."""
    channels: Literal["RGB", "BGR"] = "RGB"
    layout: Layout | None = None
    """Order of axes; None: what the library is used to, NCHW for PyTorch and NHWC elsewhere."""
    mask: Literal["logits", "probabilities"] = "logits"
    """What a mask (B, h, w), if the model returns one, holds for "this pixel is forged"."""

    def __post_init__(self) -> None:
        _check_words(self)
        for name in ("bounds", "mean", "std", "fake", "classes"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        _check_fake(self)
        _check_scale(self)


def _plain(value: Any) -> Any:
    """A list or an array as a tuple of Python's own numbers, so that a convention can be hashed."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value


def _numbers(value: Any) -> np.ndarray | None:
    """A finite number or a tuple of them as (n,) float64; None for anything else."""
    items = value if isinstance(value, tuple) else (value,)
    real = all(isinstance(item, Real) and not isinstance(item, bool) for item in items)
    return np.array(items, np.float64) if items and real and np.isfinite(np.array(items, np.float64)).all() else None


def _check_words(convention: Convention) -> None:
    known = {"output": get_args(Output), "channels": ("RGB", "BGR"), "layout": (None, *get_args(Layout))}
    for name, words in (known | {"mask": ("logits", "probabilities")}).items():
        if getattr(convention, name) not in words:
            raise InputError(f"{name}: unknown {getattr(convention, name)!r}; known: {', '.join(map(str, words))}")


def _check_fake(convention: Convention) -> None:
    fake, output = convention.fake, convention.output
    if output in ("logit", "probability"):
        if fake not in ("high", "low"):
            raise InputError(f"fake: for one {output} say 'high' or 'low' (which end means fake), not {fake!r}")
        return
    if type(convention.classes) is not int or convention.classes < 2:
        raise InputError(f"classes: need a whole number, 2 or more, got {convention.classes!r}")
    chosen = fake_indices(convention) if type(fake) in (int, tuple) else ()
    inside = all(type(k) is int and 0 <= k < convention.classes for k in chosen)
    if not inside or not 0 < len(chosen) == len(set(chosen)) < convention.classes:
        raise InputError(f"fake: {fake!r} names no proper part of the indices 0 .. {convention.classes - 1}")


def _check_scale(convention: Convention) -> None:
    bounds, mean, std = map(_numbers, (convention.bounds, convention.mean, convention.std))
    if bounds is None or len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise InputError(f"bounds: need two finite values, low < high, got {convention.bounds!r}")
    if mean is None:
        raise InputError(f"mean: need a finite number, or one per channel, got {convention.mean!r}")
    if std is None or std.min() <= 0:
        raise InputError(f"std: need a positive number, or one per channel, got {convention.std!r}")
    low, high = bounds
    if mean.min() < low or mean.max() > high:
        raise InputError(f"mean: {convention.mean} lies outside bounds {convention.bounds}: they are on two scales")
    span = (high - low) / std.min()  # what photographs are divided by is a fifth to a third of their range
    if (std.min() < 1 and span > 300) or span < 1:
        raise InputError(f"std: {convention.std} spreads bounds {convention.bounds} over {span:.3g}: two scales")


def fake_indices(convention: Convention) -> tuple[int, ...]:
    """The indices of the fake classes of `logits` or `probabilities`."""
    fake = convention.fake
    return fake if isinstance(fake, tuple) else (int(fake),)


class Raw(NamedTuple):
    """A foreign model's answer in its own terms: scores (B, K), (B, 1) or (B,); mask; acts in order of depth."""

    scores: Array
    mask: Array | None = None
    acts: Mapping[str, Array] = OrderedDict()


def read(result: Any) -> Raw:
    """Scores, (scores, acts), ffjax Outputs or Raw as Raw. InputError for anything else."""
    if isinstance(result, (Outputs, Raw)):
        return Raw(*result)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return Raw(result[0], None, result[1])
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return Raw(cast(Array, result))
    raise InputError(f"returns {_kind(result)}; it must return scores, (scores, {{name: activation}}) or Outputs")


def _kind(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"a {type(result).__name__} of {', '.join(map(str, result))}"
    items = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
    return f"a {type(result).__name__}{items}"


def prepare(images: Array, convention: Convention, bounds: tuple[Any, Any] | None = None) -> Array:
    """Images (B, H, W, C) in [0, 1] as the model's own values and channels, axes still NHWC. bounds: in place of the
    declared ones; may be traced."""
    low, high = convention.bounds if bounds is None else bounds
    x = low + images * (high - low)
    x = x[..., ::-1] if convention.channels == "BGR" else x
    mean, std = (np.full((1, 1, 1, x.shape[-1]), v, np.float32) for v in (convention.mean, convention.std))
    return (x - mean) / std


def to_outputs(raw: Raw, convention: Convention, nchw: bool) -> Outputs:
    """The model's answer as ffjax has it: logits (B, 2), class 1 = fake; mask logits (B, h, w); acts (B, h, w, c).

    From probabilities p the logits are log(p + 1e-12): beyond a margin of 28 they saturate and their gradient fades.
    For one probability float32 itself ends at 16, where 1 - p is no longer resolved. InputError for wrong shapes.
    """
    acts = OrderedDict((name, _act(name, act, raw.scores.shape[0], nchw)) for name, act in raw.acts.items())
    return Outputs(_logits(raw.scores, convention), _mask(raw.mask, convention, nchw), acts)


def _logits(scores: Array, convention: Convention) -> Array:
    _check_scores(scores, convention)
    scores = scores.astype(jnp.float32)
    if convention.output in ("logit", "probability"):
        return _from_one(scores.reshape(scores.shape[0]), convention)
    fakes = fake_indices(convention)
    reals = tuple(k for k in range(convention.classes) if k not in fakes)
    return jnp.stack([_joined(scores, group, convention.output) for group in (reals, fakes)], axis=1)


def _from_one(score: Array, convention: Convention) -> Array:
    """(B,) -> (B, 2): a logit z becomes (0, z), a probability p (log(1 - p), log p), turned over if low means fake."""
    if convention.output == "logit":
        return jnp.stack([jnp.zeros_like(score), score if convention.fake == "high" else -score], axis=1)
    pair = (_log(1 - score), _log(score))
    return jnp.stack(pair if convention.fake == "high" else pair[::-1], axis=1)


def _joined(scores: Array, group: tuple[int, ...], output: Output) -> Array:
    """(B,) logit of a group of classes."""
    part = scores[:, group]
    if output == "probabilities":
        return _log(jnp.sum(part, axis=1))
    return part[:, 0] if len(group) == 1 else jax.nn.logsumexp(part, axis=1)


def _log(p: Array) -> Array:
    return jnp.log(jnp.maximum(p, 0) + FLOOR)


def _check_scores(scores: Array, convention: Convention) -> None:
    """InputError unless the shape is what was declared and the values are floating."""
    one = convention.output in ("logit", "probability")
    fits = scores.shape[1:] in ((), (1,)) if one else scores.shape[1:] == (convention.classes,)
    if scores.ndim == 0 or not fits:
        wanted = "(B,) or (B, 1)" if one else f"(B, {convention.classes})"
        raise InputError(f"scores of shape {tuple(scores.shape)} where {convention.output} {wanted} were declared")
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise InputError(f"scores are {scores.dtype}: a verdict has no margin; give floating-point scores")


def _mask(mask: Array | None, convention: Convention, nchw: bool) -> Array | None:
    if mask is None:
        return None
    channel = 1 if nchw else 3
    flat = mask.squeeze(channel) if mask.ndim == 4 and mask.shape[channel] == 1 else mask
    if flat.ndim != 3:
        raise InputError(f"mask of shape {tuple(mask.shape)} where (B, h, w), or one channel, is expected")
    flat = flat.astype(jnp.float32)
    return flat if convention.mask == "logits" else _log(flat) - _log(1 - flat)


def _act(name: str, act: Array, rows: int, nchw: bool) -> Array:
    if act.ndim != 4 or act.shape[0] != rows:
        raise InputError(f"activation {name}: shape {tuple(act.shape)}, not four axes with the {rows} images first")
    act = jnp.transpose(act, (0, 2, 3, 1)) if nchw else act
    return act.astype(jnp.float32)
