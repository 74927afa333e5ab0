"""Deep Image Prior: it draws, it is put back when it falls, it settles, and every image gets what it gets alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from ffjax import engine, gandhi_dip_rules
from ffjax.data.batches import batch_at
from ffjax.defences import dip, purifiers, skip_network
from ffjax.defences.dip import Prior
from ffjax.defences.skip_network import NETWORKS, Skip
from ffjax.engine import Compute
from ffjax.gandhi_dip_rules import Early, Rule
from ffjax.types import Batch

TINY = Skip((6,), (2,), 4)
PRIOR = Prior(TINY, steps=12, look=4, guard=3)
"""Used as it is, with four rows, wherever that will do: a program of it takes ten seconds to compile."""
COMPUTE = Compute(batch=4, least=1)


def batch(count: int = 4) -> Batch:
    return batch_at(toys.images(20), count, 0, 0)


advance = jax.jit(dip.advance, static_argnums=0)


def begun(some: Batch, seed: int = 0, start=None) -> dip.Drawing:
    """As the process begins."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(some.ids))
    return dip.begin(PRIOR, jnp.asarray(some.images), keys, start)


def drawn(prior: Prior, some: Batch, compute: Compute = COMPUTE, seed: int = 0, **kwargs):
    return engine.run(dip.dip(prior, **kwargs), toys.forward(), some, 0.0, seed, compute)


def test_it_draws_the_image_and_says_how_near_it_came():
    smooth = np.broadcast_to(np.linspace(0.2, 0.8, 12, dtype=np.float32)[None, :, None, None], (4, 12, 12, 3))
    some = batch()._replace(images=smooth)
    at = first = advance(PRIOR, jnp.int32(0), begun(some))
    for i in range(1, 150):
        at = advance(PRIOR, jnp.int32(i), at)
    assert np.all(at.psnr > first.psnr + 5) and np.all(at.psnr > 20)
    error = np.mean(np.square(at.drawn - smooth), axis=(1, 2, 3))
    np.testing.assert_allclose(at.psnr, -10 * np.log10(error), rtol=1e-4)


def test_the_looks_are_what_the_detector_says_at_those_steps():
    some = batch()
    whole, at = drawn(PRIOR, some), begun(some)
    for i in range(PRIOR.steps):
        at = advance(PRIOR, jnp.int32(i), at)
        if (i + 1) % PRIOR.look == 0:
            number = i // PRIOR.look
            for image, said in ((at.drawn, whole.said), (at.average, whole.said_average)):
                logits = toys.forward()(image).logits
                # 1e-3: another program, whose rounding Adam magnifies
                np.testing.assert_allclose(said[:, number], logits[:, 1] - logits[:, 0], atol=1e-3)
    assert whole.said.shape == (4, 3) and np.all(whole.looks == 3)
    assert np.ptp(whole.said, axis=1).max() > 0.1  # or the looks could all be one


def test_an_image_of_any_size_is_a_corner_of_what_is_drawn_and_nothing_else_is_asked_for():
    """9 x 7 pixels, on a canvas of 10 x 8: what lies beside them has no slope."""
    prior, images = PRIOR._replace(noise=0.0), jnp.asarray(batch().images)[:, :9, :7]
    keys = jax.random.split(jax.random.key(0), len(images))
    at = advance(prior, jnp.int32(0), dip.begin(prior, images, keys))
    z = skip_network.code(jax.random.key(prior.code), TINY, 9, 7)
    begun = dip.begin(prior, images, keys).params
    whole = skip_network.apply(TINY, begun, z)
    assert at.drawn.shape == images.shape and whole.shape == (4, 10, 8, 3)
    np.testing.assert_allclose(at.drawn, whole[:, :9, :7], atol=1e-6)
    error = np.mean(np.square(whole[:, :9, :7] - images), axis=(1, 2, 3))
    np.testing.assert_allclose(at.psnr, -10 * np.log10(error), atol=1e-3)
    for i in range(1, 12):
        at = advance(prior, jnp.int32(i), at)
    assert np.all(at.psnr > -10 * np.log10(error))


def test_steps_that_are_no_multiple_of_looks_end_with_a_look():
    found = drawn(PRIOR._replace(steps=10), batch())
    assert found.said.shape == (4, 3) and not np.any(np.isnan(found.said))


def test_the_running_mean_is_of_what_was_drawn():
    at = advance(PRIOR, jnp.int32(0), begun(batch()))
    mean = at.drawn
    for i in range(1, 5):
        at = advance(PRIOR, jnp.int32(i), at)
        mean = PRIOR.average * mean + (1 - PRIOR.average) * at.drawn
    np.testing.assert_allclose(at.average, mean, atol=1e-6)
    assert np.abs(at.average - at.drawn).max() > 1e-3


def test_what_falls_is_put_back_to_its_copy_and_nothing_else_is():
    at = begun(batch())
    for i in range(4):
        at = advance(PRIOR, jnp.int32(i), at)
    # the second row's copy is claimed to be far better than it is
    claimed = at._replace(kept_psnr=at.kept_psnr + jnp.array([0.0, 40.0, 0.0, 0.0]))
    after, plain = (advance(PRIOR, jnp.int32(4), one) for one in (claimed, at))
    np.testing.assert_array_equal(after.restored, [0, 1, 0, 0])
    np.testing.assert_array_equal(plain.restored, [0, 0, 0, 0])
    for name in after.params:
        np.testing.assert_array_equal(after.params[name][1], at.kept[name][1])
        np.testing.assert_array_equal(
            np.delete(after.params[name], 1, axis=0), np.delete(plain.params[name], 1, axis=0)
        )


def test_copies_are_made_every_guard_steps_of_what_was_measured():
    at = begun(batch())
    for i in range(5):
        before, at = at, advance(PRIOR, jnp.int32(i), at)
        if i % PRIOR.guard == 0:
            np.testing.assert_array_equal(at.kept["last"], before.params["last"])
            np.testing.assert_array_equal(at.kept_psnr, at.psnr)
        else:
            np.testing.assert_array_equal(at.kept["last"], before.kept["last"])


def test_an_image_gets_to_the_bit_what_it_gets_alone():
    """Alone it is drawn beside copies of itself, in a program of as many rows."""
    some, compute = batch(4), Compute(batch=4, least=4)
    together = drawn(PRIOR, some, compute)
    for row in range(4):
        chosen = Batch(*(None if x is None else np.asarray(x)[[row]] for x in some))
        alone = drawn(PRIOR, chosen, compute)
        for name in ("drawn", "average", "said", "psnr"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[row], name)


@pytest.mark.slow
def test_another_number_of_rows_is_another_drawing_as_near_to_the_image():
    """The small network on a smooth picture and on noise, 32 px, 150 steps: pixels may differ by a tenth of the range,
    since the first steps of Adam are signs and magnify the last bit; the distance to the image does not, to 1 dB."""
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(0.2, 0.8, 32, dtype=np.float32)[:, None, None], (32, 32, 3))
    images = np.stack([smooth, rng.uniform(0.3, 0.7, (32, 32, 3)).astype(np.float32), 1 - smooth, smooth[::-1]])
    keys, prior = jax.random.split(jax.random.key(0), 4), Prior(NETWORKS["small"])
    ends = []
    for rows in (slice(0, 2), slice(0, 4)):
        at, mean = dip.begin(prior, jnp.asarray(images[rows]), keys[rows]), []
        for i in range(150):
            at = advance(prior, jnp.int32(i), at)
            mean += [np.asarray(at.psnr[:2])] * (i >= 140)
        ends.append(np.mean(mean, axis=0))
    np.testing.assert_allclose(*ends, atol=1.0)
    assert np.all(np.abs(ends[0][0] - ends[0][1]) > 3)  # which is far less than what one image has over another


def test_another_number_of_rows_rounds_otherwise():
    """To 1e-3 of the image's range after 12 steps here."""
    some = batch(4)
    together = drawn(PRIOR, some)
    for rows in ([2], [3, 0, 1]):
        chosen = Batch(*(None if x is None else np.asarray(x)[rows] for x in some))
        alone = drawn(PRIOR, chosen, Compute(batch=len(rows), least=1))
        np.testing.assert_allclose(alone.drawn, together.drawn[rows], atol=1e-3)
        np.testing.assert_allclose(alone.said, together.said[rows], atol=1e-3)
    # and not what another gets
    assert np.abs(together.drawn[0] - together.drawn[1]).max() > 0.05


def test_batch_mates_do_not_change_a_row_of_the_same_batch_size():
    some = batch(4)
    other = some._replace(images=np.concatenate([np.asarray(some.images)[:1], 1 - np.asarray(some.images)[1:]]))
    np.testing.assert_array_equal(drawn(PRIOR, some).drawn[0], drawn(PRIOR, other).drawn[0])


def test_a_cut_run_goes_on_to_the_bit():
    some, kept = batch(), {}
    process = dip.dip(PRIOR)
    whole = engine.run(
        process, toys.forward(), some, 0.0, 0, Compute(batch=4, least=1, chunk=4, snapshot=4),
        save=lambda n, s: kept.__setitem__(n, jax.tree.map(np.copy, s)),
    )  # fmt: skip
    again = engine.run(
        process, toys.forward(), some, 0.0, 0, Compute(batch=4, least=1, chunk=4), restore=lambda like: (8, kept[8])
    )
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_so_many_images_fit_as_the_compiled_step_says_it_needs():
    keys, images = jax.random.split(jax.random.key(0), 6), jnp.zeros((6, 12, 12, 3))
    told = advance.lower(PRIOR, jnp.int32(0), dip.begin(PRIOR, images, keys)).compile().memory_analysis()
    six = told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes
    assert abs(dip.images_in(six, PRIOR, 12, 12) - 6) <= 1
    assert dip.images_in(10 * six, PRIOR, 12, 12) > 45 and dip.images_in(0, PRIOR, 12, 12) == 1


def test_seed_and_id_decide_the_network_and_a_warm_start_does_not():
    some = batch()
    first, second = drawn(PRIOR, some, seed=0), drawn(PRIOR, some, seed=1)
    assert np.abs(first.drawn - second.drawn).max() > 1e-3
    start = skip_network.init(TINY, jax.random.key(5))
    warm = [drawn(PRIOR, some, seed=seed, start=start) for seed in (0, 1)]
    np.testing.assert_array_equal(warm[0].drawn, warm[1].drawn)
    np.testing.assert_array_equal(begun(some, start=start).params["last"][1], start["last"])


def test_a_warm_start_is_nearer_from_the_first_step():
    some = batch()
    at = begun(some)
    for i in range(60):
        at = advance(PRIOR, jnp.int32(i), at)
    start = {name: x[0] for name, x in at.params.items()}
    again, cold = begun(some, seed=1, start=start), begun(some, seed=1)
    warm_psnr, cold_psnr = (advance(PRIOR, jnp.int32(0), one).psnr[0] for one in (again, cold))
    assert warm_psnr > cold_psnr + 1


def test_real_is_settled_by_looks_in_a_row_and_fake_never():
    stop = dip.Stop("drawn", 1, float(jax.nn.sigmoid(0.5)), 0, 2)
    said = jnp.array([[-1.0, -1.0, 9.0], [-1.0, 1.0, -1.0], [9.0, -0.6, -0.7], [2.0, 2.0, 2.0], [-0.4, -0.4, -0.4]])
    found = [np.asarray(dip.settled(stop, said, jnp.int32(k))).tolist() for k in range(3)]
    no = [False] * 5
    assert found == [no, [True, *no[1:]], [False, False, True, False, False]]
    late = stop._replace(first=1)
    assert [np.asarray(dip.settled(late, said, jnp.int32(k))).tolist() for k in range(2)] == [no, no]


@given(
    st.integers(0, 2**16),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from(["drawn", "average"]),
)
def test_a_drawing_stops_where_the_rule_decides_along_the_way(seed, window, patience, first, form):
    """gandhi_dip_rules.early on whole trajectories, and the process, look by look, which sees no later one."""
    rng = np.random.default_rng(seed)
    said = {name: np.round(np.cumsum(rng.normal(size=(6, 8)), axis=1), 4) for name in ("said", "said_average")}
    rows = [{name: values[k].tolist() for name, values in said.items()} for k in range(6)]
    rule, how = Rule(form, 7, 0.6, window), Early(patience, first)
    called, took = gandhi_dip_rules.early(rows, rule, how)
    stop, done = gandhi_dip_rules.stopping(rule, how), np.full(6, -1)
    mine = said["said" if form == "drawn" else "said_average"]
    for look in range(8):
        seen = np.where(np.arange(8) <= look, mine, np.nan)
        now = np.asarray(dip.settled(stop, jnp.asarray(seen), jnp.int32(look)))
        done = np.where((done < 0) & now, look + 1, done)
    np.testing.assert_array_equal(np.where(done < 0, 8, done), took)
    assert not called[done > 0].any()


def test_a_settled_row_shows_what_settled_it_and_stops_the_run():
    some = batch()

    def always_real(images):
        said = toys.TOY.apply(toys.TOY.init(jax.random.key(0)), images)
        return said._replace(logits=jnp.stack([jnp.ones(len(images)), jnp.zeros(len(images))], axis=1))

    steps, stop = [], dip.Stop("average", 1, 0.5, 0, 2)
    found = engine.run(
        dip.dip(PRIOR._replace(stop=stop)), jax.tree_util.Partial(always_real), some, 0.0, 0, COMPUTE,
        watch=lambda done, left: steps.append((done, left)),
    )  # fmt: skip
    assert steps[-1] == (8, 0) and np.all(found.looks == 2)
    at, shown = begun(some), []
    for i in range(12):
        at = advance(PRIOR, jnp.int32(i), at)
        shown.append(at.drawn)
    np.testing.assert_allclose(found.drawn, shown[7], atol=1e-3)
    assert np.abs(shown[7] - at.drawn).max() > 0.01


@pytest.mark.parametrize("picture", [0.0, 1.0, 0.5])
def test_it_stays_finite_on_constant_images(picture):
    some = batch()._replace(images=np.full((4, 12, 12, 3), picture, np.float32))
    found = drawn(PRIOR, some)
    assert np.all(np.isfinite(found.drawn)) and np.all(np.isfinite(found.said))


def test_it_is_a_purifier_as_others_are():
    prior, images = Prior(TINY, steps=3), jnp.asarray(batch(2).images)
    key, forward = jax.random.key(3), toys.forward()
    said = purifiers.purified(dip.transform(prior), key, forward)(images).logits
    np.testing.assert_allclose(said, forward(dip.unrolled(prior, key, images)).logits, atol=1e-4)
    assert np.abs(said - forward(images).logits).max() > 1e-2
