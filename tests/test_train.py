"""Training: it learns, averages as it says, keeps the epoch validation likes, and resumes to the same bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import SIZE, TOY, linear

from ffjax import checkpoint, defences, train
from ffjax.data.augment import Augment
from ffjax.data.batches import batch_at
from ffjax.detectors import build
from ffjax.engine import Compute
from ffjax.errors import InputError
from ffjax.evaluate import margins
from ffjax.train import TrainConfig
from ffjax.types import ImageSet

MESO = build("meso4", 32, 0.0)
COMPUTE = Compute(chunk=3, batch=8)
PLAIN = Augment(flip=0.5, shift=0.0, jpeg=0.0, light=0.0)


def reddish(count: int = 64) -> ImageSet:
    """Fakes are redder than reals, under noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 2
    pixels = rng.integers(60, 160, (count, SIZE, SIZE, 3))
    pixels[..., 0] += 60 * labels[:, None, None]
    return ImageSet(pixels.astype(np.uint8), labels, np.arange(count, dtype=np.int32), tuple(map(str, range(count))))


def drawn_upon(loss):
    """Mixed with attacked images whose bounds and starts are drawn, and penalised along drawn directions."""
    attacker = defences.climb(0.05, 2, 0.6, "uniform", ranged=True)
    return defences.lipschitz(defences.mixed(loss, TOY, attacker), TOY, 0.1, draws=1)


def trained(folder, config=None, validate=None, watch=lambda *told: None, defend=lambda loss: loss):
    config = config or TrainConfig(epochs=4, batch=16, rate=1e-2, augment=PLAIN)
    shots = checkpoint.snapshots(folder)
    found = train.fit(TOY, reddish(), config, COMPUTE, validate or accuracy, shots, watch, defend)
    shots.close()
    return found


def accuracy(variables) -> float:
    data = reddish()
    said = margins(jax.tree_util.Partial(TOY.apply, variables), data.images, COMPUTE)
    return float(np.mean((said > 0) == (data.labels == 1)))


def test_fit_learns_an_easy_task(tmp_path):
    variables, score = trained(tmp_path, TrainConfig(epochs=20, batch=16, rate=3e-2, augment=PLAIN))
    assert score == accuracy(variables) > 0.95
    first = TOY.init(jax.random.split(jax.random.key(0))[0])
    assert accuracy(first) < 0.8


def test_bfloat16_learns_too_and_leaves_everything_it_keeps_in_float32(tmp_path):
    config = TrainConfig(epochs=20, batch=16, rate=3e-2, precision="bfloat16", augment=PLAIN)
    variables, score = trained(tmp_path, config)
    assert score == accuracy(variables) > 0.95
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_at_precision_computes_the_training_forward_there_and_nothing_else():
    low, images, key = train.at_precision(MESO, "bfloat16"), jnp.ones((8, 32, 32, 3)) / 3, jax.random.key(0)
    variables = MESO.init(key)
    assert train.at_precision(MESO, "float32") is MESO and low.apply is MESO.apply
    assert "bf16" in str(jax.make_jaxpr(low.train)(variables, images, key))
    (near, updated), (exact, expected) = (d.train(variables, images, key) for d in (low, MESO))
    assert {leaf.dtype for leaf in jax.tree.leaves((near, updated))} == {np.dtype(np.float32)}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.05, atol=0.02), updated, expected)
    assert not jnp.array_equal(near.logits, exact.logits)


@pytest.mark.parametrize("defend", [lambda loss: loss, drawn_upon], ids=["plain", "defended"])
def test_killed_in_any_epoch_it_resumes_to_the_same_bits(defend, tmp_path):
    whole, _ = trained(tmp_path / "whole", defend=defend)

    class Killed(Exception):
        pass

    for limit in (2, 5, 9, 14):

        def watch(done, infos, score, limit=limit):
            if done >= limit:
                raise Killed

        with pytest.raises(Killed):
            trained(tmp_path / "cut", watch=watch, defend=defend)
    again, _ = trained(tmp_path / "cut", defend=defend)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


@pytest.mark.parametrize(("epochs", "told"), [(1, "by step 1; there was no"), (2, "by step 1; there was no")])
def test_weights_that_are_no_numbers_are_not_kept_though_the_loss_was_one(epochs, told, tmp_path):
    """sqrt at 0: a loss of 0 with a gradient of 0 / 0."""

    def broken(loss):
        def shifted(variables, batch, key):
            losses, aux = loss(variables, batch, key)
            nothing = sum(jnp.sum(0 * leaf) for leaf in jax.tree.leaves(variables["params"]))
            return losses + jnp.sqrt(nothing), aux

        return shifted

    shots, data = checkpoint.snapshots(tmp_path), reddish()
    config = TrainConfig(epochs=epochs, batch=len(data.labels), augment=PLAIN)
    with pytest.raises(train.Diverged, match=told):
        train.fit(TOY, data, config, COMPUTE, accuracy, shots, lambda *told: None, broken)
    shots.close()


def test_a_loss_that_is_no_number_stops_at_its_step_and_leaves_the_checkpoint(tmp_path):
    def broken(loss):
        return lambda variables, batch, key: jax.tree.map(lambda x: x * jnp.nan, loss(variables, batch, key))

    def go_on(folder):
        shots = checkpoint.snapshots(folder)
        config = TrainConfig(epochs=8, batch=16, augment=PLAIN)
        try:
            train.fit(TOY, reddish(), config, COMPUTE, accuracy, shots, lambda *told: None, broken)
        finally:
            shots.close()

    with pytest.raises(train.Diverged, match="the loss is nan at step 0; there was no checkpoint yet"):
        go_on(tmp_path / "new")
    before, _ = trained(tmp_path / "old")
    with pytest.raises(train.Diverged, match="at step 16; the last good checkpoint, of step 16, is kept"):
        go_on(tmp_path / "old")
    again, _ = trained(tmp_path / "old")
    jax.tree.map(np.testing.assert_array_equal, again, before)


def test_a_defence_changes_what_is_minimised(tmp_path):
    shots = checkpoint.snapshots(tmp_path)
    config, losses = TrainConfig(epochs=1, batch=16, augment=PLAIN), []
    defended = lambda loss: lambda *given: (loss(*given)[0] + 100.0, loss(*given)[1])  # noqa: E731
    train.fit(
        TOY, reddish(), config, COMPUTE, accuracy, shots, lambda done, infos, score: losses.append(infos.loss), defended
    )
    shots.close()
    assert np.concatenate([np.atleast_1d(x) for x in losses]).min() > 100


def test_the_epoch_that_validation_scores_highest_is_returned(tmp_path):
    seen = []

    def second_is_best(variables) -> float:
        seen.append(jax.tree.map(np.array, variables))
        return [0.1, 0.9, 0.5, 0.2][len(seen) - 1]

    variables, score = trained(tmp_path, validate=second_is_best)
    assert score == pytest.approx(0.9)
    jax.tree.map(np.testing.assert_array_equal, variables, seen[1])


def test_the_average_follows_its_equation():
    step = train.make_step(train.cross_entropy(TOY), optax.sgd(0.1), average=0.5)
    state = train._start(TOY, optax.sgd(0.1), jax.random.key(0))
    batch = batch_at(reddish(), 16, 0, 0)
    expected = jax.tree.map(np.asarray, state.average)
    for i in range(12):
        state, _ = step(jnp.int32(i), state, batch, jax.random.key(1))
        decay = min(0.5, i / (i + 9))
        expected = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * np.asarray(w), expected, state.variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.average, expected)


def test_the_step_is_the_gradient_of_the_mean_cross_entropy():
    step = train.make_step(train.cross_entropy(TOY), optax.sgd(0.25))
    state = train._start(TOY, optax.sgd(0.25), jax.random.key(0))
    batch = batch_at(reddish(), 16, 0, 0)

    def loss(params):
        logp = jax.nn.log_softmax(TOY.apply({"params": params}, batch.images).logits)
        return -jnp.mean(logp[jnp.arange(16), batch.labels])

    before = state.variables["params"]
    after, info = step(jnp.int32(0), state, batch, jax.random.key(1))
    assert float(info.loss) == pytest.approx(float(loss(before)), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.25 * g, before, jax.grad(loss)(before))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.variables["params"], expected
    )


def test_a_mask_adds_its_own_cross_entropy_and_only_where_there_are_true_masks():
    def with_mask(variables, images, key):
        outputs = TOY.apply(variables, images)
        return outputs._replace(mask=outputs.acts["conv2"][..., 0] - 1), variables

    batch, rng = batch_at(reddish(), 16, 0, 0), np.random.default_rng(0)
    variables, key = TOY.init(jax.random.key(0)), jax.random.key(1)
    masked = TOY._replace(train=with_mask)
    plain, _ = train.cross_entropy(TOY)(variables, batch, key)
    np.testing.assert_array_equal(train.cross_entropy(masked)(variables, batch, key)[0], plain)

    z = np.asarray(with_mask(variables, batch.images, key)[0].mask)
    truth = rng.integers(0, 2, z.shape).astype(np.float32)
    p = 1 / (1 + np.exp(-z))
    own = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean(axis=(1, 2))
    losses, _ = train.cross_entropy(masked, 0.5)(variables, batch._replace(masks=truth), key)
    np.testing.assert_allclose(losses, plain + 0.5 * own, rtol=1e-5)
    twice = truth.repeat(2, 1).repeat(2, 2)  # masks at the image's size, twice the network's
    coarse, _ = train.cross_entropy(masked, 0.5)(variables, batch._replace(masks=twice), key)
    blurred = jax.image.resize(twice, z.shape, "bilinear", antialias=True)
    own = -(blurred * np.log(p) + (1 - blurred) * np.log(1 - p)).mean(axis=(1, 2))
    np.testing.assert_allclose(coarse, plain + 0.5 * own, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"average": 1.0}, {"mask": -1.0}])
def test_settings_that_no_training_can_use_are_refused(wrong):
    with pytest.raises(InputError, match=f"train[.:].*{next(iter(wrong))}"):
        train.check(TrainConfig(**wrong))


def test_training_ends_when_validation_has_not_improved_for_as_long_as_asked(tmp_path):
    """The second epoch is the best and two more are waited for; taken up again it trains no further."""
    config = TrainConfig(epochs=9, batch=16, rate=1e-2, augment=PLAIN, patience=2)
    scores, steps = iter([0.5, 0.6, 0.6, 0.1]), []
    variables, score = trained(tmp_path, config, lambda v: next(scores), lambda done, *told: steps.append(done))
    assert score == pytest.approx(0.6) and max(steps) == 4 * 4
    again, same = trained(tmp_path, config, lambda v: next(scores), lambda done, *told: steps.append(10**9))
    assert max(steps) == 4 * 4 and same == score
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_accumulated_gradients_are_those_of_one_larger_batch():
    """Weights move once in two steps, by the mean of both gradients: as with twice the batch; so does their running
    average."""
    whole, key = batch_at(reddish(), 16, 0, 0), jax.random.key(1)
    halves = [jax.tree.map(lambda x, k=k: x[8 * k : 8 * k + 8], whole) for k in range(2)]
    detector = linear()
    start = detector.init(jax.random.key(0))

    def run(optimiser, batches, every):
        state = train.TrainState(start, optimiser.init(start["params"]), start, start, jnp.float32(0), jnp.int32(0))
        step = jax.jit(train.make_step(train.cross_entropy(detector), optimiser, 0.9, every))
        for i, batch in enumerate(batches):
            state, _ = step(i, state, batch, key)
        return state.variables["params"], state.average["params"]

    parts = optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()
    many, few = run(parts, 3 * halves, 2), run(optax.adam(1e-2), 3 * [whole], 1)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), many, few)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, many), strict=True))  # the average lags behind
    jax.tree.map(np.testing.assert_array_equal, run(parts, halves[:1], 2)[0], start["params"])


def test_it_learns_from_accumulated_gradients(tmp_path):
    _, score = trained(tmp_path, TrainConfig(epochs=20, batch=8, rate=3e-2, augment=PLAIN, accumulate=2))
    assert score > 0.95


def test_of_epochs_that_score_alike_the_first_is_kept(tmp_path):
    """Scores are kept in float32, where 0.7 is less than 0.7."""
    shots, seen = checkpoint.snapshots(tmp_path), []

    def alike(variables):
        seen.append(jax.tree.map(np.asarray, variables))
        return 0.7

    config = TrainConfig(epochs=3, batch=16, augment=PLAIN)
    best, _ = train.fit(TOY, reddish(), config, COMPUTE, alike, shots, lambda *told: None)
    shots.close()
    jax.tree.map(np.testing.assert_array_equal, best, seen[0])
    assert not np.array_equal(jax.tree.leaves(seen[0])[0], jax.tree.leaves(seen[2])[0])
