"""Individual perturbations: one table of attacks, each a function that builds a Process."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from ffjax.attacks import fast_gradient
from ffjax.types import Process


class Attack(NamedTuple):
    """build(goal, norm, **options) -> Process. norms: those it knows. bound: 'fixed', the strongest inside eps, or
    'minimal', the smallest that succeeds (eps then only cuts off what counts). needs: what it must see of the detector.
    loss: the verdict loss it was published with (goals.VERDICT_LOSSES)."""

    build: Callable[..., Process]
    norms: tuple[str, ...] = ("linf", "l2")
    bound: Literal["fixed", "minimal"] = "fixed"
    needs: Literal["gradients", "scores", "decisions"] = "gradients"
    loss: str = "margin"


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(fast_gradient.fgsm, loss="ce"),
    "bim": Attack(fast_gradient.bim, loss="ce"),
    "pgd": Attack(fast_gradient.pgd),
    "adam_pgd": Attack(fast_gradient.adam_pgd),
    "mi_fgsm": Attack(fast_gradient.mi_fgsm, loss="ce"),
    "ni_fgsm": Attack(fast_gradient.ni_fgsm, loss="ce"),
    "di_fgsm": Attack(fast_gradient.di_fgsm, loss="ce"),
    "ti_fgsm": Attack(fast_gradient.ti_fgsm, loss="ce"),
    "si_fgsm": Attack(fast_gradient.si_fgsm, loss="ce"),
    "vmi_fgsm": Attack(fast_gradient.vmi_fgsm, loss="ce"),
    "nes": Attack(fast_gradient.nes, needs="scores"),
    "spsa": Attack(fast_gradient.spsa, needs="scores"),
}
