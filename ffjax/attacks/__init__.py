"""Individual perturbations: one table of attacks, each a function that builds a Process."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from ffjax.attacks import apgd, carlini_wagner, ddn, decision, deepfool, fab, fast_gradient, fmn, noise, square
from ffjax.types import Process


class Attack(NamedTuple):
    """build(goal, norm, **options) -> Process. norms: those it knows. bound: 'fixed', the strongest inside eps, or
    'minimal', the smallest that succeeds (eps then only cuts off what counts). needs: what it must see of the detector.
    loss: the verdict loss it was published with (goals.VERDICT_LOSSES). seeded: another seed gives another
    result, with default options."""

    build: Callable[..., Process]
    norms: tuple[str, ...] = ("linf", "l2")
    bound: Literal["fixed", "minimal"] = "fixed"
    needs: Literal["gradients", "scores", "decisions"] = "gradients"
    loss: str = "margin"
    seeded: bool = True


ATTACKS: dict[str, Attack] = {
    "noise": Attack(noise.noise, ("linf", "l2", "l1", "l0"), needs="decisions"),
    "fgsm": Attack(fast_gradient.fgsm, loss="ce", seeded=False),
    "bim": Attack(fast_gradient.bim, ("linf", "l2", "l1"), loss="ce", seeded=False),
    "pgd": Attack(fast_gradient.pgd, ("linf", "l2", "l1")),
    "eot_pgd": Attack(fast_gradient.eot_pgd),
    "adam_pgd": Attack(fast_gradient.adam_pgd, ("linf", "l2", "l1")),
    "apgd": Attack(apgd.apgd, ("linf", "l2", "l1")),
    "apgd_ce": Attack(apgd.apgd, ("linf", "l2", "l1"), loss="ce"),
    "mi_fgsm": Attack(fast_gradient.mi_fgsm, loss="ce", seeded=False),
    "ni_fgsm": Attack(fast_gradient.ni_fgsm, loss="ce", seeded=False),
    "di_fgsm": Attack(fast_gradient.di_fgsm, loss="ce"),
    "ti_fgsm": Attack(fast_gradient.ti_fgsm, loss="ce", seeded=False),
    "si_fgsm": Attack(fast_gradient.si_fgsm, loss="ce", seeded=False),
    "vmi_fgsm": Attack(fast_gradient.vmi_fgsm, loss="ce"),
    "nes": Attack(fast_gradient.nes, needs="scores"),
    "spsa": Attack(fast_gradient.spsa, needs="scores"),
    "square": Attack(square.square, needs="scores"),
    "boundary": Attack(decision.boundary, ("l2",), bound="minimal", needs="decisions"),
    "hop_skip_jump": Attack(decision.hop_skip_jump, ("l2", "linf"), bound="minimal", needs="decisions"),
    "deepfool": Attack(deepfool.deepfool, bound="minimal", seeded=False),
    "cw": Attack(carlini_wagner.cw, ("l2",), bound="minimal", seeded=False),
    "ddn": Attack(ddn.ddn, ("l2",), bound="minimal", seeded=False),
    "fmn": Attack(fmn.fmn, ("linf", "l2", "l1", "l0"), bound="minimal", seeded=False),
    "fab": Attack(fab.fab, ("linf", "l2", "l1"), bound="minimal", seeded=False),
}
