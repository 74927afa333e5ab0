"""Training a detector: one TrainState, one make_step(loss), one fit that resumes. Defences plug in at the loss."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ffjax import devices, engine, objectives
from ffjax.checkpoint import Snapshots
from ffjax.data import augment
from ffjax.data.augment import Augment, augmented
from ffjax.data.batches import batch_at
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.types import Array, Batch, Detector, ImageSet, LossFn, Outputs, Variables


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained: epochs over the split, images a step, Adam's peak rate (cosine decay to 0), decay of the running
    average of the weights (what is validated and kept; 0 for the last step's), seed of weights and batches, the type
    that the training forward computes in (see `at_precision`), the weight of the mask's loss beside the verdict's
    (where network and data have masks), batches whose gradients are averaged before the weights move, epochs without
    a better validation score after which training ends (0: none), and the variations of the images."""

    epochs: int = 24
    batch: int = 32
    rate: float = 2e-3
    average: float = 0.99
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    mask: float = 1.0
    accumulate: int = 1
    patience: int = 0
    augment: Augment = field(default_factory=Augment)


def check(config: TrainConfig) -> None:
    """InputError for settings that no training can use."""
    for name, least in (("epochs", 1), ("batch", 1), ("accumulate", 1), ("patience", 0)):
        if getattr(config, name) < least:
            raise InputError(f"train.{name}: must be at least {least}, got {getattr(config, name)}")
    if not config.rate > 0 or not 0 <= config.average < 1 or config.mask < 0 or not 0 <= config.seed < 2**32:
        told = f"{config.rate}, {config.average}, {config.mask}, {config.seed}"
        raise InputError(
            f"train: rate > 0, average in [0, 1), mask >= 0 and seed in 0 to 2^32 - 1 are needed, got {told}"
        )
    augment.check(config.augment)


def epoch_steps(config: TrainConfig, count: int) -> int:
    """Steps an epoch of so many images. InputError if all epochs together have fewer than are gathered for one move."""
    each = -(-count // config.batch)
    if (whole := each * config.epochs) < config.accumulate:
        raise InputError(
            f"train.accumulate: {config.accumulate} batches are more than the {whole} of the whole training"
        )
    return each


class Diverged(InputError):
    """The loss is no number any more: at these settings nothing is to be had."""


class TrainState(NamedTuple):
    """variables and optimiser now; their running average; the best average by validation score, that score (), and the
    number of steps () after which it was."""

    variables: Variables
    optimiser: Any
    average: Variables
    best: Variables
    best_score: Array
    best_step: Array


class TrainInfo(NamedTuple):
    """Per step: mean loss, and accuracy on the step's own batch."""

    loss: Array
    accuracy: Array


def at_precision(detector: Detector, precision: str) -> Detector:
    """The detector with a training forward that computes in this type; the detector itself for float32.

    Weights, their gradients, running statistics, outputs and the loss stay float32, and so does `apply`: what is
    validated, kept and attacked is the float32 network.
    """
    if precision == "float32":
        return detector

    def train(variables: Variables, images: Array, key: Array) -> tuple[Outputs, Variables]:
        low = {**variables, "params": _cast(variables["params"], precision)}
        outputs, updated = detector.train(low, images.astype(precision), key)
        kept = {name: tree for name, tree in updated.items() if name != "params"}
        return _cast(outputs, "float32"), {**variables, **_cast(kept, "float32")}

    return detector._replace(train=train)


def _cast(tree: Any, precision: str) -> Any:
    return optax.tree.cast(tree, precision)


def cross_entropy(detector: Detector, mask: float = 1.0) -> LossFn:
    """objectives.cross_entropy of the training forward (dropout and batch statistics on)."""

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[Array, tuple[Outputs, Variables]]:
        outputs, variables = detector.train(variables, batch.images, key)
        return objectives.cross_entropy(outputs, batch, mask), (outputs, variables)

    return loss


def make_step(
    loss: LossFn, optimiser: optax.GradientTransformation, average: float = 0.0, every: int = 1
) -> Callable[..., tuple[TrainState, TrainInfo]]:
    """step(i, state, batch, key) -> (state, info): one optimiser step on the mean loss. key is folded with i.

    The average a of the variables w (running statistics included) follows a <- d a + (1 - d) w, with
    d = min(average, n / (n + 9)), n the moves of the weights so far, so that it forgets the start as fast as it can.
    every: steps between two moves of an optimiser that gathers gradients; the average follows only those.
    """

    def step(i: Array, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainInfo]:
        def mean_loss(params):
            losses, aux = loss({**state.variables, "params": params}, batch, jax.random.fold_in(key, i))
            return jnp.mean(losses), aux

        params = state.variables["params"]
        (value, (outputs, variables)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        updates, new = optimiser.update(grads, state.optimiser, params)
        variables = {**variables, "params": optax.apply_updates(params, updates)}
        accuracy = jnp.mean((objectives.margin(outputs) > 0) == (batch.labels == 1))
        moves = (i + 1) // every - 1
        decay = jnp.where((i + 1) % every == 0, jnp.minimum(average, moves / (moves + 9.0)), 1.0)
        kept = optax.incremental_update(variables, state.average, 1 - decay)
        return state._replace(variables=variables, optimiser=new, average=kept), TrainInfo(value, accuracy)

    return step


def fit(
    detector: Detector,
    data: ImageSet,
    config: TrainConfig,
    compute: Compute,
    validate: Callable[[Variables], float],
    snapshots: Snapshots,
    watch: Callable[[int, TrainInfo, float | None], None],
    defend: Callable[[LossFn], LossFn] = lambda loss: loss,
) -> tuple[Variables, float]:
    """Trains, and returns the variables of the epoch that `validate` scored highest, with that score. Diverged where a
    loss is not finite.

    Args:
      validate: variables -> score on a validation split (never the test split).
      snapshots: one is written after each epoch; a run killed and started again goes on from the last and ends, on CPU,
        with bit-equal variables.
      watch(step, infos, score): called after each chunk (score None) and each epoch.
      defend: from cross-entropy to what is minimised (ffjax.defences).
    """
    each = epoch_steps(config, len(data.labels))
    steps = each * config.epochs
    optimiser = optax.adam(optax.cosine_decay_schedule(config.rate, steps // config.accumulate))
    if config.accumulate > 1:
        optimiser = optax.MultiSteps(optimiser, config.accumulate).gradient_transformation()
    loss = defend(cross_entropy(at_precision(detector, config.precision), config.mask))
    step = make_step(loss, optimiser, config.average, config.accumulate)
    key_init, key_steps = jax.random.split(jax.random.key(config.seed))
    on = devices.mesh(compute.devices)

    def inputs(i: int) -> Batch:
        return devices.split(
            augmented(batch_at(data, config.batch, config.seed, i), config.augment, config.seed, i), on
        )

    done, state = snapshots.restore(devices.replicate(_start(detector, optimiser, key_init), on))
    while (good := done) < steps and not _settled(state, done, config.patience * each):
        end = min(steps, done + each)
        run = engine.drive(step, state, (key_steps,), end, compute, inputs=inputs, start=done)
        for done, state, infos in run:  # noqa: B007  (the last one counts)
            _check_finite(done, infos, good)
            watch(done, infos, None)
        _check_weights(done, state, good)
        score = validate(state.average)
        if np.float32(score) > np.float32(state.best_score):  # which is kept so: of a tie the first
            # a copy: the state is donated to the next step, and no two of its leaves may share a buffer
            best = jax.tree.map(jnp.copy, state.average)
            state = state._replace(
                best=best,
                best_score=jnp.full_like(state.best_score, score),
                best_step=jnp.full_like(state.best_step, done),
            )
        snapshots.save(done, state)
        watch(done, infos, score)
    return jax.tree.map(np.asarray, state.best), float(state.best_score)


def _settled(state: TrainState, done: int, patience: int) -> bool:
    """Whether validation has not improved for `patience` steps; never for 0."""
    return bool(patience) and bool(np.isfinite(state.best_score)) and done - int(state.best_step) >= patience


def _check_finite(done: int, infos: TrainInfo, good: int) -> None:
    losses = np.asarray(infos.loss)
    wrong = np.flatnonzero(~np.isfinite(losses))
    if len(wrong):
        step = done - len(losses) + wrong[0]
        raise Diverged(f"training: the loss is {losses[wrong[0]]} at step {step}; {_kept(good)}")


def _check_weights(done: int, state: TrainState, good: int) -> None:
    """A loss may be finite where its gradient is not."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.variables, state.average))):
        raise Diverged(f"training: weights are no numbers by step {done}; {_kept(good)}")


def _kept(good: int) -> str:
    return f"the last good checkpoint, of step {good}, is kept" if good else "there was no checkpoint yet"


def _start(detector: Detector, optimiser: optax.GradientTransformation, key: Array) -> TrainState:
    variables = jax.jit(detector.init)(key)
    average, best = (jax.tree.map(jnp.copy, variables) for _ in range(2))
    never = jnp.float32(-jnp.inf), jnp.int32(0)
    return TrainState(variables, optimiser.init(variables["params"]), average, best, *never)
