"""Run by test_devices.py in a process of its own, with as many CPU devices as XLA_FLAGS asks for: the same job on one
and on all of them. Prints one JSON object: per mode and execution, how far the results lie apart, the collectives in
the compiled step, and how far the losses of a training lie apart.

Given the word `attacks` (by attacks/test_promises.py): of every attack, what of its results differs, and the
collectives in its compiled step."""

import json
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import toys

from ffjax import devices, engine, riders, uap
from ffjax.checkpoint import Snapshots
from ffjax.data.augment import Augment
from ffjax.detectors import build
from ffjax.engine import Compute
from ffjax.evaluate import margins
from ffjax.train import TrainConfig, fit
from ffjax.types import ImageSet
from ffjax.universal import UapConfig, universal
from ffjax.universal.patterns import lay_out

jax.config.update("jax_numpy_rank_promotion", "raise")
SOURCE = toys.source()
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def config(mode: str) -> UapConfig:
    return UapConfig(mode=mode, seeds=tuple(range(8)), steps=12, check=4, carriers=16)


def job(mode: str, execution: str, count: int):
    """-> (first gradient if stepped, objective trajectory (12, S), final state, programs compiled, places of delta)."""
    cfg, gradients, rows = config(mode), [], []

    def save(step, state):
        gradients.append(np.asarray(state.optimiser[0].mu) / 0.1)  # Adam's first moment after one step

    shots = Snapshots(save, lambda like: (0, like), lambda: None)
    chunk = 1 if execution == "stepped" else 4
    compute = Compute(execution=execution, chunk=chunk, snapshot=chunk, devices=count)
    laid = lay_out(cfg, [(SOURCE.name, SOURCE.layers)])
    before = engine._changed._cache_size() + engine._chunk._cache_size()
    state = uap.make(cfg, laid, [SOURCE], toys.SHAPE, compute, shots, lambda done, infos: rows.append(infos.objective))
    compiled = engine._changed._cache_size() + engine._chunk._cache_size() - before
    spread = len({str(shard.index) for shard in state.delta.addressable_shards})
    return gradients[0], np.concatenate(rows), jax.device_get(state), compiled, spread


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


def collectives(mode: str, count: int) -> dict[str, list[str]]:
    """Name -> the shapes it works on, in the compiled step on `count` devices."""
    cfg, on = config(mode), devices.mesh(count)
    laid, made = lay_out(cfg, [(SOURCE.name, SOURCE.layers)]), universal(cfg)
    begin = jax.jit(made.init, static_argnums=2)(laid.keys, laid.eps, toys.SHAPE)
    x, bank = riders.at_step(cfg, toys.SHAPE, None)(0), riders.bank(cfg, toys.SHAPE, None)
    state = devices.split(begin, on) if mode == "no_data" else devices.replicate(begin, on)
    args = (*devices.replicate((laid.eps, laid.weights, (SOURCE.forward,)), on), devices.split(bank, on))
    text = engine._changed.lower(made.step, jnp.int32(0), state, devices.split(x, on), args).compile().as_text()
    found = {name: re.findall(rf"= (\S+(?: \S+)*?) {name}(?:-start)?\(", text) for name in COLLECTIVES}
    return {name: shapes for name, shapes in found.items() if shapes}


def training(count: int) -> np.ndarray:
    """The losses of eight steps of a network with batch statistics, which belong to the whole batch."""
    rng, labels, losses = np.random.default_rng(0), np.arange(64, dtype=np.int32) % 2, []
    pixels = rng.integers(60, 160, (64, 64, 64, 3)) + 60 * labels[:, None, None, None]
    data = ImageSet(pixels.astype(np.uint8), labels, labels, tuple(map(str, range(64))))
    detector = build("laplacian", 64, widths=[4, 4, 4, 4, 8])
    shots = Snapshots(lambda step, state: None, lambda like: (0, like), lambda: None)
    settings = TrainConfig(epochs=2, batch=16, augment=Augment(jpeg=0.0))
    compute = Compute(execution="stepped", chunk=1, devices=count)
    watch = lambda step, infos, score: losses.extend(np.atleast_1d(infos.loss) if score is None else [])  # noqa: E731
    fit(detector, data, settings, compute, lambda variables: 0.0, shots, watch)
    return np.array(losses)


def attacks() -> dict:
    """Attack -> the fields of its result that differ between one device and all, how far the distances lie apart, how
    many rows fell, and the collectives of its step.

    Each in its first norm, on 32 rows a device: below some 20 XLA:CPU picks kernels that round otherwise on detectors
    as small as this.
    """
    import cases  # lies in attacks/, which is on the path for this job only

    every, report = len(jax.devices()), {}
    batch, forward = cases.batch(32 * every), toys.forward()
    for name, attack in cases.ATTACKS.items():
        norm = attack.norms[0]
        process, results = cases.process(name, norm, **FEW.get(name, {})), []
        for count in (1, every):
            compute = Compute(batch=32 * every, least=32, chunk=5, devices=count, execution="stepped")
            results.append(engine.run(process, forward, batch, cases.EPS[norm], 0, compute))
        one, several = results
        differ = [field for field in one._fields if not np.array_equal(getattr(one, field), getattr(several, field))]
        report[name] = {
            "differ": differ,
            "apart": apart(one.distance, several.distance),
            "broken": int(one.success.sum()),
            "collectives": collectives_of(process, forward, batch, cases.EPS[norm], every),
        }
    return {"devices": every, "attacks": report}


FEW: dict[str, dict] = {
    "vmi_fgsm": {"steps": 2},
    "nes": {"steps": 4},
    "spsa": {"steps": 3},
    "cw": {"searches": 2},
    "boundary": {"steps": 40},
    "hop_skip_jump": {"steps": 40},
}
"""Fewer steps than in cases.SHORT: here nothing has to succeed, only to be the same."""


def collectives_of(process, forward, batch, eps, count: int) -> list[str]:
    rows, on = len(batch.labels), devices.mesh(count)
    given = devices.split((batch, np.full(rows, eps, np.float32), np.zeros(rows, np.uint32)), on)
    state = engine._init(process.init, forward, *given)
    step = engine._informed(process.step)
    text = engine._changed.lower(step, jnp.int32(0), state, None, (forward,)).compile().as_text()
    return [name for name in COLLECTIVES if re.search(rf" {name}(?:-start)?\(", text)]


def main() -> None:
    every = len(jax.devices())
    if sys.argv[1:] == ["attacks"]:
        with tempfile.TemporaryDirectory() as kept:  # so that a step whose program is read is not compiled twice
            jax.config.update("jax_compilation_cache_dir", kept)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            json.dump(attacks(), sys.stdout)
        return
    report: dict = {"devices": every, "jobs": {}, "collectives": {}}
    for mode in ("no_data", "range_prior"):
        for execution in ("stepped", "fused"):
            first, trajectory, end, *_ = job(mode, execution, 1)
            gradient, objective, state, compiled, spread = job(mode, execution, every)
            report["jobs"][f"{mode} {execution}"] = {
                "gradient": apart(first, gradient),
                "first": apart(trajectory[0], objective[0]),
                "objective": apart(trajectory, objective),
                "best_score": apart(end.best_score, state.best_score),
                "moved": float(np.mean(np.abs(end.best - state.best) > 1e-4)),
                "compiled": compiled,
                "spread": spread,
            }
        report["collectives"][mode] = collectives(mode, every)
    x = np.random.default_rng(0).uniform(size=(50, *toys.SHAPE)).astype(np.float32)
    scores = [margins(SOURCE.forward, x, Compute(batch=50, devices=count)) for count in (1, every)]
    report["margins"] = apart(*scores)
    one, several = training(1), training(every)
    report["training"] = {"steps": len(several), "first": apart(one[0], several[0]), "loss": apart(one, several)}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
