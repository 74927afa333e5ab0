"""What votes under Gaussian noise prove: verdicts and mask pixels that no perturbation inside an l_2 radius changes.

Host numpy and scipy. Verdicts after Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized
smoothing" (ICML 2019): Theorem 1, and the procedure of section 3.2.2. Pixels after Fischer, Baader and Vechev,
"Scalable certified segmentation via randomized smoothing" (ICML 2021): a threshold tau that all pixels share, a test
each, Holm's correction (Scandinavian Journal of Statistics 1979), and abstention.

What is certified is the smoothed detector, the class that is likeliest under the noise. A vote may be any fixed
function of the noisy copy, so a comparison with any threshold that was fixed before the votes were drawn. Each verdict,
and each image's pixels taken together, is wrong with probability at most alpha over the draws; many images have many
such chances. Theorem 1 is about exact arithmetic: of the rounding inside a network nothing is said.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from ffjax.errors import InputError

ABSTAIN = -1


class Verdicts(NamedTuple):
    """(B,) each. label: 1 fake, 0 real, ABSTAIN. p_lower: lower bound of the probability of the guessed class under the
    noise. radius: l_2, in [0,1] image units; 0 where it abstains. The verdict holds at every distance below it."""

    label: np.ndarray
    p_lower: np.ndarray
    radius: np.ndarray


class Pixels(NamedTuple):
    """label: (B, h, w), 1 forged, 0 not, ABSTAIN. radius: l_2, in [0,1] image units, of every pixel that has a
    label."""

    label: np.ndarray
    radius: float


def lower(counts: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """One-sided lower bound, of confidence 1 - alpha, of a probability of which `counts` of n draws came true (Clopper
    and Pearson, Biometrika 1934): the p at which so many or more have probability alpha; 0 of none. InputError as
    `check`."""
    counts = _votes(counts, n, alpha)
    return np.where(counts == 0, 0.0, stats.beta.ppf(alpha, np.maximum(counts, 1), n - counts + 1))


def reach(sigma: float, n: int, alpha: float) -> float:
    """The largest radius that n draws can certify: all agree. 0 where they are too few to certify anything."""
    return max(0.0, float(sigma * stats.norm.ppf(lower(np.array(n), n, alpha))))


def fewest(tau: float, alpha: float, tests: int = 1) -> int:
    """Votes of which all must agree for one of `tests` hypotheses "probability at most tau" to fall at alpha / tests:
    a verdict's at tau 1/2, a pixel's of an image of so many. With fewer nothing is certified whatever they say."""
    return int(np.log(alpha / tests) / np.log(tau)) + 1


def verdict(first_counts: np.ndarray, n0: int, counts: np.ndarray, n: int, sigma: float, alpha: float) -> Verdicts:
    """Of `first_counts` (B,) of n0 votes for fake, which only choose the class, and `counts` (B,) of n fresh votes,
    which bound its probability: chosen and bounded on the same votes the bound would be biased.

    radius = sigma Phi^-1(p_lower), Theorem 1 with the other class at 1 - p_lower; abstains where p_lower <= 1/2.
    InputError as `check`.
    """
    guess, agreed = _agreed(first_counts, n0, counts, n, alpha)
    p = lower(agreed, n, alpha)
    sure = p > 0.5
    return Verdicts(np.where(sure, guess, ABSTAIN), p, np.where(sure, sigma * stats.norm.ppf(np.maximum(p, 0.5)), 0.0))


def pixels(first: np.ndarray, n0: int, counts: np.ndarray, n: int, sigma: float, tau: float, alpha: float) -> Pixels:
    """Of votes for forged, (B, h, w) each, as `verdict`: a pixel has a label where the test of "its class has
    probability at most tau" is rejected, with family-wise error alpha over the pixels of an image (`holm`). Then all
    labels of an image hold at once at every distance below sigma Phi^-1(tau). InputError as `check`."""
    check(alpha, tau)
    guess, agreed = _agreed(first, n0, counts, n, alpha)
    chance = stats.binom.sf(np.arange(n + 1) - 1, n, tau)[agreed]
    sure = np.stack([holm(one.ravel(), alpha).reshape(one.shape) for one in chance])
    return Pixels(np.where(sure, guess, ABSTAIN), float(sigma * stats.norm.ppf(tau)))


def holm(p: np.ndarray, alpha: float) -> np.ndarray:
    """(M,) bool, which of M hypotheses with p-values p are rejected, with probability at most alpha that any true one
    is among them, however they depend: from the smallest on, the i-th (from 0) while p <= alpha / (M - i)."""
    order = np.argsort(p, kind="stable")
    passed = np.logical_and.accumulate(p[order] <= alpha / (len(p) - np.arange(len(p))))
    rejected = np.zeros(len(p), bool)
    rejected[order] = passed
    return rejected


def check(alpha: float, tau: float = 0.75) -> None:
    """InputError for what is no error probability, and for a tau that certifies nothing."""
    if not 0 < alpha < 1:
        raise InputError(f"alpha: must be between 0 and 1, got {alpha:g}")
    if not 0.5 < tau < 1:
        raise InputError(f"tau: must be between 0.5 and 1, got {tau:g}")


def _agreed(first: np.ndarray, n0: int, counts: np.ndarray, n: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The class that most of the first votes are for (of a tie, real), and how many fresh ones are for it."""
    guess = (2 * _votes(first, n0, alpha) > n0).astype(int)
    counts = _votes(counts, n, alpha)
    return guess, np.where(guess == 1, counts, n - counts)


def _votes(counts: np.ndarray, n: int, alpha: float) -> np.ndarray:
    check(alpha)
    counts = np.asarray(counts)
    if n < 1 or (counts < 0).any() or (counts > n).any():
        raise InputError(f"counts: must be from 0 to the {n} votes taken, at least one")
    return counts.astype(int)
