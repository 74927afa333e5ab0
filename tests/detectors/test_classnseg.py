"""ClassNSeg: the published weights' golden outputs, its quirks, its gate, and the fast forms of its convolutions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ffjax.detectors import classnseg as network
from ffjax.detectors.classnseg import classnseg, gated, gated_train
from ffjax.detectors.pytorch import convert, read_states
from ffjax.errors import InputError

SIZE = 32
HEADS = {
    "mask": lambda outputs: outputs.mask,
    "reconstruction": lambda outputs: outputs.acts["reconstruction"],
    "margin": lambda outputs: outputs.logits[:, 1] - outputs.logits[:, 0],
}


def drawn(seed=0):
    shapes, rng = jax.eval_shape(classnseg(SIZE).init, jax.random.key(0)), np.random.default_rng(seed)

    def leaf(path, shape):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.2, 0.2)
        return jnp.asarray(rng.uniform(low, high, shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (10, SIZE, SIZE, 3))


@pytest.fixture(scope="module")
def variables(images):
    """Drawn, with the forged half of the latent scaled so that some of the images are called fake and some real."""
    variables = drawn()
    logits = run(variables, images).logits
    ratio = jnp.where(jnp.arange(128) < 64, jnp.median(logits[:, 0] / logits[:, 1]), 1.0)
    norm = variables["params"]["encode9"]["bn"]
    norm |= {leaf: norm[leaf] * ratio for leaf in ("scale", "bias")}
    return variables


@functools.cache
def compiled(size, **options):
    return jax.jit(classnseg(size, **options).apply)


def run(variables, images, **options):
    return compiled(images.shape[1], **options)(variables, images)


gate_given = jax.jit(gated)


def template():
    return jax.eval_shape(classnseg().init, jax.random.key(0))


def published(shared, kind="full", epoch=46):
    """The weights as NumPy arrays, so that no test of what they say needs torch."""
    stored = np.load(shared / "classnseg" / "weights_as_npz.npz")
    parts = [f"{kind}/{part}_{epoch}/" for part in ("encoder", "decoder")]
    state = {key[len(part) :]: stored[key] for part in parts for key in stored.files if key.startswith(part)}
    return convert(state, network.torch_layout(), template())


def opened(paths):
    return jnp.asarray(np.stack([np.asarray(Image.open(path).convert("RGB"), np.float32) / 255 for path in paths]))


def golden(shared):
    told = json.loads((shared / "classnseg" / "golden.json").read_text())["checkpoints"]["full_46"]
    return list(told.values()), opened([shared / "classnseg" / name for name in told])


@pytest.mark.shared
def test_scores_probabilities_and_masks_of_the_authors_images(shared):
    told, images = golden(shared)
    outputs = run(published(shared), images)
    np.testing.assert_allclose(outputs.logits, [[t["one"], t["zero"]] for t in told], atol=1e-4, rtol=0)
    original = jax.nn.softmax(outputs.logits)[:, 0]
    np.testing.assert_allclose(original, [t["softmax_prob_original"] for t in told], atol=1e-4, rtol=0)
    assert list(outputs.logits.argmax(1)) == [t["pred"] == "altered" for t in told]
    probability = jax.nn.sigmoid(outputs.mask)
    np.testing.assert_allclose(probability.mean((1, 2)), [t["seg_prob_mean"] for t in told], rtol=1e-3)
    assert list((outputs.mask >= 0).sum((1, 2))) == [t["seg_pixels_altered"] for t in told]
    rebuilt = outputs.acts["reconstruction"]
    np.testing.assert_allclose(rebuilt.mean((1, 2, 3)), [t["rect_mean"] for t in told], atol=1e-4, rtol=0)
    squares = (rebuilt - network.network_input(images)) ** 2
    np.testing.assert_allclose(squares.mean((1, 2, 3)), [t["rect_mse_vs_normalised_input"] for t in told], atol=1e-4)


@pytest.mark.shared
def test_latent_mask_and_reconstruction_pixel_by_pixel(shared):
    maps = np.load(shared / "classnseg" / "golden_maps.npz")
    _, images = golden(shared)
    outputs = run(published(shared), images[:2])
    for i, name in enumerate(("real", "fake")):
        rows = {"latent": outputs.acts["encode9"][i], "rect": outputs.acts["reconstruction"][i]}
        for kind, ours in rows.items():
            told = maps[f"full_46/{name}/{kind}"].astype(np.float32).transpose(1, 2, 0)
            np.testing.assert_allclose(ours, told, atol=1e-3, rtol=0)
        np.testing.assert_allclose(jax.nn.sigmoid(outputs.mask[i]), maps[f"full_46/{name}/seg1"], atol=1e-3, rtol=0)


@pytest.mark.shared
def test_input_gradients_of_the_authors_images(shared):
    told, images = golden(shared)
    detector, variables = classnseg(), published(shared)
    real = jax.jit(jax.grad(lambda x, v: -HEADS["margin"](detector.apply(v, x)).sum()))(images, variables)
    flat = np.asarray(real, np.float64).reshape(len(told), -1)
    told = [t["input_grad_of_one_minus_zero"] for t in told]
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), [t["l2"] for t in told], rtol=1e-3)
    np.testing.assert_allclose(np.abs(flat).max(axis=1), [t["linf"] for t in told], rtol=1e-3)
    np.testing.assert_allclose(flat.sum(axis=1), [t["sum"] for t in told], rtol=1e-3, atol=1e-3)


@pytest.mark.shared
def test_outputs_on_faces_of_set_a(shared):
    folder = shared / "faces-ffhq-stylegan1"
    files = json.loads((folder / "golden_published_nets.json").read_text())["files"]
    outputs = run(published(shared), opened([folder / name for name in files]))
    told = [entry["ClassNSeg_full_46"] for entry in files.values()]
    np.testing.assert_allclose(outputs.logits, [[t["one"], t["zero"]] for t in told], atol=1e-4, rtol=0)
    masks = jax.nn.sigmoid(outputs.mask).mean((1, 2))
    np.testing.assert_allclose(masks, [t["seg_prob_mean"] for t in told], atol=1e-4, rtol=1e-3)


@pytest.mark.shared
def test_the_fine_tuned_weights_do_what_their_provenance_says(shared):
    """Three decimals are told of the scores and of the mask's overlap with the truth."""
    folder = shared / "classnseg" / "inputs256"
    outputs = run(published(shared, "finetune", 26), opened([folder / "real.png", folder / "fake.png"]))
    np.testing.assert_allclose(outputs.logits, [[0.453, 0.252], [0.296, 0.625]], atol=6e-4, rtol=0)
    forged, truth = (
        np.asarray(outputs.mask[1] >= 0),
        np.asarray(Image.open(folder / "fake_mask.png").convert("L")) > 127,
    )
    np.testing.assert_allclose((forged == truth).mean(), 0.921, atol=6e-4)
    np.testing.assert_allclose((forged & truth).sum() / (forged | truth).sum(), 0.799, atol=6e-4)
    assert not (outputs.mask[0] >= 0).any()


@pytest.mark.shared
@pytest.mark.parametrize(("kind", "epoch"), [("full", 46), ("finetune", 26)])
def test_the_two_pytorch_files_are_one_network(shared, kind, epoch):
    pytest.importorskip("torch", reason="published .pt files need torch")
    files = [shared / "classnseg" / "checkpoints" / kind / f"{part}_{epoch}.pt" for part in ("encoder", "decoder")]
    read = convert(read_states(files), network.torch_layout(), template())
    jax.tree.map(np.testing.assert_array_equal, read, published(shared, kind, epoch))
    with pytest.raises(InputError, match=r"missing decoder\.1\.running_mean"):
        convert(read_states(files[:1]), network.torch_layout(), template())


def test_parameter_counts():
    params = template()["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    encoder = sum(n for name, n in count.items() if name.startswith("encode"))
    assert (encoder, sum(count.values()) - encoder) == (148_200, 156_749)


def test_shapes_and_names(variables, images):
    outputs = run(variables, images)
    assert outputs.logits.shape == (10, 2) and outputs.mask.shape == (10, SIZE, SIZE)
    depths = {"encode": 9, "shared": 4, "segment": 4, "reconstruct": 4}
    names = [f"{part}{i}" for part, depth in depths.items() for i in range(1, depth + 1)]
    assert tuple(outputs.acts) == (*names, "reconstruction")
    assert outputs.acts["encode9"].shape == (10, 2, 2, 128)
    assert outputs.acts["reconstruction"].shape == (10, SIZE, SIZE, 3)


def test_rows_do_not_see_each_other(variables, images):
    whole, moved = run(variables, images), run(variables, images[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), whole, moved)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_fault_23_the_released_normaliser_runs_over_the_batch(images, rows):
    told = np.array(images[:rows])
    for row, mean, std in zip(told, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=False):
        row -= mean
        row /= std
    np.testing.assert_allclose(network.network_input(images[:rows], "as_released"), told, rtol=1e-5, atol=1e-6)


def test_both_quirks_as_released(variables, images):
    """Three rows normalised by one channel each, the others raw; the mask a difference of probabilities."""
    released = run(variables, images, normaliser="as_released", mask_softmax="as_released")
    mean, std = (jnp.asarray(each).reshape(1, 1, 1, 3) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    fixed = run(variables, network.network_input(images, "as_released") * std + mean)
    np.testing.assert_allclose(released.logits, fixed.logits, rtol=1e-4, atol=1e-5)
    forged = jax.nn.sigmoid(fixed.mask)
    np.testing.assert_allclose(released.mask, forged - (1 - forged), atol=1e-4)


def test_every_gate(variables, images):
    verdicts = run(variables, images).logits
    predicted = verdicts.argmax(1)
    assert 0 < predicted.sum() < 10
    current, fake, real = (run(variables, images, gate=gate) for gate in ("current", "fake", "real"))
    for outputs, classes in ((current, predicted), (fake, jnp.ones(10, int)), (real, jnp.zeros(10, int))):
        jax.tree.map(np.testing.assert_array_equal, outputs, gate_given(variables, images, classes))
    assert (jnp.abs(fake.mask - real.mask).max((1, 2)) > 0).all()
    mixed = gate_given(variables, images, jnp.arange(10) % 2)
    np.testing.assert_array_equal(mixed.mask[1::2], fake.mask[1::2])
    np.testing.assert_array_equal(mixed.mask[::2], real.mask[::2])
    np.testing.assert_array_equal(mixed.logits, verdicts)


@pytest.mark.slow
def test_fault_25_every_head_has_a_gradient_that_is_finite_and_not_zero(variables, images):
    flat = [jnp.full((1, SIZE, SIZE, 3), grey) for grey in (0.0, 0.5, 1.0)]

    @jax.jit
    def gradients(x, variables, classes):
        return [jax.grad(lambda x, head=head: head(gated(variables, x, classes)).sum())(x) for head in HEADS.values()]

    for label in (0, 1):
        for grads in gradients(jnp.concatenate([images, *flat]), variables, jnp.full(13, label)):
            assert jnp.isfinite(grads).all() and (jnp.abs(grads).max((1, 2, 3)) > 0)[:10].all()


def test_training_with_labels_sets_the_gate_and_updates_the_statistics(variables, images):
    labels = jnp.arange(10) % 2
    train = jax.jit(gated_train)
    (one, updated), (other, _) = (train(variables, images, classes) for classes in (labels, 1 - labels))
    np.testing.assert_array_equal(one.logits, other.logits)
    assert (jnp.abs(one.mask - other.mask).max((1, 2)) > 0).all()
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    for before, after in zip(*map(jax.tree.leaves, (variables["batch_stats"], updated["batch_stats"])), strict=True):
        assert not jnp.array_equal(before, after)
    plain, _ = jax.jit(classnseg(SIZE).train)(variables, images, jax.random.key(0))
    predicted, _ = train(variables, images, plain.logits.argmax(1))
    np.testing.assert_array_equal(plain.mask, predicted.mask)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"gate": "soft"}, "'soft' is unknown; known: current, fake, real"),
        ({"normaliser": "batch"}, "'batch' is unknown; known: fixed, as_released"),
        ({"mask_softmax": "twice"}, "'twice' is unknown; known: fixed, as_released"),
        ({"dropout": 0.5}, r"no dropout, got 0\.5"),
        ({"size": 40}, "positive multiple of 16, got 40"),
    ],
)
def test_unknown_options_are_refused(options, known):
    with pytest.raises(InputError, match=f"classnseg: .*{known}"):
        classnseg(**options)


def test_a_gate_for_images_of_no_such_size_is_refused(variables):
    with pytest.raises(InputError, match="positive multiple of 16, got 40"):
        gated(variables, jnp.zeros((1, 32, 40, 3)), jnp.zeros(1, int))


def halved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=network.DIMENSIONS)


def doubled(x, kernel):
    pads = ((1, 2), (1, 2))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, (2, 2), dimension_numbers=network.DIMENSIONS)


@pytest.mark.parametrize(
    ("form", "textbook"), [(network._halve, halved), (network._double_by_phases, doubled)], ids=["halve", "double"]
)
def test_the_fast_forms_are_the_textbook_ones_to_second_order(form, textbook):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel, x2, kernel2 = (rng.normal(size=s) for s in ((2, 6, 8, 3), (3, 3, 3, 5)) * 2)

        def everything(f):
            def cubes(x, kernel):
                return jnp.sum(f(x, kernel) ** 3)

            def slope(x, kernel):
                return jax.jvp(cubes, (x, kernel), (x2, kernel2))[1]

            value, grads = f(x, kernel), jax.grad(cubes, (0, 1))(x, kernel)
            return value, grads, slope(x, kernel), jax.grad(slope, (0, 1))(x, kernel)

        ours, told = (jax.jit(everything, static_argnums=0)(f) for f in (form, textbook))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, told)


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (8, 2), (24, 1), (24, 2)])
def test_the_transposed_convolution_is_pytorchs(channels, stride):
    torch = pytest.importorskip("torch", reason="compared with PyTorch")
    theirs = torch.nn.ConvTranspose2d(channels, 5, 3, stride, padding=1, output_padding=stride - 1)
    x = torch.randn(2, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    told = theirs(x).detach().numpy().transpose(0, 2, 3, 1)
    kernel, bias = (p.detach().numpy() for p in (theirs.weight, theirs.bias))
    params = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    ours = network._Transposed(5, stride).apply({"params": params}, x.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(ours, told, atol=1e-5)
