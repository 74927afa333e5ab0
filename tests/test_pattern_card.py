"""A pattern handed on comes back as it was, with all that was said of it; whatever does not fit is told in one line."""

import json
import os
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from driven import refusal
from PIL import Image

from experiments import apply_uap
from ffjax import detectors, pattern_card, run, study, uap
from ffjax.errors import InputError
from ffjax.pattern_card import Maker, Seen
from ffjax.types import ImageSet
from ffjax.universal import UapConfig, named
from ffjax.universal.patterns import lay_out

SIDE = 40
MAKERS = (Maker("net0", "meso4", "0123456789abcdef"),)
SEEN = (Seen("a", "train", 12),)


def cards(config: UapConfig, scores=(0.0, 1.0, 3.0, 2.0), side: int = SIDE):
    """The cards of two bounds and two seeds of sign noise of exactly its bound."""
    patterns = lay_out(config, [("net0", ("conv1", "conv2"))])
    eps = np.asarray(patterns.eps)[:, None, None, None]
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (len(patterns.names), side, side, 3))
    if config.shape == "filter":
        eps = eps / side**2
    if config.norm == "l2":
        eps = eps / np.sqrt(3 * side**2)
    deltas = (signs * eps).astype(np.float32)
    return patterns, deltas, pattern_card.cards_of(config, patterns, deltas, np.array(scores), MAKERS, SEEN)


CONFIG = UapConfig(eps=(4.0, 10.0), seeds=(3, 7), layers=("conv1+conv2",))


@pytest.fixture
def lone(tmp_path) -> Path:
    """The pattern of 10/255 with its card."""
    array, card = cards(CONFIG)[2]["conv1+conv2-10-seed3"]
    pattern_card.write(tmp_path / "v.npy", array, card)
    return tmp_path / "v.npy"


def test_the_chosen_patterns_get_cards_that_say_what_made_them(tmp_path):
    patterns, deltas, found = cards(CONFIG)
    assert list(found) == ["conv1+conv2-4-seed7", "conv1+conv2-10-seed3"] and len(patterns.names) == 4
    pattern_card.write_all(tmp_path / "deep", found)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == sorted(
        f"{name}{end}" for name in found for end in (".npy", ".card.json")
    )
    for place, bound, seed, score in ((1, "4/255", 7, 1.0), (2, "10/255", 3, 3.0)):
        name = patterns.names[place]
        array, card = pattern_card.read(tmp_path / "deep" / f"{name}.npy", need_card=True)
        assert array.dtype == np.float32 and array.tobytes() == deltas[place].tobytes()
        assert card == found[name][1]
        assert (card.kind, card.size, card.norm, card.bound) == ("additive", (SIDE, SIDE, 3), "linf", bound)
        assert (card.seed, card.score, card.sources, card.seen) == (seed, score, MAKERS, SEEN)
        assert card.config == run.as_json(CONFIG) and card.eps == float(patterns.eps[place]) and card.version


def test_the_same_pattern_is_the_same_bytes_and_another_is_another_hash(tmp_path):
    one, two = ({p.name: p.read_bytes() for p in written(tmp_path / name)} for name in "ab")
    assert one == two
    array = np.zeros((2, 3, 3), np.float32)
    variants = [array, array.reshape(3, 2, 3), array.astype(np.float64), array + np.float32(1e-8)]
    assert len({pattern_card.sha256([x]) for x in variants}) == 4
    assert pattern_card.sha256([array[::-1]]) == pattern_card.sha256([array])
    assert pattern_card.sha256([array])[:16] == study.digest([array])


def written(folder: Path) -> list[Path]:
    pattern_card.write_all(folder, cards(CONFIG)[2])
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("config", "side", "kind", "bound"),
    [
        (UapConfig(norm="l2", eps=(2.5,), seeds=(0,)), SIDE, "additive", "2.5"),
        (UapConfig(shape="face", eps=(0.5,), seeds=(0,)), SIDE, "additive", "0.5/255"),
        (UapConfig(shape="filter", mode="range_prior", eps=(10.0,), seeds=(0,)), 5, "filter", "10/255"),
        (UapConfig(eps=(0.0,), seeds=(0,)), SIDE, "additive", "0/255"),
    ],
)
def test_every_norm_and_kind_goes_round(tmp_path, config, side, kind, bound):
    ((name, (array, card)),) = cards(config, scores=(-np.inf,), side=side)[2].items()
    pattern_card.write(tmp_path / f"{name}.npy", array, card)
    again, read = pattern_card.read(tmp_path / f"{name}.npy", kind=kind)
    assert (again == array).all() and read == card
    assert (card.kind, card.bound, card.score) == (kind, bound, None)
    grown = array * np.float32(1.001)
    if array.any():
        with pytest.raises(InputError, match="larger than its bound"):
            pattern_card.write(tmp_path / "w.npy", grown, card._replace(sha256=pattern_card.sha256([grown])))


def test_a_maker_is_named_by_the_digest_of_the_run_folder(tmp_path):
    loaded = detectors.load("meso4-a0")
    network = study.networks([loaded], 128)["meso4-a0"]
    made = pattern_card.maker(loaded)
    assert made == Maker("meso4-a0", "meso4", study.digest(jax.tree.leaves(network.forward)))


def test_what_was_seen():
    labels = np.array([0, 0, 0, 1, 1], np.int32)
    data = ImageSet(np.zeros((5, 8, 8, 3), np.uint8), labels, labels, tuple("abcde"))

    def seen(method: str, **fields) -> list[tuple]:
        return [tuple(one) for one in pattern_card.seen(named(method, **fields), "a", data, data)]

    noise = ("noise", "", 0)
    assert seen("gd_uap") == [("none", "", 0)]
    assert seen("gd_uap", score="fooling") == seen("gd_uap_range") == [noise]
    assert seen("gd_uap_data") == [("a", "train", 5), ("a", "validation", 5)]
    assert seen("gd_uap_data", bank="noise") == [noise, ("a", "train", 5)]
    assert seen("uap_pgd", images=2) == [("a", "train", 4), ("a", "validation", 5)]
    assert seen("to_real") == [("a", "train", 2), ("a", "validation", 2)]


def test_an_array_alone_is_taken_with_the_bound_it_has(lone):
    array, card = pattern_card.read(lone)
    (lone.parent / "v.card.json").unlink()
    again, found = pattern_card.read(lone)
    assert (again == array).all() and found.about == "no card" != card.about
    assert (found.kind, found.bound, found.sha256, found.sources) == ("additive", "10/255", card.sha256, ())
    assert found.eps == float(np.abs(array).max())
    with pytest.raises(InputError, match=r"v\.card\.json: about cannot be"):
        pattern_card.write(lone, again, found)
    with pytest.raises(InputError, match=r"v\.txt: a pattern is written as \.npy"):
        pattern_card.write(lone.with_suffix(".txt"), again, card)
    assert [path.name for path in lone.parent.iterdir()] == ["v.npy"]


def test_a_small_odd_square_alone_may_be_a_filter_and_somebody_must_say(tmp_path):
    kernel = np.full((3, 3, 3), 0.01, np.float32)
    np.save(tmp_path / "k.npy", kernel)
    with pytest.raises(InputError, match="3x3 may be a filter"):
        pattern_card.read(tmp_path / "k.npy")
    found = {kind: pattern_card.read(tmp_path / "k.npy", kind=kind)[1] for kind in ("additive", "filter")}
    assert {kind: card.kind for kind, card in found.items()} == {"additive": "additive", "filter": "filter"}
    np.testing.assert_allclose([found["additive"].eps, found["filter"].eps], [0.01, 0.09], rtol=1e-6)


def test_a_write_cut_between_array_and_card_is_noticed(lone, monkeypatch):
    array, card = pattern_card.read(lone)
    half = array / 2

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            pattern_card.write(lone, half, card._replace(sha256=pattern_card.sha256([half])))
    with pytest.raises(InputError, match="not the array of its card"):
        pattern_card.read(lone)


class Trap:
    """Makes a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def traps(folder: Path) -> dict[str, bytes]:
    """An .npy of objects, and a bare pickle."""
    np.save(folder / "objects.npy", np.array([Trap(folder / "sprung")], object), allow_pickle=True)
    return {"objects": (folder / "objects.npy").read_bytes(), "pickle": pickle.dumps(Trap(folder / "sprung"))}


@pytest.mark.parametrize("kind", ["objects", "pickle"])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, capsys, kind):
    path = tmp_path / "v.npy"
    path.write_bytes(traps(tmp_path)[kind])
    assert f"{path}: cannot be read as .npy (" in refused(tmp_path, path, monkeypatch, capsys)
    assert not (tmp_path / "sprung").exists()
    np.load(path, allow_pickle=True)
    assert (tmp_path / "sprung").exists(), "the trap would not have sprung"


def refused(folder: Path, pattern: Path, monkeypatch, capsys, *more: str) -> str:
    """The line with which apply_uap refuses a pattern; nothing is written."""
    (folder / "in").mkdir(exist_ok=True)
    Image.new("RGB", (SIDE, SIDE)).save(folder / "in" / "x.png")
    said = refusal(monkeypatch, capsys, apply_uap, [str(pattern), str(folder / "in"), str(folder / "out"), *more])
    assert not (folder / "out").exists()
    return said


def header(text: str, rest: bytes = b"") -> bytes:
    """The start of an .npy file that claims this."""
    text += " " * (64 - (len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + rest


ARRAYS = {
    "float64 numbers": np.zeros((SIDE, SIDE, 3)),
    "uint8 numbers": np.zeros((SIDE, SIDE, 3), np.uint8),
    "shape (40, 40)": np.zeros((SIDE, SIDE), np.float32),
    "shape (1, 40, 40, 3)": np.zeros((1, SIDE, SIDE, 3), np.float32),
    "shape (40, 40, 4)": np.zeros((SIDE, SIDE, 4), np.float32),
    "shape (0, 40, 3)": np.zeros((0, SIDE, 3), np.float32),
    "NaN or infinities": np.full((SIDE, SIDE, 3), np.nan, np.float32),
    "holds NaN or inf": np.full((SIDE, SIDE, 3), -np.inf, np.float32),
    "components up to 10": np.full((SIDE, SIDE, 3), 10, np.float32),
}


@pytest.mark.parametrize("fault", ARRAYS)
def test_an_array_that_is_no_pattern_is_refused(tmp_path, monkeypatch, capsys, fault):
    np.save(tmp_path / "v.npy", ARRAYS[fault])
    said = refused(tmp_path, tmp_path / "v.npy", monkeypatch, capsys)
    assert f"error: {tmp_path / 'v.npy'}: " in said and fault in said


CLAIM = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, 3), }"
FILES = {
    "empty": b"",
    "text": b"not an array\n",
    "zip": b"PK\x03\x04 and so on",
    "truncated": header(CLAIM % (SIDE, SIDE), bytes(100)),
    "vast": header(CLAIM % (10**9, 10**9), bytes(100)),
    "negative": header(CLAIM % (-1, SIDE), bytes(100)),
    "code": header("__import__('os').abort()"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_array_is_refused(tmp_path, monkeypatch, capsys, fault):
    (tmp_path / "v.npy").write_bytes(FILES[fault])
    assert f"error: {tmp_path / 'v.npy'}: cannot be read as .npy (" in refused(
        tmp_path, tmp_path / "v.npy", monkeypatch, capsys
    )


def test_another_file_than_the_pattern_is_refused(lone, monkeypatch, capsys):
    folder, beside = lone.parent, lone.with_suffix(".card.json")
    assert f"{beside}: is a card; give the .npy" in refused(folder, beside, monkeypatch, capsys)
    assert f"{folder / 'w.npy'}: no such file" in refused(folder, folder / "w.npy", monkeypatch, capsys)
    assert f"{folder}: cannot be read as .npy (is a dir" in refused(folder, folder, monkeypatch, capsys).replace(
        "Is", "is"
    )
    said = refused(folder, lone, monkeypatch, capsys, "--kind", "filter")
    assert f"{beside}: the pattern is additive, not filter" in said
    beside.unlink()
    assert "v.npy: has no card (v.card.json)" in refused(folder, lone, monkeypatch, capsys, "--need-card")


CHANGES = {
    "v.npy: not the array of its card (sha256": {"sha256": "0" * 64},
    "v.npy: larger than its bound: 10/255, not 9.9/255 (linf)": {"eps": 9.9 / 255, "bound": "9.9/255"},
    "v.npy: larger than its bound: 2.71694, not 0.0392157 (l2)": {"norm": "l2", "bound": "0.0392157"},
    "v.npy: 40x40x3, but its card says 40x41x3": {"size": [40, 41, 3]},
    "v.npy: a filter is an odd square": {"kind": "filter", "eps": 99.0, "bound": "25245/255"},
    "v.card.json: bound '1/255' is not its eps, 10/255": {"bound": "1/255"},
    'v.card.json: kind cannot be "patch"': {"kind": "patch"},
    'v.card.json: norm cannot be "l1"': {"norm": "l1"},
    "v.card.json: eps cannot be NaN": {"eps": float("nan")},
    "v.card.json: eps cannot be -0.1": {"eps": -0.1},
    "v.card.json: eps cannot be true": {"eps": True},
    "v.card.json: size cannot be [40, 40]": {"size": [40, 40]},
    "v.card.json: size cannot be [40.0, 40, 3]": {"size": [40.0, 40, 3]},
    'v.card.json: seed cannot be "0"': {"seed": "0"},
    'v.card.json: score cannot be "high"': {"score": "high"},
    "v.card.json: sha256 cannot be null": {"sha256": None},
    "v.card.json: config cannot be []": {"config": []},
    'v.card.json: sources cannot be [{"name": "x"}]': {"sources": [{"name": "x"}]},
    "v.card.json: seen cannot be {": {"seen": {}},
    "v.card.json: has the unknown field made": {"made": "2030-01-01"},
    'v.card.json: about cannot be "no card"': {"about": "no card"},
}


@pytest.mark.parametrize("fault", CHANGES)
def test_a_card_that_does_not_fit_is_refused(lone, monkeypatch, capsys, fault):
    beside = lone.with_suffix(".card.json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | CHANGES[fault]))
    assert f"error: {lone.parent}/{fault}" in refused(lone.parent, lone, monkeypatch, capsys)


@pytest.mark.parametrize("field", pattern_card.Card._fields)
def test_a_card_that_lacks_a_field_is_refused(lone, field):
    beside = lone.with_suffix(".card.json")
    value = json.loads(beside.read_text())
    del value[field]
    beside.write_text(json.dumps(value))
    with pytest.raises(InputError, match=rf"v\.card\.json: lacks {field}$"):
        pattern_card.read(lone)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "cannot be read as JSON"),
        ("{'a': 1}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        ("[1, 2]", "no JSON object"),
    ],
)
def test_a_card_that_is_none_is_refused(lone, monkeypatch, capsys, text, fault):
    beside = lone.with_suffix(".card.json")
    beside.write_bytes(text.encode("latin-1"))
    assert f"error: {beside}: {fault}" in refused(lone.parent, lone, monkeypatch, capsys)


def test_the_first_card_is_of_the_pattern_that_a_run_folder_calls_the_one():
    patterns, deltas, found = cards(CONFIG)
    first = deltas[uap.chosen(patterns, np.array([0.0, 1.0, 3.0, 2.0]))[0]]
    assert (next(iter(found.values()))[0] == first).all()
