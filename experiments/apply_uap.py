"""A universal pattern put on every image of a folder, or on one image: what a reader of a paper does with the pattern
that came with it.

    python -m experiments.apply_uap runs/uap_overfire/perturbation.npy photos/ photos-attacked/

PATTERN is an .npy, with its card (NAME.card.json) beside it or without. Every png, jpg, jpeg, bmp and webp below IN is
turned upright, converted to RGB where it is not, and written below OUT under its own name as PNG (or JPEG: --jpeg). An
image of another size has the pattern resized to it. Stored as PNG no component moves by more than the bound and half a
level of 255. Metadata and colour profiles are not carried over. Killed and started again, it makes what is missing; a
broken image is named and left out, and the exit code is then 2.
Cost: 2 to 3 images of a megapixel a second on a CPU core, most of it SSIM. Result: OUT, and OUT/applied.json, which has
the pattern's hash, the settings, and for each image l_inf (in levels of 255), PSNR and SSIM as stored
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from rich.console import Console
from tyro.conf import Positional, arg

from ffjax import applying, pattern_card, run
from ffjax.errors import InputError
from ffjax.pattern_card import Card
from ffjax.progress import stage


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which pattern, on what, to where."""

    pattern: Annotated[Positional[Path], arg(metavar="PATTERN")]
    """The pattern: .npy."""
    images: Annotated[Positional[Path], arg(metavar="IN")]
    """A folder of images, searched recursively, or one image."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to write: a new one, or one that this program made with the same pattern and settings."""
    strength: float = 1.0
    """What the pattern is multiplied by, above 0 and at most 1."""
    jpeg: int | None = None
    """Quality, 1 to 100, at which images are stored as JPEG (PNG: nothing is recompressed)."""
    need_card: bool = False
    """Whether a pattern without a card is refused."""
    kind: Literal["additive", "filter"] | None = None
    """What a pattern without a card is (additive; asked for where it is so small that it may be a filter)."""


def main(cfg: Config) -> None:
    """Checks everything, then applies, skipping what is done and what is broken; sums up."""
    console = Console()
    array, card = pattern_card.read(cfg.pattern, need_card=cfg.need_card, kind=cfg.kind)
    job = applying.work(array, card, cfg.strength, cfg.jpeg)
    files = applying.files(cfg.images, cfg.out, cfg.jpeg)
    done = applying.before(cfg.out, job)

    def say(line: str) -> None:
        # file names may hold what no terminal can print
        console.print(line.encode(errors="replace").decode(), highlight=False, markup=False, soft_wrap=True)

    say(f"ffjax: {_named(card)} on {cfg.images} -> {cfg.out}")
    with stage(console, "images", len(files), "images") as tell:
        outcome = applying.apply(files, cfg.out, job, done, tell, say)
    for line in _told(cfg, card, outcome):
        say(line)
    if outcome.broken:
        raise InputError(f"{cfg.images}: {len(outcome.broken)} of {len(files)} images broken, named above and left out")


def _named(card: Card) -> str:
    size = "x".join(map(str, card.size[:2]))
    known = f", {card.about}: bound measured" if card.about == pattern_card.NO_CARD else ""
    return f"{card.name} ({card.kind}, {size} px, {card.norm} {card.bound}{known})"


def _told(cfg: Config, card: Card, outcome: applying.Outcome) -> list[str]:
    """The lines at the end: counts of this start, then what all images in OUT have in common."""
    rows = list(outcome.rows.values())
    again = f" ({outcome.changed} again: the original has changed)" if outcome.changed else ""
    lines = [f"{outcome.written} written{again}, {outcome.skipped} skipped as done, {len(outcome.broken)} broken"]
    resized = sum(row.resized for row in rows)
    if resized:
        changed = ": its l_2 norm changes with the number of pixels" if card.norm == "l2" else ""
        lines.append(f"pattern resized for {resized} of {len(rows)} images{changed}")
    modes = [row.was for row in rows if row.was]
    if modes:
        kinds = ", ".join(f"{mode} {modes.count(mode)}" for mode in sorted(set(modes)))
        lines.append(f"converted to plain RGB: {len(modes)} of {len(rows)} images ({kinds})")
    if rows:
        seen = [np.inf if row.psnr is None else row.psnr for row in rows]
        alike = [row.ssim for row in rows if row.ssim is not None]
        lines.append(f"median PSNR {np.median(seen):.1f} dB" + (f", SSIM {np.median(alike):.4f}" if alike else ""))
        lines.append(f"largest l_inf {max(row.linf for row in rows)}/255, {_bound(cfg, card)}")
    return lines


def _bound(cfg: Config, card: Card) -> str:
    """What it is held against: an l_2 bound says too little of a single component to be worth naming in levels."""
    times = "" if cfg.strength == 1 else f"{cfg.strength:g} x "
    bound = f"bound {times}{card.bound} ({card.norm}) and half a level for rounding"
    return f"as stored; {bound} hold before JPEG" if cfg.jpeg is not None else bound


if __name__ == "__main__":
    run.main(Config, main)
