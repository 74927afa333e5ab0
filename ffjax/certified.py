"""A whole data set certified image by image: the votes, what is written down of each, and what it amounts to.

Abstaining counts as wrong everywhere, and fakes and reals are never averaged: whoever always says real certifies every
real image at the largest radius there is. Votes are counted at thresholds that were fixed before
(`certified_thresholds`), on other images and under other noise: certificates hold at any.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from ffjax import certificates, certified_thresholds, devices, engine, evaluate, individual, ledger, metrics
from ffjax.certificates import ABSTAIN
from ffjax.certified_thresholds import BARE, Fitted, Level, Levels, used
from ffjax.data import codecs
from ffjax.defences import smoothing
from ffjax.defences.smoothing import Counts, Thresholds
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.metrics import Estimate
from ffjax.types import Forward, ImageSet

Row = dict[str, Any]
CLASSES = {"fake": 1, "real": 0}
PIXELS = ("right", "abstained", "forged_right", "forged_abstained")
RULE = (
    "threshold: a copy whose margin is above it is called fake; in brackets its balanced accuracy, by the vote, on the "
    "validation images under that noise that it was chosen on; uncalibrated: none parts them better than chance"
)


class Draws(NamedTuple):
    """first: votes that choose the class; samples: fresh ones that bound it; alpha: error probability of a verdict, and
    of an image's pixels together; tau: what a pixel's class must exceed."""

    first: int = 100
    samples: int = 1000
    alpha: float = 0.001
    tau: float = 0.75
    seed: int = 0


def check(sigmas: Sequence[float], draws: Draws, radii: Sequence[float]) -> None:
    """InputError for what cannot be certified with."""
    if not sigmas or len(set(sigmas)) < len(sigmas):
        raise InputError(f"sigma: needs at least one and no two alike, got {sigmas}")
    for sigma in sigmas:
        smoothing.check(sigma, draws.samples)
    if draws.first < 1:
        raise InputError(f"first: must be at least 1, got {draws.first}")
    certificates.check(draws.alpha, draws.tau)
    _enough(draws, "nothing", 0.5)
    if list(radii) != sorted(set(radii)) or min(radii, default=0) < 0:
        raise InputError(f"radii: must rise and not be negative, got {radii}")
    individual.check_seed(draws.seed)


def _enough(draws: Draws, what: str, tau: float, tests: int = 1) -> None:
    needed = certificates.fewest(tau, draws.alpha, tests)
    if draws.samples < needed:
        told = f"all of which agreeing certify {what} at alpha {draws.alpha:g}: at least {needed} are needed"
        raise InputError(f"samples: {draws.samples} draws, {told}")


def certify(
    path: Path,
    data: ImageSet,
    forward: Forward,
    levels: Levels,
    draws: Draws,
    compute: Compute,
    tell: Callable[[int, str], None] = lambda done, note: None,
) -> list[Row]:
    """The ledger's rows, one an image and sigma of `levels`, in that order: those that it holds, and after them the
    rest.

    A row: id, name, label, group; margin, of the undefended detector; sigma, and threshold, which the margin of a copy
    that is called fake exceeds; first and fake, the votes for fake; noisy, the share of the fresh votes that is right;
    called (1, 0, -1: abstains), p_lower and radius; if network and data have masks, mask_threshold, the same of mask
    logits, and pixels (`_pixels`). It is a function of image, sigma, thresholds, draws and network alone. InputError as
    `_known`, and for draws too few to certify a pixel of those masks.
    """
    rows, sigmas = ledger.read(path), _sigmas(levels)
    known = _known(path, rows, data, levels)
    clean = evaluate.margins(forward, data.images, compute)
    pixels = 0 if data.masks is None else evaluate.mask_pixels(forward, data.images.shape[1])
    if pixels:
        _enough(draws, f"no pixel of {pixels} at tau {draws.tau:g}", draws.tau, pixels)
    for sigma in sigmas:
        left = np.array([i for i in range(len(clean)) if (i, sigma) not in known], int)
        for ids in np.split(left, range(_images(compute), len(left), _images(compute))):
            if not len(ids):
                continue

            def watch(drawn: int, sigma: float = sigma, done: int = len(rows)) -> None:
                tell(done, f"sigma {sigma:g}: {drawn} of {draws.first + draws.samples} copies")

            at = used(levels[sigma])
            first, fresh = votes(forward, data, ids, sigma, at, draws, compute, watch)
            new = _rows(data, ids, sigma, at, draws, clean[ids], first, fresh, pixels > 0)
            ledger.append(path, new)
            rows += new
    tell(len(rows), "")
    return sorted(rows, key=lambda row: (sigmas.index(row["sigma"]), row["id"]))


def votes(
    forward: Forward,
    data: ImageSet,
    ids: np.ndarray,
    sigma: float,
    thresholds: Thresholds,
    draws: Draws,
    compute: Compute,
    watch: Callable[[int], None] = lambda drawn: None,
) -> tuple[Counts, Counts]:
    """Of these images, at most `_images`, on the host: the first votes, and the fresh ones. watch(copies drawn)."""
    on, least = devices.mesh(compute.devices), _images(compute)
    places = np.minimum(np.arange(least), len(ids) - 1)
    images, numbers = devices.split((codecs.to_float(data.images[ids])[places], ids[places].astype(np.int32)), on)

    def counted(start: int, stop: int) -> Counts:
        at = Thresholds(*map(jnp.float32, thresholds))
        args = (forward, images, numbers, jnp.float32(sigma), jnp.uint32(draws.seed), jnp.int32(stop), at)
        copies = max(1, engine.capacity(compute) // least)
        passes, offsets = -(-(stop - start) // copies), np.arange(copies, dtype=np.int32)
        state = devices.split(smoothing.begin(forward, images), on)
        for done, after, _ in engine.drive(
            smoothing.step, state, args, passes, compute, inputs=lambda i: jnp.asarray(start + i * copies + offsets)
        ):
            state = after
            watch(min(start + done * copies, stop))
        return jax.tree.map(lambda x: np.array(x)[: len(ids)], state)

    return counted(0, draws.first), counted(draws.first, draws.first + draws.samples)


def _images(compute: Compute) -> int:
    """How many at a time: as few as rows may be, since a killed run loses them; the pass is filled with copies."""
    return min(compute.least * devices.mesh(compute.devices).size, engine.capacity(compute))


def _sigmas(levels: Levels) -> list[float]:
    return [sigma for sigma in levels if sigma != BARE]


def _known(path: Path, rows: Sequence[Row], data: ImageSet, levels: Levels) -> set[tuple[int, float]]:
    """InputError for a line that is of no image of the set or of no sigma asked, or of both a second time, or was
    counted at another threshold."""
    known: set[tuple[int, float]] = set()
    for number, row in enumerate(rows, start=1):
        i, sigma = row.get("id"), row.get("sigma")
        if not isinstance(i, int) or not 0 <= i < len(data.labels) or row.get("name") != data.names[i]:
            raise InputError(f"{path}: line {number} is of no image of this set")
        if not isinstance(sigma, float) or sigma not in _sigmas(levels):
            raise InputError(f"{path}: line {number} is of sigma {sigma}, which is not asked")
        at = used(levels[sigma])
        asked = {"threshold": at.margin} | ({"mask_threshold": at.mask} if "pixels" in row else {})
        for name, threshold in asked.items():
            if row.get(name) != threshold:
                raise InputError(f"{path}: line {number} was counted at {name} {row.get(name)}, not at {threshold}")
        if (i, sigma) in known:
            raise InputError(f"{path}: line {number} is of image {i}, which another line is of (two runs at once?)")
        known.add((i, sigma))
    return known


def _rows(
    data: ImageSet, ids: np.ndarray, sigma: float, at: Thresholds, draws: Draws, clean: np.ndarray, first: Counts,
    fresh: Counts, masks: bool,
) -> list[Row]:  # fmt: skip
    said = certificates.verdict(
        np.asarray(first.fake), draws.first, np.asarray(fresh.fake), draws.samples, sigma, draws.alpha
    )
    shares = _pixels(data, ids, sigma, draws, first, fresh) if masks else None
    rows = []
    for k, i in enumerate(ids):
        label, fake = int(data.labels[i]), int(fresh.fake[k])
        row = {"id": int(i), "name": data.names[i], "label": label, "group": int(data.groups[i]), "sigma": sigma}
        row |= {"threshold": at.margin, "margin": float(clean[k]), "first": int(first.fake[k]), "fake": fake}
        row |= {"noisy": (fake if label == 1 else draws.samples - fake) / draws.samples}
        row |= {"called": int(said.label[k]), "p_lower": float(said.p_lower[k]), "radius": float(said.radius[k])}
        rows.append(row if shares is None else row | {"mask_threshold": at.mask, "pixels": shares[k]})
    return rows


def _pixels(
    data: ImageSet, ids: np.ndarray, sigma: float, draws: Draws, first: Counts, fresh: Counts
) -> list[dict[str, float | None]]:
    """Shares of the mask's pixels that are certified and right, and that abstain; and the same of the forged ones, None
    where there are none."""
    assert data.masks is not None and first.mask is not None and fresh.mask is not None
    said = certificates.pixels(
        np.asarray(first.mask), draws.first, np.asarray(fresh.mask), draws.samples, sigma, draws.tau, draws.alpha
    ).label
    true = certified_thresholds.forged(data.masks[ids], said.shape)
    found = []
    for one, forged in zip(said, true, strict=True):
        right, none = one == forged, one == ABSTAIN
        parts = (right, none, right[forged], none[forged])
        found.append({k: float(x.mean()) if x.size else None for k, x in zip(PIXELS, parts, strict=True)})
    return found


def summary(rows: Sequence[Row], levels: Levels, draws: Draws, radii: Sequence[float]) -> dict[str, Any]:
    """What the rows amount to, each share with its 95 % cluster-bootstrap interval and its denominator.

    undefended: class -> share called rightly without noise, at undefended_threshold. sigmas, one entry each: sigma;
    threshold and, with pixels, mask_threshold (`_told`); reach, the largest radius that so many votes can certify;
    pixel_radius, that of every certified pixel; and class -> noisy, the share of single noisy images that the base
    detector calls rightly; abstained; accuracy, of the smoothed detector; certified, a share for each of `radii`:
    called rightly and at every distance up to that (0, without interval, from reach on); margins_of_safety, the radii
    of those called rightly, sorted; pixels, if rows have them: means over images.
    """
    sigmas, bare = _sigmas(levels), levels[BARE]
    first = [row for row in rows if row["sigma"] == sigmas[0]]
    undefended = {
        name: _share(own, [(row["margin"] > used(bare).margin) == (label == 1) for row in own])
        for name, label in CLASSES.items()
        if (own := [row for row in first if row["label"] == label])
    }
    found = [_of_sigma([row for row in rows if row["sigma"] == s], s, levels[s], draws, radii) for s in sigmas]
    told = {"undefended_threshold": _told(bare.verdict), "undefended": undefended}
    return {"images": len(first), "radii": list(radii)} | told | {"sigmas": found}


def _told(fitted: Fitted) -> dict[str, float | None]:
    """The fields of Fitted, and used, the threshold that counts."""
    return {"used": fitted.calibrated or 0.0} | fitted._asdict()


def _of_sigma(rows: Sequence[Row], sigma: float, level: Level, draws: Draws, radii: Sequence[float]) -> dict[str, Any]:
    none = np.zeros((1, 1, 1), int)
    reach = certificates.reach(sigma, draws.samples, draws.alpha)
    found: dict[str, Any] = {"sigma": sigma, "threshold": _told(level.verdict), "reach": reach}
    if any("pixels" in row for row in rows):
        found["mask_threshold"] = _told(level.mask or Fitted(None, None))
        found["pixel_radius"] = certificates.pixels(none, 1, none, 1, sigma, draws.tau, draws.alpha).radius
    for name, label in CLASSES.items():
        own = [row for row in rows if row["label"] == label]
        if own:
            found[name] = _of_class(own, radii, reach)
    return found


def _of_class(rows: Sequence[Row], radii: Sequence[float], reach: float) -> dict[str, Any]:
    def certified(r: float) -> Estimate:
        if r >= reach:  # no image could be: zero by arithmetic, of which there is no interval
            return Estimate(0.0, np.nan, np.nan, len(rows))
        return _share(rows, [ok and row["radius"] > r for ok, row in zip(right, rows, strict=True)])

    right = [row["called"] == row["label"] for row in rows]
    found: dict[str, Any] = {
        "noisy": _share(rows, [row["noisy"] for row in rows]),
        "abstained": _share(rows, [row["called"] == ABSTAIN for row in rows]),
        "accuracy": _share(rows, right),
        "certified": [certified(r) for r in radii],
        "margins_of_safety": sorted(row["radius"] for ok, row in zip(right, rows, strict=True) if ok),
    }
    tried = [row for row in rows if "pixels" in row]
    known = {k: [row for row in tried if row["pixels"][k] is not None] for k in PIXELS}
    shares = {k: _share(some, [row["pixels"][k] for row in some]) for k, some in known.items() if some}
    return found | ({"pixels": shares} if shares else {})


def _share(rows: Sequence[Row], values: Sequence[float]) -> Estimate:
    return metrics.share(np.array(values, float), np.array([row["group"] for row in rows]))


def in_words(told: dict[str, Any]) -> str:
    """A threshold, and in brackets its balanced accuracy on the validation images that it was chosen on."""
    if told["calibrated"] is None:
        return f"{told['used']:g} (uncalibrated)"
    return f"{told['used']:.3g} ({100 * told['balanced_accuracy']:.0f} %)"


def show(console: Console, found: dict[str, Any]) -> None:
    """A line a sigma and class; under it what thresholds are, and, if there are masks, the pixels."""
    radii = [f"up to {r:g}" for r in found["radii"]]
    names = ("sigma", "threshold", "class", "undefended", "one noisy copy", "smoothed", "abstains", *radii, "reach")
    title = "called rightly, and certified to stay so inside an l_2 radius (%; abstaining counts as wrong)"
    table = Table(*names, title=title)
    for one in found["sigmas"]:
        for name in CLASSES:
            if name in one:
                own = one[name]
                shares = (found["undefended"][name], own["noisy"], own["accuracy"], own["abstained"], *own["certified"])
                told = f"{name}s" if name == "fake" else "reals (recall)"
                heads = (f"{one['sigma']:g}", in_words(one["threshold"]), told)
                table.add_row(*heads, *map(metrics.percent, shares), f"{one['reach']:.3g}")
    console.print(table)
    console.print("reach: the largest radius that so many samples can certify; from there on 0 by arithmetic")
    for line in (RULE, f"undefended: threshold {in_words(found['undefended_threshold'])}", *_pixel_lines(found)):
        console.print(line, highlight=False, soft_wrap=True)


def _pixel_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for one in found["sigmas"]:
        for name in CLASSES:
            shares = one.get(name, {}).get("pixels", {})
            if shares:
                told = "; ".join(f"{key.replace('_', ' ')} {metrics.percent(e)}" for key, e in shares.items())
                at = f"threshold {in_words(one['mask_threshold'])}, radius {one['pixel_radius']:.3g}"
                lines.append(f"mask pixels (%), sigma {one['sigma']:g}, {name}s, {at}: {told}")
    return lines
