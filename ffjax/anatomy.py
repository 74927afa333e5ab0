"""Why a universal perturbation works: measurements of patterns v (H, W, 3) on one detector, no optimisation.

Images are (N, H, W, 3) uint8 and stand for x / 255; an image under a pattern is clip(x + v, 0, 1). A detector is a
`jax.tree_util.Partial`. Every function returns what JSON can hold, but for `jacobian_spectrum`, whose vectors are
images. What is undefined (a cosine with nothing) is None.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax import evaluate, metrics
from ffjax.data.codecs import to_float
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import Condition, margins
from ffjax.objectives import margin
from ffjax.summary import DIRECTIONS
from ffjax.types import Array, Forward
from ffjax.universal import fixed

CLASSES = {"fake": 1, "real": 0}
FASTEST = 0.5 * 2**0.5
"""Cycles a pixel of the checkerboard, the highest radial frequency there is."""

RANK = 1e-6
"""Singular values below this share of the first are rounding error of float32 gradients, and have no vector."""

_BLOCK = 1 << 14
"""Columns brought to float64 at once: the matrix of gradients itself may be large."""


class Jacobian(NamedTuple):
    """The N x D matrix of an image's input gradient of the margin a row, D = H * W * 3, R = min(N, D).

    values (R,): its singular values, falling; random (R,): those of rows as long in directions drawn at random.
    energy (R,): share of the sum of squared values; its running sum is what the first k directions explain.
    vectors (K, H, W, 3) float32: its first right singular vectors, orthonormal, each with the sign that raises the mean
    margin; K as asked for, or fewer where the rank is lower.
    """

    values: np.ndarray
    random: np.ndarray
    energy: np.ndarray
    vectors: np.ndarray


def push(
    forward: Forward, images: np.ndarray, labels: np.ndarray, patterns: Mapping[str, np.ndarray], compute: Compute
) -> dict[str, Any]:
    """How far each pattern moves the margin z_fake - z_real, and whether it moves all images alike.

    Returns labels (N,); margins: clean and every pattern -> (N,); changes: pattern -> all, fake, real -> {mean, sd,
    agreement, n} of the change from clean. agreement = |mean| / root mean square, the share of the change that is
    common to all images: 1 moves every image alike, 0 as many one way as the other; of N independent changes without a
    common part about 0.8 / sqrt(N). The sign is the mean's: negative is towards real.
    """
    _both_classes(labels)
    said = {"clean": margins(forward, images, compute)}
    said |= {name: margins(forward, images, compute, pattern) for name, pattern in patterns.items()}
    parts = {"all": labels >= 0} | {name: labels == label for name, label in CLASSES.items()}
    changes = {name: said[name].astype(float) - said["clean"] for name in patterns}
    return {
        "labels": labels.tolist(),
        "margins": {name: values.tolist() for name, values in said.items()},
        "changes": {n: {part: _moments(change[rows]) for part, rows in parts.items()} for n, change in changes.items()},
    }


def firing_change(
    forward: Forward, images: np.ndarray, labels: np.ndarray, patterns: Mapping[str, np.ndarray], compute: Compute
) -> dict[str, Any]:
    """How the layers fire under each pattern, and which way it moves them.

    Returns firing: clean and every pattern -> layer -> {mean_abs, active} (evaluate.activations); and direction:
    pattern -> layer -> {cosine, gaps}. A layer is seen as its activations averaged over positions, a vector of its C
    channels; m is its mean change under the pattern, d its mean over clean fakes less that over clean reals. cosine =
    <m, d> / |m| |d| in [-1, 1], and gaps = <m, d> / |d|^2, how many times the way from real to fake the pattern goes:
    both negative where it makes images look real to that layer.
    """
    _both_classes(labels)
    firing, means = {}, {}
    for name, pattern in {"clean": None, **patterns}.items():
        x = evaluate.shown(images, Condition(name, name, "", pattern))
        firing[name] = evaluate.activations(forward, x, compute)
        means[name] = _each(_channel_means, forward, x, compute)
    clean = means.pop("clean")
    gaps = {layer: _mean(act[labels == 1]) - _mean(act[labels == 0]) for layer, act in clean.items()}
    direction = {
        name: {layer: _against(_mean(act) - _mean(clean[layer]), gaps[layer]) for layer, act in acts.items()}
        for name, acts in means.items()
    }
    return {"firing": firing, "direction": direction}


def jacobian_spectrum(
    forward: Forward, images: np.ndarray, k: int, compute: Compute, key: Array, unit: bool = False
) -> Jacobian:
    """Whether the images' gradients share a few directions, as a universal perturbation needs them to: their singular
    values, the first k right singular vectors, and for comparison the singular values of random rows.

    unit: rows are scaled to length 1, as Moosavi-Dezfooli et al. (CVPR 2017, section 4) do with the normals of the
    decision boundary at its point nearest each image; a row here is the normal of the linearised boundary at the image
    itself. Otherwise the first vector is the v of unit length with the largest sum of squared changes of the margin to
    first order: the (2, 2)-singular vector of Khrulkov and Oseledets (CVPR 2018), with the margin as the layer.
    key: draws the random rows. Exact through the N x N Gram matrix in float64; meant for N <= 256. InputError if no
    image has a gradient.
    """
    rows = _each(_gradients, forward, to_float(images), compute).reshape(len(images), -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.any():
        raise InputError("the margin's gradient is zero at every image: it has no directions")
    if unit:
        rows, norms = rows / np.where(norms > 0, norms, 1), np.sign(norms)
    noise = np.array(jax.random.normal(key, rows.shape))
    noise *= norms / np.linalg.norm(noise, axis=1, keepdims=True)
    values, left = _singular(rows)
    rank = min(k, int(np.sum(values > RANK * values[0])))
    # a row's product with a right vector is s u: the sum of u's components has the sign of the mean margin's change
    signed = left[:, :rank] * np.where(left[:, :rank].sum(axis=0) < 0, -1, 1)
    vectors = [signed.T @ block / values[:rank, None] for block in _blocks(rows)]
    vectors = np.concatenate(vectors, axis=1, dtype=np.float32).reshape(rank, *images.shape[1:])
    return Jacobian(values, _singular(noise)[0], values**2 / np.sum(values**2), vectors)


def alignment(vectors: np.ndarray, patterns: Mapping[str, np.ndarray], key: Array, draws: int = 100) -> dict[str, Any]:
    """How much of each pattern lies in the span of the first k = 1 .. K orthonormal vectors (K, H, W, 3).

    Returns patterns: name -> (K,) norm of the projection of v / |v|, in [0, 1], rising; noise: {mean, low, high, draws}
    of the same for `draws` sign noises, low and high the ends of the middle 95 % of draws; expected (K,): sqrt(k / D),
    the root mean square of a random direction's.
    """
    basis = vectors.reshape(len(vectors), -1)
    noise = np.asarray(_on_noise(basis, jax.random.split(key, draws)), float) / np.sqrt(basis.shape[1])
    drawn = np.sqrt(np.cumsum(noise**2, axis=1))
    low, high = np.percentile(drawn, metrics.LEVELS, axis=0)
    return {
        "patterns": {name: _projected(basis, pattern).tolist() for name, pattern in patterns.items()},
        "noise": {"mean": drawn.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist(), "draws": draws},
        "expected": np.sqrt(np.arange(1, len(basis) + 1) / basis.shape[1]).tolist(),
    }


def spectrum(pattern: np.ndarray, bins: int = 32) -> dict[str, Any]:
    """Where the energy of a pattern (H, W, 3) lies: fine detail or broad shades.

    Returns edges (bins + 1,), radial frequencies from 0 to the checkerboard's in equal steps, in cycles a pixel; shares
    (bins,), the energy in each (2-D FFT of each channel, summed), which sum to 1; and centroid, the mean radial
    frequency of the energy. The highest frequency counts to the last bin. ValueError for a pattern of zeros.
    """
    energy = np.sum(np.abs(np.fft.fft2(np.asarray(pattern, float), axes=(0, 1))) ** 2, axis=-1)
    if not energy.any():
        raise ValueError("a pattern of zeros has no spectrum")
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in energy.shape), indexing="ij"))
    places = np.minimum((radius / FASTEST * bins).astype(int), bins - 1)
    shares = np.bincount(places.ravel(), energy.ravel(), bins) / energy.sum()
    centroid = float(np.sum(radius * energy) / energy.sum())
    return {"edges": np.linspace(0, FASTEST, bins + 1).tolist(), "shares": shares.tolist(), "centroid": centroid}


def response_curve(
    forward: Forward,
    images: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    pattern: np.ndarray,
    sizes: Sequence[float],
    compute: Compute,
    key: Array,
    norm: str = "linf",
) -> dict[str, Any]:
    """The share of images called wrongly, each direction apart, as the pattern grows: clip(x + s v, 0, 1), s in sizes.

    Returns norm; bounds: the norm of s v, for each s; pattern and noise -> fake_called_real, real_called_fake -> one
    {value, low, high, n} a size (metrics.share over groups (N,)). The noise is one draw of signs with the pattern's
    norm (linf or l2), scaled likewise; s = 0 is clean.
    """
    _both_classes(labels)
    size = float(np.abs(pattern).max() if norm == "linf" else np.linalg.norm(pattern))
    ridden = {"pattern": pattern, "noise": np.asarray(fixed.sign_noise(key, pattern.shape, size, norm))}

    def wrong(delta: np.ndarray) -> dict[str, dict[str, float | None]]:
        missed = ((margins(forward, images, compute, delta) > 0) != (labels == 1)).astype(float)
        rows = {way: labels == label for way, label in DIRECTIONS.items()}
        return metrics.plain({way: metrics.share(missed[of], groups[of]) for way, of in rows.items()})

    curves: dict[str, Any] = {}
    for name, delta in ridden.items():
        found = [wrong(np.float32(s) * np.asarray(delta, np.float32)) for s in sizes]
        curves[name] = {way: [one[way] for one in found] for way in DIRECTIONS}
    return {"sizes": list(sizes), "norm": norm, "bounds": [float(s) * size for s in sizes]} | curves


def _both_classes(labels: np.ndarray) -> None:
    missing = [name for name, label in CLASSES.items() if not np.any(labels == label)]
    if missing:
        raise InputError(f"anatomy: fakes and reals are needed, there is no {missing[0]} image")


def _each(measure: Callable[..., Any], forward: Forward, images: np.ndarray, compute: Compute) -> Any:
    """measure(forward, batch), every leaf of it with the image axis first, over all images; padding is cut off."""
    parts = []
    for x, kept in evaluate.batches(images, compute):
        found = jax.device_get(measure(forward, x))
        parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[:kept], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@jax.jit
def _gradients(forward: Forward, images: Array) -> Array:
    """Rows never see one another, so the gradient of the sum holds each image's own."""
    return jax.grad(lambda x: jnp.sum(margin(forward(x))))(images)


@jax.jit
def _channel_means(forward: Forward, images: Array) -> OrderedDict[str, Array]:
    return OrderedDict((name, jnp.mean(act, (1, 2))) for name, act in forward(images).acts.items())


@jax.jit
def _on_noise(basis: Array, keys: Array) -> Array:
    """(K, D), (draws,) -> (draws, K) products with draws of signs, one draw at a time."""

    def one(key: Array) -> Array:
        return jnp.dot(basis, jax.random.rademacher(key, basis.shape[1:], jnp.float32), precision="highest")

    return jax.lax.map(one, keys)


def _moments(change: np.ndarray) -> dict[str, float | int | None]:
    """sd is the root mean squared deviation, so that mean^2 + sd^2 is the mean square."""
    mean, rms = float(change.mean()), float(np.sqrt(np.mean(change**2)))
    agreement = abs(mean) / rms if rms else None
    return {"mean": mean, "sd": float(change.std()), "agreement": agreement, "n": len(change)}


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=0, dtype=float)


def _against(change: np.ndarray, gap: np.ndarray) -> dict[str, float | None]:
    along, lengths = float(change @ gap), float(np.linalg.norm(change) * np.linalg.norm(gap))
    square = float(gap @ gap)
    return {"cosine": along / lengths if lengths else None, "gaps": along / square if square else None}


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """(N, D) float32 -> its columns, some at a time, in float64."""
    return [rows[:, start : start + _BLOCK].astype(float) for start in range(0, rows.shape[1], _BLOCK)]


def _singular(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) -> singular values (R,), falling, and left singular vectors (N, R): the Gram matrix's eigenvectors. It
    squares the values, so the sums are in float64: what float32 holds of a value is kept."""
    squares, left = np.linalg.eigh(sum(block @ block.T for block in _blocks(rows)))
    order = np.argsort(squares)[::-1][: min(rows.shape)]
    return np.sqrt(np.maximum(squares[order], 0)), left[:, order]


def _projected(basis: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """(K,) norm of the projection of the pattern's direction on the first 1 .. K rows; a pattern of zeros has none."""
    size = float(np.linalg.norm(pattern))
    parts = basis.astype(float) @ np.ravel(pattern).astype(float) / (size or 1.0)
    return np.minimum(np.sqrt(np.cumsum(parts**2)), 1)
