"""What a universal perturbation is made of, as one frozen config, and the published methods as values of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ffjax.errors import InputError
from ffjax.transforms import NAMED


@dataclass(frozen=True, kw_only=True)
class UapConfig:
    """What is optimised. Every field below is open in the paper; the reason for our default stands beside it."""

    objective: Literal["firing", "margin", "ce", "none"] = "firing"
    """What is climbed: activations, the wrong verdict's lead, its cross-entropy, or the mask alone (firing: needs no
    label)."""
    layers: tuple[str, ...] = ("all",)
    """Layer choices, each a pattern of its own: all, first, last, or names joined by + ("all": GD-UAP's)."""
    statistic: Literal["l2", "sq_l2", "mean_abs", "topk_mean", "frac_active"] = "l2"
    """How a layer's firing is measured (l2: GD-UAP's)."""
    aggregation: Literal["sum_log", "sum", "prod"] = "sum_log"
    """How layers are joined (sum_log: no layer's scale leads)."""
    clip: float = 12.0
    """Above this an image's verdict loss counts no more (12: the reference code of Shafahi et al. 2020). A pattern for
    both classes needs it, to let go of images that are far over; one that shall carry far is better without."""
    side: Literal["both", "fakes", "reals"] = "both"
    """The images it is made for (both: none is left out)."""
    aim: Literal["wrong", "real", "fake"] = "wrong"
    """The verdict wanted of them: the wrong one, or one for all, which needs no label (wrong: untargeted)."""
    mask: Literal["leave", "erase", "fill", "invert"] = "leave"
    """What a segmenting detector shall show: what it will, nothing, everything, or the opposite of the truth."""
    mask_weight: float = 1.0
    """Weight of the mask's log-likelihood beside the verdict's objective (1: neither leads by decree)."""
    mode: Literal["no_data", "range_prior", "with_data"] = "no_data"
    """What the pattern rides on: nothing, Gaussian noise images, or training images (no_data: the paper's claim)."""
    blank: float = 0.0
    """Grey level of the carrier in no_data mode (0: the pattern is fed alone, unclipped, as in Fast Feature Fool)."""
    carriers: int = 8
    """Noise or training images a step (8: rows enough for bit-equal batching; GD-UAP takes 25)."""
    images: int | None = None
    """Training images per class that with_data mode may see, at most (all). Selection's are not cut."""
    eps: tuple[float, ...] = (10.0,)
    """Bounds in 1/255 for linf and in [0,1] units for l2, each a pattern of its own (10: GD-UAP's)."""
    norm: Literal["linf", "l2"] = "linf"
    """The ball (linf: GD-UAP's)."""
    shape: Literal["additive", "face", "background", "band", "filter"] = "additive"
    """Added everywhere, inside or outside the face's ellipse only, from low frequencies only, or a filter for each
    channel that moves no pixel by more than the bound (additive: GD-UAP's)."""
    band: int = 16
    """Cosine frequencies down and across that a band holds (16: a period of 16 px at 128 px)."""
    kernel: int = 5
    """Side of the filter in pixels, odd (5: 75 numbers)."""
    through: tuple[str, ...] = ()
    """What happens to the images on their way, of ffjax.transforms.NAMED, drawn anew at every step (nothing)."""
    join: Literal["average", "worst", "sum_log"] = "average"
    """How several sources are weighed: alike, only the one least moved, or by the sum of logs (average: the usual)."""
    method: Literal["step", "aggregated", "deepfool"] = "step"
    """One gradient a step; stochastic gradient aggregation; or Moosavi-Dezfooli's, image after image (step: GD-UAP).
    All from a random start, so that seeds differ; Moosavi-Dezfooli's and Shafahi's begin at 0."""
    inner: int = 4
    """Inner batches of an aggregated step, or DeepFool's linearisations of an image (4: of 8 carriers two each)."""
    rule: Literal["adam", "sign"] = "adam"
    """The step rule (adam: GD-UAP's); DeepFool has its own."""
    rate: float = 1.0
    """Step size in 1/255 (1 for some hundred steps; GD-UAP takes 0.1 for some ten thousand)."""
    steps: int = 300
    """Most steps (300: where the objective on Meso-4 has levelled off; GD-UAP allows 40,000)."""
    score: Literal["objective", "fooling"] = "objective"
    """What selection and stopping see: the objective, or verdicts on a bank of images: those changed, or, where a
    verdict is climbed, those as wanted; the objective between equals (objective: no image)."""
    bank: Literal["noise", "data"] = "noise"
    """The bank: generated noise (for the objective in no_data mode the blank carrier), or validation images, which
    makes the mode one that has seen data (noise: no data)."""
    check: int = 20
    """Steps between two scores (20: fifteen scores in a default run; GD-UAP 400 of 40,000)."""
    patience: int = 10
    """Scores without a better one before a pattern stops (10: GD-UAP's)."""
    tolerance: float = 1e-4
    """By how much a score must be better to count (1e-4: below the third digit of a log norm)."""
    rescale_at: float = 0.5
    """Share of components at the bound past which a settled pattern is halved, to move again (0.5: GD-UAP's)."""
    settled: float = 1e-5
    """Change of that share between steps that counts as settled (1e-5: GD-UAP's)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Start of each pattern (5: enough for a median and a range)."""


UNCLIPPED = 1e9
_DATA: Mapping[str, Any] = {
    "mode": "with_data", "score": "fooling", "bank": "data", "rescale_at": 2.0, "tolerance": 0.0,
}  # fmt: skip
_TO_REAL: Mapping[str, Any] = {
    "objective": "margin", "rule": "sign", "side": "fakes", "aim": "real", "clip": UNCLIPPED, **_DATA,
}  # fmt: skip
METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gd_uap": {},
        "gd_uap_range": {"mode": "range_prior"},
        "gd_uap_data": {"mode": "with_data", "bank": "data"},
        "fff": {"statistic": "mean_abs"},
        "layer_max": {"mode": "with_data", "bank": "data", "layers": ("last",), "aggregation": "sum"},
        "uap_pgd": {"objective": "margin", "rule": "sign", **_DATA},
        "sgd_uap": {"objective": "ce", "rule": "sign", **_DATA},
        "sga": {"objective": "ce", "method": "aggregated", "rule": "sign", **_DATA},
        "deepfool": {
            "objective": "margin",
            "method": "deepfool",
            "carriers": 1,
            "inner": 10,
            "steps": 2000,
            "check": 100,
            **_DATA,
        },
        "to_real": _TO_REAL,
        "joint": {**_TO_REAL, "clip": 12.0, "mask": "erase", "score": "objective"},  # or the margin alone would lead
        "face": {"shape": "face"},
        "background": {"shape": "background"},
        "band": {"shape": "band", "mode": "range_prior"},
        "filter": {"shape": "filter", "mode": "range_prior", "rescale_at": 2.0},
        "robust": {**_TO_REAL, "through": ("resize", "crop", "jpeg")},
    }
)
"""Name -> the fields in which it differs from the default. gd_uap, gd_uap_range, gd_uap_data: Mopuri et al. (TPAMI
2018) without data, with their range prior, with images. fff: Mopuri et al. (BMVC 2017). layer_max: Co et al. (2019).
sgd_uap: after Shafahi et al. (AAAI 2020), whose step decays; uap_pgd: the same on the margin, which does not vanish
where the detector is sure. sga: Liu et al. (ICCV 2023). deepfool: Moosavi-Dezfooli et al. (CVPR 2017). filter: in the
manner of 2D-Malafide (2024), but bounded. to_real, joint, face, background, band, robust (to_real through what happens
to files): ours."""


def named(name: str, **fields: Any) -> UapConfig:
    """The config of a method, `fields` apart. Raises InputError, naming the methods there are."""
    if name not in METHODS:
        raise InputError(f"method {name}: unknown; known: {', '.join(METHODS)}")
    return UapConfig(**{**METHODS[name], **fields})


def bounds(config: UapConfig, eps: float) -> float:
    """A bound of the config in [0,1] image units."""
    return eps / 255 if config.norm == "linf" else eps


def check(config: UapConfig) -> None:
    """InputError for what the types let through and no optimisation can use."""
    for name in ("steps", "check", "patience", "carriers", "band", "inner"):
        if getattr(config, name) < 1:
            raise InputError(f"uap.{name}: must be at least 1, got {getattr(config, name)}")
    for name in ("layers", "eps", "seeds"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"uap.{name}: needs at least one value and none twice, got {values}")
    if len({f"{eps:.9g}" for eps in config.eps}) < len(config.eps):
        raise InputError(f"uap.eps: two of {config.eps} are the same to nine digits")
    if min(config.eps) < 0 or min(config.seeds) < 0 or max(config.seeds) >= 2**32:
        raise InputError(f"uap: bounds must be 0 or more, seeds 0 to 2^32 - 1, got {config.eps} and {config.seeds}")
    if config.images is not None and config.images < 1:
        raise InputError(f"uap.images: must be at least 1, got {config.images}")
    _check_together(config)


def _check_together(config: UapConfig) -> None:
    """Fields that exclude each other."""
    data, verdict = config.mode == "with_data", config.objective in ("margin", "ce")
    unknown = [name for name in config.through if name not in NAMED]
    refused = {
        f"through: unknown {unknown[:1]}; known: {', '.join(NAMED)}": bool(unknown),
        "through: in mode no_data there is no image that it could happen to": config.through
        and config.mode == "no_data",
        "objective none needs a mask to erase, fill or invert": config.objective == "none" and config.mask == "leave",
        "objective firing has no verdict and no mask to join it": config.objective == "firing"
        and config.mask != "leave",
        "aim wrong needs labels, so mode with_data": verdict and config.aim == "wrong" and not data,
        "layers: several choices are for objective firing": config.objective != "firing" and len(config.layers) > 1,
        "mask invert needs true masks, so mode with_data": config.mask == "invert" and not data,
        "shape filter changes images: not for mode no_data": config.shape == "filter" and config.mode == "no_data",
        "shape filter is bounded in l_inf alone": config.shape == "filter" and config.norm != "linf",
        "kernel: must be odd and at least 3": config.kernel < 3 or config.kernel % 2 == 0,
        "method deepfool follows the margin: objective margin": config.method == "deepfool"
        and config.objective != "margin",
        "method deepfool turns verdicts: no mask": config.method == "deepfool" and config.mask != "leave",
        "join worst compares sources: not for firing, whose scale is each network's own": config.join == "worst"
        and config.objective == "firing",
        "method deepfool weighs sources alike: join average": config.method == "deepfool" and config.join != "average",
        "method aggregated needs as many carriers as inner batches, or a multiple": config.method == "aggregated"
        and config.carriers % config.inner,
        "join sum_log needs an objective above 0: ce, without a mask": config.join == "sum_log"
        and (config.objective != "ce" or config.mask != "leave"),
    }
    for why, wrong in refused.items():
        if wrong:
            raise InputError(f"uap.{why}")
