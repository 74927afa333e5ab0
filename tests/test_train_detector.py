"""The training driver on a small run: it learns, reports, and what it writes loads as a detector."""

import json
import struct

import driven
import ground
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from experiments import train_detector
from experiments.train_detector import Config, main
from ffjax import detectors
from ffjax.errors import InputError
from ffjax.train import TrainConfig


@pytest.fixture
def pictures(tmp_path):
    """A CSV of 32 px pictures whose fakes are a little redder, split into train, validation and test."""
    return ground.pictures(tmp_path / "pictures", 160, ("train", "train", "validation", "test"))


@pytest.mark.slow
def test_options_reach_the_network_and_the_file_and_patches_show_what_their_history_gives_away(
    photographs, tmp_path, capsys
):
    data, out = f"patches:{photographs}?operation=median3&patches=8", tmp_path / "made"
    words = {"arch": "laplacian", "options": ("widths=[4, 4, 4, 4, 8]",), "size": 64, "data": data, "others": ()}
    main(Config(**words, train=TrainConfig(epochs=3, precision="bfloat16"), out=out))  # type: ignore[arg-type]
    loaded = detectors.load(f"laplacian:{out}/weights.safetensors")
    assert loaded.meta["options"]["widths"] == [4, 4, 4, 4, 8]
    assert loaded.variables["params"]["conv1"]["kernel"].shape[-1] == 4
    assert "JPEG history alone (n = " in capsys.readouterr().out


@pytest.mark.slow
def test_it_learns_and_ships_what_it_learnt(pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made-0"
    words = ["--arch", "meso4", "--size", "32", "--data", str(pictures), "--others", "--dropout", "0.1"]
    words += ["--train.epochs", "15", "--train.batch", "16", "--train.rate", "1e-2", "--out", str(out), "--tensorboard"]
    driven.drive(monkeypatch, train_detector, words)

    loaded = detectors.load(f"meso4:{out}/weights.safetensors")
    assert loaded.name == "made-0" and loaded.detector.shape == (32, 32, 3)
    results = json.loads((out / "results.json").read_text())
    assert results["test"]["pictures"]["clean_accuracy"]["value"] >= 0.95
    assert loaded.meta["test"] == results["test"] and "--train.epochs 15" in loaded.meta["command"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    told = [(row["step"], name, np.float32(x)) for row in rows for name, x in row.items() if name != "step"]
    assert [(step, name, np.float32(x)) for step, name, x in scalars(out / "tensorboard")] == told
    assert losses[-1] < 0.5 * losses[0]
    assert "pictures test (n = 40)" in capsys.readouterr().out


def scalars(folder):
    """(step, name, value) of the only events file in the folder, record by record."""
    (file,) = folder.iterdir()
    data, at = file.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)  # then a checksum, the record, and its checksum
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        at += size + 16
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


@pytest.fixture
def photographs(tmp_path):
    folder, rng = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def asked(out, data, **fields):
    tiny = {"arch": "laplacian", "options": ("widths=[4, 4, 4, 4, 8]",), "size": 64, "others": ()} | fields
    return Config(**tiny, data=data, train=TrainConfig(epochs=1, batch=8), out=out)  # type: ignore[arg-type]


@pytest.mark.slow
def test_grey_patches_one_test_photograph_and_weights_to_start_from(photographs, tmp_path, capsys):
    grey, out = ("widths=[4, 4, 4, 4, 8]", "channels=1"), tmp_path / "first"
    main(asked(out, f"patches:{photographs}?patches=2&channels=1", options=grey))
    results = json.loads((out / "results.json").read_text())
    (name, scores), *_ = results["test"].items()
    assert results["jpeg_history"][name].keys() == scores.keys()
    told = scores["clean_accuracy"]
    assert (told["low"] is None) == (told["n"] == 4)  # of one photograph there is no interval
    main(
        asked(
            tmp_path / "again",
            f"patches:{photographs}?patches=2&channels=1",
            options=grey,
            start=f"laplacian:{out}/weights.safetensors",
        )
    )
    with pytest.raises(InputError, match="holds weights of another network, size or option"):
        main(
            asked(tmp_path / "other", f"patches:{photographs}?patches=2", start=f"laplacian:{out}/weights.safetensors")
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"others": ("nowhere",)}, "nowhere"),
        ({"options": ("channels=1",)}, r"images are \(64, 64, 3\), and laplacian takes \(64, 64, 1\)"),
        ({"options": ("width=8",)}, "unknown option 'width' of laplacian; known: "),
        ({"arch": "capsule_v1", "options": ()}, "capsule_v1: its frozen trunk would stay random"),
    ],
)
def test_what_could_not_be_carried_to_its_end_is_refused_before_the_first_step(fields, said, photographs, tmp_path):
    with pytest.raises(InputError, match=said):
        main(asked(tmp_path / "made", f"patches:{photographs}?patches=2", **fields))
    assert not (tmp_path / "made").exists()
