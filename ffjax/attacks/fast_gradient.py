"""The named attacks that follow gradients inside a bound, each a setting of `descent`."""

from collections.abc import Callable

import optax

from ffjax import gradients, transforms
from ffjax.attacks import rules
from ffjax.attacks.descent import descent
from ffjax.attacks.rules import Rule
from ffjax.errors import InputError
from ffjax.gradients import Estimator
from ffjax.types import Array, Goal, Process


def fgsm(goal: Goal, norm: str = "linf") -> Process:
    """x + eps s(grad): Goodfellow et al. (ICLR 2015); in l_2 the fast gradient method (FGM)."""
    return descent(goal, norm, steps=1, step=1.0, start="zero")


def bim(goal: Goal, norm: str = "linf", *, steps: int = 10, step: float = 0.25, stop: bool = True) -> Process:
    """Iterated FGSM from the clean image, projected after each step: Kurakin et al. (ICLR 2017)."""
    return descent(goal, norm, steps=steps, step=step, start="zero", stop=stop)


def pgd(goal: Goal, norm: str = "linf", *, steps: int = 40, step: float = 0.1, stop: bool = True) -> Process:
    """From a random start in the ball: Madry et al. (ICLR 2018). Restarts: attempts.restarts."""
    return descent(goal, norm, steps=steps, step=step, stop=stop)


def adam_pgd(goal: Goal, norm: str = "linf", *, steps: int = 40, rate: float = 0.1, stop: bool = True) -> Process:
    """Adam's direction, projected after each step. In l_inf its components are followed as they are (some rate * eps
    each), in other norms it is brought to unit norm."""
    return descent(goal, norm, steps=steps, step=rate, rule=rules.adam(), follow=_as_is(norm), stop=stop)


def low_pgd(
    goal: Goal,
    *,
    steps: int = 40,
    cells: int = 8,
    step: float = 0.25,
    estimator: Estimator | None = None,
    stop: bool = True,
) -> Process:
    """PGD of low frequencies alone, in l_inf from the clean image: rules.coarse. After Guo, Frank and Weinberger (UAI
    2019), who keep the low frequencies of a cosine transform in place of what is linear between cells."""
    rule = rules.coarse(cells, step)
    return descent(
        goal, steps=steps, step=1, start="zero", rule=rule, estimator=estimator, follow=lambda d: d, stop=stop
    )


def eot_pgd(
    goal: Goal,
    norm: str = "linf",
    *,
    transform: str = "jpeg",
    samples: int = 4,
    steps: int = 40,
    step: float = 0.1,
    stop: bool = False,
) -> Process:
    """PGD on the mean over `samples` draws of transformations: Athalye et al. (ICML 2018).

    transform: names of transforms.NAMED joined by +, applied in that order. Iterates are ranked by the mean objective,
    and a draw that does not reach the goal keeps an iterate from counting; success, as everywhere, is of the plain
    image.
    """
    unknown = [name for name in transform.split("+") if name not in transforms.NAMED]
    if unknown:
        raise InputError(f"unknown transform {unknown[0]!r}; known: {', '.join(transforms.NAMED)}")
    through = transforms.chain(*(transforms.NAMED[name] for name in transform.split("+")))
    estimator = gradients.averaged(goal, through, samples)
    return descent(goal, norm, steps=steps, step=step, start="zero", estimator=estimator, stop=stop)


def mi_fgsm(goal: Goal, norm: str = "linf", *, steps: int = 10, decay: float = 1.0, stop: bool = False) -> Process:
    """Momentum of normalised gradients: Dong et al. (CVPR 2018). Step eps / steps."""
    return _transfer(goal, norm, steps, rules.momentum(decay), stop)


def ni_fgsm(goal: Goal, norm: str = "linf", *, steps: int = 10, decay: float = 1.0, stop: bool = False) -> Process:
    """MI-FGSM with the gradient taken where the momentum leads: Lin et al. (ICLR 2020)."""
    return _transfer(goal, norm, steps, rules.momentum(decay), stop, lookahead=decay)


def di_fgsm(goal: Goal, norm: str = "linf", *, steps: int = 10, smallest: float = 0.9, stop: bool = False) -> Process:
    """MI-FGSM with the gradient through a random shrinking and padding, every other time: Xie et al. (CVPR 2019)."""
    estimator = gradients.varied(goal, transforms.shrunk(smallest, 0.5))
    return _transfer(goal, norm, steps, rules.momentum(), stop, estimator=estimator)


def ti_fgsm(goal: Goal, norm: str = "linf", *, steps: int = 10, size: int = 15, stop: bool = False) -> Process:
    """MI-FGSM on a smoothed gradient: Dong et al. (CVPR 2019)."""
    return _transfer(goal, norm, steps, optax.chain(rules.smoothed(size), rules.momentum()), stop)


def si_fgsm(goal: Goal, norm: str = "linf", *, steps: int = 10, copies: int = 5, stop: bool = False) -> Process:
    """NI-FGSM on the mean gradient over darkened copies: Lin et al. (ICLR 2020)."""
    estimator = gradients.scaled(goal, copies)
    return _transfer(goal, norm, steps, rules.momentum(), stop, estimator=estimator, lookahead=1.0)


def vmi_fgsm(
    goal: Goal, norm: str = "linf", *, steps: int = 10, reach: float = 1.5, count: int = 20, stop: bool = False
) -> Process:
    """MI-FGSM with the gradient's variance in a neighbourhood added: Wang and He (CVPR 2021)."""
    rule = optax.chain(rules.variance_tuned(), rules.momentum())
    return _transfer(goal, norm, steps, rule, stop, estimator=gradients.neighbours(goal, reach, count))


def nes(
    goal: Goal, norm: str = "linf", *, steps: int = 100, step: float = 0.1, sigma: float = 1e-3, pairs: int = 20
) -> Process:
    """PGD on gradients estimated from scores (Ilyas et al., ICML 2018), 2 pairs + 1 queries a step."""
    return descent(goal, norm, steps=steps, step=step, start="zero", estimator=gradients.nes(goal, sigma, pairs))


def spsa(
    goal: Goal, norm: str = "linf", *, steps: int = 100, rate: float = 0.1, sigma: float = 0.01, pairs: int = 64
) -> Process:
    """Adam on gradients estimated along random signs: Uesato et al. (ICML 2018). 2 pairs + 1 queries a step."""
    return descent(
        goal, norm, steps=steps, step=rate, start="zero", rule=rules.adam(), follow=_as_is(norm),
        estimator=gradients.spsa(goal, sigma, pairs),
    )  # fmt: skip


def _as_is(norm: str) -> Callable[[Array], Array] | None:
    """`follow` for Adam: in l_inf its components as they are, else the ball's own."""
    return (lambda direction: direction) if norm == "linf" else None


def _transfer(goal: Goal, norm: str, steps: int, rule: Rule, stop: bool, **options) -> Process:
    """steps of eps / steps from the clean image."""
    return descent(goal, norm, steps=steps, step=1 / steps, start="zero", rule=rule, stop=stop, **options)
