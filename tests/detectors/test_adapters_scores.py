"""Models that only give scores: what is asked, what is counted, that no gradient is taken."""

import shlex
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffjax.detectors import checks, layers
from ffjax.detectors.adapters import Convention, command, from_scores
from ffjax.detectors.checks import DetectorWarning
from ffjax.errors import InputError
from ffjax.objectives import margin

SHAPE = (8, 8, 3)
IMAGES = checks.textures(SHAPE)
LOGITS = Convention(bounds=(0, 1), output="logits", fake=0)
BYTES = Convention(bounds=(0, 255), output="probability", fake="high")
WEIGHTS = np.random.default_rng(0).normal(size=(192, 2)).astype(np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def brightness(images):
    """The mean of bytes, as a share of 255."""
    assert images.dtype == np.uint8
    return images.mean(axis=(1, 2, 3)) / 255


def test_scores_become_logits():
    detector, variables, _ = from_scores(linear, SHAPE, LOGITS)
    outputs = jax.jit(detector.apply)(variables, IMAGES)
    np.testing.assert_allclose(margin(outputs), linear(IMAGES) @ [1, -1], rtol=1e-4, atol=1e-5)
    assert outputs.mask is None and layers(detector) == ()


def test_bytes_are_rounded_to_nearest_and_kept_in_range():
    detector, variables, _ = from_scores(lambda x: brightness(x), SHAPE, BYTES, dtype="uint8")
    levels = jnp.array([-0.3, 0.0, 0.49 / 255, 0.51 / 255, 100 / 255, 1.0, 1.2])
    images = jnp.broadcast_to(levels[:, None, None, None], (7, *SHAPE))
    shares = jax.nn.sigmoid(margin(detector.apply(variables, images)))
    np.testing.assert_allclose(shares * 255, [0, 0, 0, 1, 100, 255, 255], atol=1e-4)


def test_what_a_function_is_given_follows_the_convention():
    seen = []

    def fn(images):
        seen.append(images)
        return linear(images)

    says = Convention(bounds=(-1, 1), output="logits", fake=0, channels="BGR", layout="NCHW")
    detector, variables, _ = from_scores(fn, SHAPE, says, check=False)
    jax.block_until_ready(detector.apply(variables, IMAGES))
    (images,) = seen
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, 2 * IMAGES[..., ::-1].transpose(0, 3, 1, 2) - 1, atol=1e-6)


def asked(queries):
    return int(queries.images), int(queries.calls)


def test_the_ledger_counts_every_image_shown():
    detector, variables, queries = from_scores(linear, SHAPE, LOGITS, check=False)
    assert asked(queries) == (0, 0)  # nothing has been asked to build it
    apply = jax.jit(detector.apply)
    jax.block_until_ready(apply(variables, IMAGES))
    assert asked(queries) == (6, 1)
    jax.block_until_ready(apply(variables, IMAGES))
    jax.block_until_ready(apply(variables, IMAGES[:2]))
    assert asked(queries) == (14, 3)
    jax.block_until_ready(jax.vmap(lambda x: detector.apply(variables, x).logits)(jnp.stack([IMAGES, IMAGES])))
    assert asked(queries) == (26, 4)

    def walk(images, _):
        return images + 0.01 * margin(detector.apply(variables, images))[:, None, None, None], None

    scan = jax.jit(lambda images: jax.lax.scan(walk, images, length=5)[0])
    jax.block_until_ready(scan(IMAGES))
    assert asked(queries) == (56, 9)
    jax.block_until_ready(jax.jit(lambda x: detector.apply(variables, x).logits.shape[0] * x)(IMAGES))
    assert asked(queries) == (56, 9)  # a verdict that nobody reads is not asked for


def test_the_checks_ask_what_they_say():
    assert asked(from_scores(linear, SHAPE, LOGITS).queries) == (64, 6)


def test_two_black_boxes_have_two_ledgers():
    first, second = (from_scores(linear, SHAPE, LOGITS, check=False) for _ in range(2))
    jax.block_until_ready(first.detector.apply({}, IMAGES))
    assert asked(first.queries) == (6, 1) and asked(second.queries) == (0, 0)


def test_vmap_and_plain_calls_agree():
    detector, _, _ = from_scores(linear, SHAPE, LOGITS, check=False)
    stacks = jnp.stack([IMAGES, 1 - IMAGES])
    lanes = jax.vmap(lambda x: detector.apply({}, x).logits)(stacks)
    np.testing.assert_allclose(lanes, [detector.apply({}, x).logits for x in stacks], atol=1e-6)


def test_differentiating_is_refused_when_it_is_traced():
    detector, _, queries = from_scores(linear, SHAPE, LOGITS, check=False)

    def total(images):
        return margin(detector.apply({}, images)).sum()

    images = jnp.asarray(IMAGES)
    for attempt in (jax.grad(total), jax.jit(jax.value_and_grad(total)), lambda x: jax.jvp(total, (x,), (x,))):
        with pytest.raises(InputError, match=r"^from_scores: this model gives scores and no gradient; use a black-box"):
            attempt(images)
    assert asked(queries) == (0, 0)


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda x: linear(x)[:, :1], r"from_scores: 9 images got scores of shape \(9, 1\), not \(9, 2\)"),
        (lambda x: linear(x)[0], r"from_scores: 9 images got scores of shape \(2,\)"),
        (lambda x: None, "from_scores: 9 images got scores of shape"),
        (lambda x: {"fake": 1}, "from_scores: got a dict that holds no numbers"),
        (lambda x: linear(x) * np.nan, "from_scores: scores are NaN or infinite"),
        (lambda x: linear(x - x.mean(0)), "from_scores: rows influence each other"),
        (lambda x: np.exp(linear(x)) / np.exp(linear(x)).sum(1, keepdims=True), "these are probabilities"),
        (lambda x: x.undefined, "from_scores: the model fails when it is called: AttributeError: .*undefined"),
    ],
)
def test_faults_are_refused(fn, match, caplog):
    with pytest.raises(InputError, match=match) as caught:
        from_scores(fn, SHAPE, LOGITS)
    assert "\n" not in str(caught.value)
    assert not caplog.records  # JAX would log a page about it


def test_a_detector_that_says_the_same_of_all_is_refused():
    with pytest.raises(
        InputError, match=r"^from_scores: all 9 images get the same scores: it is dead, given wrong bou"
    ):
        from_scores(lambda x: np.full((len(x), 2), [0.7, 1.3]), SHAPE, LOGITS)


def test_decisions_are_a_warning():
    one = Convention(bounds=(0, 1), output="probability", fake="high")
    with pytest.warns(DetectorWarning, match="from_scores: scores take only the values 0, 1: decisions, .* decision-b"):
        from_scores(lambda x: linear(x)[:, 0] > -9.7, SHAPE, one)


def test_faint_noise_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="from_scores: two calls on the same images differ"):
        from_scores(lambda x: linear(x) + 1e-3 * rng.normal(size=(len(x), 2)), SHAPE, LOGITS)


def test_a_random_detector_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="from_scores: two calls on the same images differ"):
        from_scores(lambda x: linear(x) + rng.normal(size=(len(x), 2)), SHAPE, LOGITS)


def test_a_verdict_without_slope_is_no_fault_of_a_black_box():
    from_scores(lambda x: np.rint(2 * linear(x)), SHAPE, LOGITS)


@pytest.mark.parametrize(
    ("dtype", "says", "match"),
    [
        ("float64", LOGITS, "from_scores: unknown dtype 'float64'; known: float32, uint8"),
        ("uint8", LOGITS, r"from_scores: uint8 images have bounds \(0, 255\), mean 0 and std 1"),
        ("uint8", Convention(bounds=(0, 255), output="logits", fake=1, mean=127.0), "from_scores: uint8 images have"),
    ],
)
def test_a_type_that_does_not_fit_is_refused(dtype, says, match):
    with pytest.raises(InputError, match=match):
        from_scores(linear, SHAPE, says, dtype=dtype)


PROGRAM = """
    import sys
    from pathlib import Path
    import numpy as np
    from PIL import Image

    print("loading the model ...")
    for path in sorted(Path(sys.argv[-1]).iterdir(), reverse=True):
        image = np.asarray(Image.open(path), np.float64) / 255
        print(f"{path.name}, {image.mean():.7f}")
"""
BYTE_IMAGES = np.rint(IMAGES * 255).astype(np.uint8)


def program(tmp_path, text=PROGRAM):
    path = tmp_path / "score.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_program_is_asked_with_files(tmp_path, channels):
    images = BYTE_IMAGES[..., :channels]
    scores = command(program(tmp_path))(images)
    np.testing.assert_allclose(scores, images.mean(axis=(1, 2, 3))[:, None] / 255, atol=1e-6)


@pytest.mark.slow
def test_a_program_is_a_detector(tmp_path):
    detector, variables, queries = from_scores(command(program(tmp_path)), SHAPE, BYTES, dtype="uint8", check=False)
    shares = jax.nn.sigmoid(margin(detector.apply(variables, IMAGES)))
    np.testing.assert_allclose(shares, BYTE_IMAGES.mean(axis=(1, 2, 3)) / 255, atol=1e-5)
    assert asked(queries) == (6, 1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("import sys; sys.exit('no such weights')", "exit code 1: no such weights"),
        ("print('00000.png 0.5')", r"printed no score of 00001.png \(5 of 6 missing\)"),
        ("print('00000.png 0.5\\n00000.png 0.5')", "scores 00000.png twice"),
        ("print('00000.png fake')", "no scores in the line '00000.png fake'"),
        ("print('00000.png')", "no scores in the line '00000.png'"),
        ("for i in range(6): print(f'{i:05d}.png' + ' 1' * (i + 1))", "prints different numbers of scores"),
    ],
)
def test_a_program_that_fails_is_refused(tmp_path, text, match):
    with pytest.raises(InputError, match=match):
        command(program(tmp_path, text))(BYTE_IMAGES)


def test_a_program_may_be_given_as_one_line(tmp_path):
    scores = command(shlex.join(program(tmp_path)))(BYTE_IMAGES)
    np.testing.assert_array_equal(scores, command(program(tmp_path))(BYTE_IMAGES))
    for line in ("python 'their.py", 7):
        with pytest.raises(InputError, match=r"command: .* is no line of words"):
            command(line)


def test_a_program_that_cannot_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="command: names no program"):
        command([])
    with pytest.raises(InputError, match=r"no-such-program: cannot be started \(No such file"):
        command(["no-such-program"])(BYTE_IMAGES)
    with pytest.raises(InputError, match=r"took longer than 0\.3 s"):
        command(program(tmp_path, "import time; time.sleep(60)"), timeout=0.3)(BYTE_IMAGES)
    with pytest.raises(InputError, match="command: takes uint8 images"):
        command(program(tmp_path))(IMAGES)


def test_a_programs_fault_is_said_in_one_line_when_it_is_checked(tmp_path, caplog):
    ask = command(program(tmp_path, "import sys; sys.exit('no such weights')"))
    with pytest.raises(InputError, match=r"^from_scores: the model fails .*exit code 1: no such weights$"):
        from_scores(ask, SHAPE, BYTES, dtype="uint8")
    assert not caplog.records
