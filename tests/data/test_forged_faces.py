"""The procedural set: deterministic, disjoint, masked, and not a toy that a statistic of the whole picture solves."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from ffjax.data import examples, forged_faces
from ffjax.data.examples import DOMAINS, SPLITS, captured, example
from ffjax.data.forgeries import FAMILIES
from ffjax.errors import InputError
from ffjax.types import ImageSet


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    """Domain a's test split, rendered by several processes."""
    return forged_faces.decode(list(forged_faces.render(0, "a", "test", SPLITS["test"].size)))


@pytest.mark.slow
def test_an_example_alone_equals_the_example_of_the_set(held_out: ImageSet):
    for k in (0, 1, 137, 299):
        alone = example(0, "a", "test", k)
        np.testing.assert_array_equal(alone.image, held_out.images[k])
        np.testing.assert_array_equal(alone.mask, held_out.masks[k])  # type: ignore[index]
        assert (alone.label, alone.identity, alone.name) == (
            held_out.labels[k],
            held_out.groups[k],
            held_out.names[k],
        )


def test_seed_domain_and_split_each_change_the_picture():
    base = example(0, "a", "test", 3).image
    for other in (example(1, "a", "test", 3), example(0, "b", "test", 3), example(0, "a", "validation", 3)):
        assert (base != other.image).mean() > 0.5


def test_identities_are_shared_by_no_two_splits_and_no_two_domains():
    people = [
        {examples.DOMAINS[d].number * examples.PEOPLE + s.first + i for i in range(s.people)}
        for d in DOMAINS
        for s in SPLITS.values()
    ]
    assert len(set.union(*people)) == sum(map(len, people))


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("split", SPLITS)
def test_donors_come_from_the_same_split(domain: str, split: str, monkeypatch: pytest.MonkeyPatch):
    asked = []
    person = examples.person
    monkeypatch.setattr(examples, "person", lambda seed, number: asked.append(number) or person(seed, number))
    made = [example(0, domain, split, k) for k in (1, 2 * SPLITS[split].people - 1)]
    first = DOMAINS[domain].number * examples.PEOPLE + SPLITS[split].first
    assert set(asked) >= {m.identity for m in made}
    assert all(first <= number < first + SPLITS[split].people for number in asked)


@pytest.mark.slow
def test_the_split_is_balanced_and_typed(held_out: ImageSet):
    assert held_out.images.shape == (300, 128, 128, 3) and held_out.images.dtype == np.uint8
    assert held_out.labels.dtype == held_out.groups.dtype == np.int32
    assert held_out.labels.sum() == 150
    assert len(set(held_out.names)) == 300
    families = [forged_faces.family(name) for name in held_out.names]
    assert [f != "real" for f in families] == list(held_out.labels == 1)
    assert {families.count(f) for f in FAMILIES} == {30}
    _, pictures = np.unique(held_out.groups[held_out.labels == 1], return_counts=True)
    assert set(pictures) == {3} and len(pictures) == 50


@pytest.mark.parametrize("split", SPLITS)
def test_nobody_is_forged_twice_in_one_way(split: str):
    forged = [examples.role(split, k) for k in range(1, SPLITS[split].size, 2)]
    assert len(set(forged)) == len(forged) and {family for _, family in forged} == set(FAMILIES)


@pytest.mark.slow
def test_masks_are_binary_and_mark_forgeries_alone(held_out: ImageSet):
    masks = held_out.masks
    assert masks is not None and masks.shape == (300, 128, 128) and set(np.unique(masks)) == {0, 255}
    share = (masks == 255).mean(axis=(1, 2))
    assert (share[held_out.labels == 0] == 0).all()
    assert (share[held_out.labels == 1] > 0.01).all() and (share < 0.5).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_forger_changes_the_frame_inside_the_mask_only(name: str, domain: str):
    rng = np.random.default_rng(5)
    source, _ = captured(0, domain, 1, 2, rng)
    forged, mask = FAMILIES[name](source, rng)
    assert mask.any() and forged.min() >= 0 and forged.max() <= 1
    np.testing.assert_array_equal(forged[~mask], source.frame[~mask])
    assert np.abs(forged - source.frame)[mask].mean() > 0.005


def test_what_the_forger_does_has_no_say_in_the_last_compression(monkeypatch: pytest.MonkeyPatch):
    """Two forgers that change nothing, one of whom draws random numbers, hand out the same picture."""

    def lazy(source, rng):
        return source.frame, np.zeros((128, 128), bool)

    def busy(source, rng):
        rng.random(9)
        return lazy(source, rng)

    made = []
    for forger in (lazy, busy):
        monkeypatch.setattr(examples, "FAMILIES", dict.fromkeys(FAMILIES, forger))
        made.append(example(0, "a", "test", 1).image)
    np.testing.assert_array_equal(*made)


@pytest.mark.slow
def test_no_tensorflow(tmp_path):
    script = (
        "import sys; from ffjax.data import forged_faces as f; from pathlib import Path\n"
        "f.render = lambda *a: map(f.encode, [f.example(0, 'a', 'test', k) for k in range(2)])\n"
        "assert f.load('a', 'test', Path(sys.argv[1])).labels.tolist() == [0, 1]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)


def test_an_interrupted_generation_leaves_nothing_and_a_complete_one_is_kept(tmp_path, monkeypatch: pytest.MonkeyPatch):
    two = [forged_faces.encode(example(0, "b", "test", k)) for k in range(2)]

    def interrupted(*_):
        yield two[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(forged_faces, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        forged_faces.load("b", "test", tmp_path)
    monkeypatch.setattr(forged_faces, "render", lambda *_: iter(two))
    made = forged_faces.load("b", "test", tmp_path)
    for stored, rendered in zip(made, forged_faces.decode(two), strict=True):
        np.testing.assert_array_equal(stored, rendered)
    monkeypatch.setattr(forged_faces, "render", interrupted)  # and what is complete is not generated again
    assert len(forged_faces.load("b", "test", tmp_path).images) == 2


@pytest.mark.parametrize(("domain", "split"), [("c", "test"), ("a", "tset")])
def test_an_unknown_part_is_named(domain, split, tmp_path):
    with pytest.raises(InputError, match=f"^{domain}/{split}: "):
        forged_faces.load(domain, split, tmp_path)


# --- what a statistic of the whole picture can tell ---------------------------------------------------------------


def _luma(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _jpeg_size(image: np.ndarray) -> float:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return float(stream.tell())


def _high_frequency(image: np.ndarray) -> float:
    luma = _luma(image)
    return float(((luma - ndimage.gaussian_filter(luma, 1.0)) ** 2).mean())


STATISTICS = {
    "mean": lambda image: float(_luma(image).mean()),
    "variance": lambda image: float(_luma(image).var()),
    "high-frequency energy": _high_frequency,
    "jpeg size": _jpeg_size,
}


def _best_threshold(values: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the best threshold in either direction, chosen on the very pictures it is scored on."""
    ranked = labels[np.argsort(values)]
    below = np.concatenate([[0], np.cumsum(2 * ranked - 1)])  # fakes less reals below each cut
    return float(0.5 + np.abs(below - below[-1] / 2).max() / len(labels))


def test_best_threshold_of_known_cases():
    labels = np.array([0, 0, 1, 1])
    assert _best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), labels) == 1.0
    assert _best_threshold(np.array([4.0, 3.0, 2.0, 1.0]), labels) == 1.0
    assert _best_threshold(np.array([1.0, 3.0, 2.0, 4.0]), labels) == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_no_single_statistic_tells_real_from_fake(statistic: str, domain: str):
    unseen = forged_faces.load(domain, "test")
    values = np.array([STATISTICS[statistic](image) for image in unseen.images])
    assert _best_threshold(values, unseen.labels) < 0.65


def _radial_spectrum(luma: np.ndarray) -> np.ndarray:
    power = np.log(np.abs(np.fft.fftshift(np.fft.fft2(luma - luma.mean()))) ** 2 + 1)
    y, x = np.mgrid[-64:64, -64:64]
    ring = np.minimum(np.hypot(y, x).astype(int), 64).ravel()
    return np.bincount(ring, power.ravel()) / np.bincount(ring)


def _co_occurrence(luma: np.ndarray) -> np.ndarray:
    """Histogram of four neighbouring third-order residuals, quantised to five levels (Fridrich & Kodovsky 2012)."""
    histogram = np.zeros(625)
    for plane in (luma, luma.T):
        residual = plane[:, :-3] - 3 * plane[:, 1:-2] + 3 * plane[:, 2:-1] - plane[:, 3:]
        level = (np.clip(np.round(residual / 3), -2, 2) + 2).astype(int)
        code = ((level[:, :-3] * 5 + level[:, 1:-2]) * 5 + level[:, 2:-1]) * 5 + level[:, 3:]
        histogram += np.bincount(code.ravel(), minlength=625) / code.size
    return histogram


def _features(image: np.ndarray) -> np.ndarray:
    pixels, luma = image.reshape(-1, 3) / 255, _luma(image)
    mean = pixels.mean(axis=0)
    moments = [mean, pixels.std(axis=0), ((pixels - mean) ** 3).mean(axis=0)]
    return np.concatenate([_radial_spectrum(luma), _co_occurrence(luma), *moments, [_jpeg_size(image)]])


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_forest_on_statistics_of_the_whole_picture_stays_below_80_percent(domain: str):
    """Fitted on the first 1000 training pictures to stay short: 69 % on a, 74 % when fitted on all 4000; 71 % on b."""
    held_out = forged_faces.load(domain, "test")
    fitted = forged_faces.decode(list(forged_faces.render(0, domain, "train", 1000)))
    forest = RandomForestClassifier(300, n_jobs=1, random_state=0)
    forest.fit(np.stack([_features(image) for image in fitted.images]), fitted.labels)
    said = forest.predict(np.stack([_features(image) for image in held_out.images]))
    assert (said == held_out.labels).mean() < 0.80
