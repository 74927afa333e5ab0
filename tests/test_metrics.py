"""Point estimates against scikit-learn, intervals against what they promise, and every degenerate sample."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest
from sklearn import metrics as sk

from ffjax import imagequality, metrics
from ffjax.errors import InputError
from ffjax.metrics import Scores, cluster_weights, merge, roc, summary


@st.composite
def samples(draw, largest: int = 40, both: bool = True) -> Scores:
    """Scores with many ties, zeros among them, and groups of unequal sizes."""
    n = draw(st.integers(4, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, 2, n)
    if both:
        labels[:2] = 0, 1
    grid = draw(st.sampled_from([2, 5, 1000]))
    clean = np.round((rng.normal(size=n) + labels) * grid) / grid
    attacked = np.round((clean / 2 + rng.normal(size=n) - labels) * grid) / grid
    return Scores(labels, rng.integers(0, draw(st.integers(1, n)), n), clean, attacked)


def values(scores: Scores, **options) -> dict[str, float]:
    return {name: found.value for name, found in summary(scores, resamples=3, **options).items()}


def normal(n: int, seed: int, shift: float = 1.0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    clean = rng.normal(size=n) + shift * (2 * labels - 1)
    return Scores(labels, np.arange(n) // 2, clean, clean - labels + rng.normal(size=n) / 2)


@given(samples())
def test_values_are_scikit_learns(scores):
    found = values(scores)
    for prefix, score in [("clean_", scores.clean), ("attacked_", scores.attacked)]:
        says = (score > 0).astype(int)
        fpr, tpr, _ = sk.roc_curve(scores.labels, score, drop_intermediate=False)
        assert found[prefix + "accuracy"] == pytest.approx(sk.accuracy_score(scores.labels, says))
        assert found[prefix + "balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(scores.labels, says))
        assert found[prefix + "fake_called_real"] == pytest.approx(1 - sk.recall_score(scores.labels, says))
        assert found[prefix + "real_called_fake"] == pytest.approx(
            1 - sk.recall_score(scores.labels, says, pos_label=0)
        )
        assert found[prefix + "auc"] == pytest.approx(sk.roc_auc_score(scores.labels, score))
        assert found[prefix + "tpr_at_1fpr"] == pytest.approx(tpr[fpr <= 0.01].max())


@given(samples())
def test_curves_are_scikit_learns_under_weights(scores):
    weights = cluster_weights(scores.groups, 6, seed=1) + 0.25
    curve = roc(scores.clean, scores.labels, weights)
    for r in range(6):
        fpr, tpr, _ = sk.roc_curve(scores.labels, scores.clean, sample_weight=weights[:, r], drop_intermediate=False)
        assert np.allclose(curve.fpr[:, r], fpr) and np.allclose(curve.tpr[:, r], tpr)
        area = sk.roc_auc_score(scores.labels, scores.clean, sample_weight=weights[:, r])
        assert metrics.auc(curve)[r] == pytest.approx(area)
        most = 0.2
        assert metrics.tpr_at_fpr(curve, most)[r] == pytest.approx(tpr[fpr <= most].max())


@given(samples())
def test_auc_counts_pairs_and_ties_by_half(scores):
    fakes, reals = scores.clean[scores.labels == 1], scores.clean[scores.labels == 0]
    pairs = fakes[:, None] - reals
    assert values(scores)["clean_auc"] == pytest.approx(np.mean(pairs > 0) + np.mean(pairs == 0) / 2)


@given(samples())
def test_equal_error_rate_lies_on_the_curve_where_the_errors_are_equal(scores):
    fpr, tpr, _ = sk.roc_curve(scores.labels, scores.clean, drop_intermediate=False)
    eer = values(scores)["clean_eer"]
    along = np.linspace(0, 1, 2001)
    steps = np.arange(len(fpr)) / (len(fpr) - 1)
    x, y = np.interp(along, steps, fpr), np.interp(along, steps, tpr)
    assert np.min(np.abs(x - eer) + np.abs(1 - y - eer)) < 5e-3


@given(samples())
def test_attack_figures_by_hand(scores):
    found = summary(scores, resamples=3)
    before, after = scores.clean > 0, scores.attacked > 0
    right = before == (scores.labels == 1)
    assert found["fooling_rate"].value == pytest.approx(np.mean(before != after))
    assert found["mean_shift"].value == pytest.approx(np.mean(scores.attacked - scores.clean))
    assert found["fooled_of_correct"].n == right.sum()
    if right.any():
        assert found["fooled_of_correct"].value == pytest.approx(np.mean((before != after)[right]))
    else:
        assert math.isnan(found["fooled_of_correct"].value)
    if np.ptp(scores.clean) and np.ptp(scores.attacked):
        pearson = np.corrcoef(scores.clean, scores.attacked)[0, 1]
        assert found["logit_correlation"].value == pytest.approx(pearson, abs=1e-9)
    for prefix in ("clean_", "attacked_"):
        assert found[prefix + "fake_called_real"].n == (scores.labels == 1).sum()
        assert found[prefix + "real_called_fake"].n == (scores.labels == 0).sum()
        assert found[prefix + "auc"].n == len(scores.labels)


@given(samples(), samples())
def test_refit_moves_the_threshold_to_the_best_on_validation(scores, validation):
    def balanced(of: Scores, threshold: float) -> float:
        return float(sk.balanced_accuracy_score(of.labels, of.attacked > threshold))

    curve = roc(validation.attacked, validation.labels, np.ones((len(validation.labels), 1)))
    chosen = metrics.best_threshold(curve)[0]
    assert balanced(validation, chosen) == pytest.approx(max(balanced(validation, t) for t in curve.thresholds))
    refit = values(scores, validation=validation)["refit_balanced_accuracy"]
    assert refit == pytest.approx(balanced(scores, chosen))
    own = values(scores, validation=scores)
    assert own["refit_balanced_accuracy"] >= max(0.5, own["attacked_balanced_accuracy"]) - 1e-12


@given(samples())
def test_thresholds_reproduce_the_curve(scores):
    """Scores that are neighbouring floats included: there is no number half-way."""
    close = scores._replace(clean=np.nextafter(scores.clean, np.inf))
    both = merge(scores, close)
    curve = roc(both.clean, both.labels, np.ones((len(both.labels), 1)))
    for k, threshold in enumerate(curve.thresholds):
        says = both.clean > threshold
        assert curve.tpr[k, 0] == pytest.approx(np.mean(says[both.labels == 1]))
        assert curve.fpr[k, 0] == pytest.approx(np.mean(says[both.labels == 0]))


@given(samples(), st.integers(0, 2**32))
def test_merging_and_order_change_nothing(scores, seed):
    order = np.random.default_rng(seed).permutation(len(scores.labels))
    parts = [Scores(*(field[rows] for field in scores)) for rows in np.array_split(order, 3)]
    one, other = summary(scores, resamples=20), summary(merge(*parts), resamples=20)
    for name in one:
        assert np.allclose(one[name], other[name], equal_nan=True, atol=1e-9), name


@given(samples())
def test_every_interval_is_in_range_and_repeats(scores):
    found = summary(scores, scores, resamples=50, seed=3)
    again = summary(scores, scores, resamples=50, seed=3)
    for name, (value, low, high, n) in found.items():
        assert np.array_equal(again[name], (value, low, high, n), equal_nan=True)
        assert math.isnan(low) == math.isnan(high)
        if not math.isnan(low):
            floor, top = {"mean_shift": (-np.inf, np.inf), "logit_correlation": (-1, 1)}.get(name, (0, 1))
            assert floor <= low <= high <= top and 0 < n <= len(scores.labels), name


def test_chunks_and_validation_do_not_change_the_intervals(monkeypatch):
    scores = normal(60, seed=0)
    whole = summary(scores, normal(400, seed=1), resamples=101)
    monkeypatch.setattr(metrics, "_CHUNK", 2000)
    assert summary(scores, normal(400, seed=1), resamples=101) == whole
    assert summary(scores, resamples=101).items() <= whole.items()


@given(samples())
def test_weights_draw_whole_groups_and_as_many_as_there_are(scores):
    weights = cluster_weights(scores.groups, 30, seed=0)
    groups = np.unique(scores.groups)
    first = [np.flatnonzero(scores.groups == g)[0] for g in groups]
    assert (weights[first].sum(axis=0) == len(groups)).all()
    assert np.array_equal(weights, weights[first][np.searchsorted(groups, scores.groups)])


def test_an_image_a_group_is_the_ordinary_bootstrap():
    rng = np.random.default_rng(0)
    labels, n = np.arange(400) % 2, 400
    scores = Scores(labels, np.arange(n), np.where(rng.random(n) < 0.8, 1, -1) * (2.0 * labels - 1), np.ones(n))
    found = summary(scores, resamples=2000)["clean_accuracy"]
    error = 1.96 * math.sqrt(found.value * (1 - found.value) / n)
    assert found.low == pytest.approx(found.value - error, abs=0.008)
    assert found.high == pytest.approx(found.value + error, abs=0.008)


def test_copies_within_a_group_do_not_narrow_the_interval():
    scores = normal(80, seed=2)
    copies = Scores(*(np.repeat(field, 5) for field in scores))
    one, five = summary(scores), summary(copies)
    for name in ("clean_accuracy", "clean_auc", "fooling_rate", "mean_shift"):
        assert five[name][:3] == pytest.approx(one[name][:3]), name


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Fakes N(1, 1) and reals N(-1, 1) in groups that share half their variance: 95 % of 150 samples, give or take."""
    accuracy, area = stats.norm.cdf(1), stats.norm.cdf(math.sqrt(2))
    covered = np.zeros(2)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        labels, groups = rng.integers(0, 2, 160), np.repeat(np.arange(80), 2)
        clean = 2 * labels - 1 + np.sqrt(0.5) * (rng.normal(size=80)[groups] + rng.normal(size=160))
        found = summary(Scores(labels, groups, clean, clean), resamples=300)
        estimates = found["clean_accuracy"], found["clean_auc"]
        covered += [e.low <= truth <= e.high for e, truth in zip(estimates, (accuracy, area), strict=True)]
    assert (covered / 150 > 0.89).all() and (covered / 150 < 0.995).all(), covered


def test_one_class_only_leaves_undefined_what_needs_two():
    scores = Scores(np.ones(6, int), np.arange(6), np.arange(6) - 2.5, np.arange(6) - 3.5)
    found = summary(scores, validation=scores, resamples=50)
    for name in ("clean_auc", "clean_eer", "clean_tpr_at_1fpr", "clean_balanced_accuracy", "refit_balanced_accuracy"):
        assert all(math.isnan(x) for x in found[name][:3]), name
    assert math.isnan(found["clean_real_called_fake"].value) and found["clean_real_called_fake"].n == 0
    assert found["clean_accuracy"].value == found["clean_accuracy"].value == 0.5
    assert found["logit_correlation"].value == pytest.approx(1)


def test_resamples_that_miss_a_class_are_left_out():
    scores = Scores(np.array([1, 0, 0]), np.arange(3), np.array([1.0, -1, -2]), np.array([1.0, -1, -2]))
    found = summary(scores, resamples=400)["clean_auc"]
    assert found[:3] == (1, 1, 1)


def test_one_group_has_a_value_and_no_interval():
    found = summary(normal(10, seed=0)._replace(groups=np.zeros(10, int)), resamples=20)
    assert not math.isnan(found["clean_auc"].value)
    assert all(math.isnan(e.low) and math.isnan(e.high) for e in found.values())


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_constant_scores_have_no_correlation(offset):
    scores = normal(20, seed=0)
    found = summary(scores._replace(attacked=np.full(20, offset)), resamples=20)
    assert all(math.isnan(x) for x in found["logit_correlation"][:3])
    assert found["attacked_auc"].value == 0.5 and found["attacked_eer"].value == 0.5


def test_the_average_has_the_interval_of_its_clusters_and_json_knows_no_nan():
    values, groups = np.arange(60.0), np.repeat(np.arange(20), 3)
    found = metrics.average(values, groups)
    means = values @ cluster_weights(groups, 1000, 0) / 60
    assert found.value == 29.5 and found.n == 60
    np.testing.assert_allclose((found.low, found.high), np.percentile(means, metrics.LEVELS))
    alone = metrics.average(values, np.zeros(60, int))
    assert metrics.plain({"x": alone}) == {"x": {"value": 29.5, "low": None, "high": None, "n": 60}}


def test_a_gain_that_is_the_same_everywhere_leaves_room_for_images_not_seen():
    """The share of such images that 10 groups leave open, filled with the best and the worst there can be."""
    groups = np.repeat(np.arange(10), 3)
    open_ = 1 - binomtest(10, 10).proportion_ci(0.95, "exact").low
    for value, low, high in ((1.0, 1 - 2 * open_, 1), (0.0, -open_, open_), (-1.0, -1, 2 * open_ - 1)):
        found = metrics.gain(np.full(30, value), groups)
        np.testing.assert_allclose((found.value, found.low, found.high), (value, low, high))
    some = np.where(groups < 4, 1.0, 0.0)
    assert metrics.gain(some, groups) == metrics.average(some, groups)


def test_a_share_of_all_or_nothing_has_the_exact_interval_of_its_groups():
    groups = np.repeat(np.arange(10), 3)
    every, none = (metrics.share(np.full(30, value), groups) for value in (1.0, 0.0))
    exact = binomtest(10, 10).proportion_ci(0.95, "exact")
    assert (every.value, none.value, every.n) == (1, 0, 30)
    np.testing.assert_allclose((every.low, every.high, none.low, none.high), (exact.low, 1, 0, 1 - exact.low))
    some = np.arange(30) % 4 == 0
    assert metrics.share(some.astype(float), groups) == metrics.average(some.astype(float), groups)
    assert math.isnan(metrics.share(np.ones(3), np.zeros(3, int)).low)


def test_a_perfect_and_an_inverted_detector():
    labels = np.arange(20) % 2
    found = summary(Scores(labels, np.arange(20), 2.0 * labels - 1, 1 - 2.0 * labels), resamples=20)
    perfect = {"accuracy": 1, "balanced_accuracy": 1, "auc": 1, "eer": 0, "tpr_at_1fpr": 1}
    for name, value in perfect.items():
        assert found["clean_" + name].value == value, name
        assert found["attacked_" + name].value == 1 - value, name
    assert found["fooling_rate"].value == found["fooled_of_correct"].value == 1
    assert found["logit_correlation"].value == pytest.approx(-1)


def test_a_score_of_zero_says_real():
    found = values(Scores(np.array([0, 1]), np.arange(2), np.zeros(2), np.zeros(2)))
    assert found["clean_fake_called_real"] == 1 and found["clean_real_called_fake"] == 0


def test_one_percent_of_a_hundred_reals_is_one_real():
    reals, fakes = np.arange(100.0), np.array([98.5, 97.5])
    scores = np.concatenate([reals, fakes])
    found = values(Scores(np.repeat([0, 1], [100, 2]), np.arange(102), scores, scores))
    assert found["clean_tpr_at_1fpr"] == 0.5


def test_float32_scores_and_boolean_labels_are_welcome():
    scores = normal(30, seed=4)
    narrow = scores._replace(labels=scores.labels == 1, clean=scores.clean.astype(np.float32))
    assert values(narrow)["clean_auc"] == pytest.approx(values(scores)["clean_auc"])


BAD = {
    "empty": Scores(*[np.zeros(0)] * 4),
    "unequal": Scores(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(2)),
    "two axes": Scores(*[np.zeros((3, 2))] * 4),
    "labels": Scores(np.array([0, 2]), np.zeros(2), np.zeros(2), np.zeros(2)),
    "nan": Scores(np.array([0, 1]), np.zeros(2), np.zeros(2), np.array([0, np.nan])),
    "inf": Scores(np.array([0, 1]), np.zeros(2), np.array([0, np.inf]), np.zeros(2)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_scores_are_refused_on_one_line(name):
    with pytest.raises(InputError) as caught:
        summary(BAD[name])
    assert "\n" not in str(caught.value)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def test_psnr_of_a_known_error_and_of_none():
    clean = np.full((3, 12, 14, 3), 0.5, np.float32)
    attacked = clean + np.array([0, 0.1, 0.01], np.float32)[:, None, None, None]
    assert imagequality.psnr(clean, attacked) == pytest.approx([np.inf, 20, 40], rel=1e-5)


def test_ssim_of_identical_images_is_one():
    images = pictures(4, 16, 20, 3)
    assert (imagequality.ssim(images, images) == 1).all()


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_ssim_of_constant_images_is_the_luminance_term(a, b):
    shape = (1, 13, 17, 3)
    found = imagequality.ssim(np.full(shape, a, np.float32), np.full(shape, b, np.float32))
    assert found == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-9)


def test_ssim_of_one_window_by_the_papers_formula():
    """An image of the window's size has one value a channel: equations 14 to 16 and 13, written out."""
    a, b = pictures(1, 11, 11, 2), pictures(1, 11, 11, 2, seed=1)
    line = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    expected = []
    for c in range(2):
        x, y = a[0, ..., c].astype(float), b[0, ..., c].astype(float)
        mx, my = np.sum(window * x), np.sum(window * y)
        vx, vy = np.sum(window * (x - mx) ** 2), np.sum(window * (y - my) ** 2)
        cov = np.sum(window * (x - mx) * (y - my))
        expected.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert imagequality.ssim(a, b) == pytest.approx([np.mean(expected)], rel=1e-9)


def test_ssim_agrees_with_scikit_image_where_it_is_installed():
    other = pytest.importorskip("skimage.metrics")
    a, b = pictures(2, 24, 30, 3), pictures(2, 24, 30, 3, seed=1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [other.structural_similarity(x, y, channel_axis=-1, **options) for x, y in zip(a, b, strict=True)]
    assert imagequality.ssim(a, b) == pytest.approx(expected, rel=1e-5)


def test_quality_is_symmetric_per_image_and_falls_with_noise():
    clean, noise = pictures(1, 32, 32, 3), pictures(1, 32, 32, 3, seed=1) - 0.5
    attacked = np.concatenate([clean + step * noise for step in (0.01, 0.05, 0.2)])
    cleans = np.repeat(clean, 3, axis=0)
    for quality in (imagequality.psnr, imagequality.ssim):
        found = quality(cleans, attacked)
        assert found.shape == (3,) and (np.diff(found) < 0).all()
        assert found == pytest.approx(quality(attacked, cleans))
        assert np.array_equal(quality(cleans[1:2], attacked[1:2]), found[1:2])
        assert quality(cleans[:0], attacked[:0]).shape == (0,)


def test_quality_refuses_what_it_cannot_compare():
    with pytest.raises(InputError, match="at least 11 pixels"):
        imagequality.ssim(pictures(1, 10, 30, 3), pictures(1, 10, 30, 3))
    for quality in (imagequality.psnr, imagequality.ssim):
        with pytest.raises(InputError, match="one shape"):
            quality(pictures(1, 12, 12, 3), pictures(2, 12, 12, 3))


def test_percent_tells_an_interval_only_where_there_is_one():
    assert metrics.percent(metrics.Estimate(0.8125, 0.62, 1.0, 16)) == "81 [62, 100]"
    assert metrics.percent(metrics.Estimate(0.5, np.nan, np.nan, 1)) == "50"


def test_quartiles_are_of_what_is_known():
    assert metrics.quartiles([None, 4.0, 0.0, 1.0, 3.0, 2.0]) == [1.0, 2.0, 3.0]
    assert metrics.quartiles([None]) is None
