"""Deep Image Prior as a purifier (Ulyanov, Vedaldi and Lempitsky, CVPR 2018; against perturbed fakes: Gandhi and Jain,
IJCNN 2020, arXiv 2003.10596; PAPERS.md 2.7): a network drawn from scratch for every image,

    min_theta mean (f_theta(z + noise_i) - x)^2,

stopped before it has drawn the perturbation too. What it is worth against an attacker who knows of it is another
question: `unrolled` is for asking it.

One code z and one noise a step are drawn for all images: what an image gets does not depend on its batch-mates, and
the convolution that reads the code serves all networks at once. The paper draws both for each image alone, one image a
run.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ffjax.attacks.trail import wide
from ffjax.defences import skip_network
from ffjax.defences.skip_network import NETWORKS, Params, Skip
from ffjax.errors import InputError
from ffjax.gradients import Transform
from ffjax.objectives import margin
from ffjax.types import Array, Batch, Forward, Process

ADAM = optax.scale_by_adam(eps_root=1e-30)
"""Under the root, what no float32 sees beside 1e-8 outside of it: of a parameter without effect (a bias before a
normalisation) the gradient is 0, and the root has no derivative there, so that `unrolled` would have none at all."""


class Stop(NamedTuple):
    """When a row is settled as real and done: at `patience` looks in a row, none of them before look `first` (0: the
    first), the mean of P(real) over the last `window` looks (fewer at the beginning) is above the threshold. form:
    'drawn' or 'average', which of the two images the detector looks at.

    That is the paper's asymmetry: what comes to be called real is real, a fake never is settled. All of it is to be
    calibrated (gandhi_dip_rules.stopping).
    """

    form: str
    window: int
    threshold: float
    first: int
    patience: int


class Prior(NamedTuple):
    """How an image is drawn. network, rate (of Adam), noise (sd, added to z at every step), average (weight of what was
    drawn before in the running mean) and drop are the paper's; its steps are 10,000, of which 6,000 decide, at 512 px.

    drop: PSNR in dB that may be lost against the last copy of the parameters before they are put back; that copy is
    made every `guard` steps (there: every one). look: steps between two looks of the detector. stop: when a row is done
    before its last step; None: never.
    """

    network: Skip = NETWORKS["paper"]
    steps: int = 3000
    rate: float = 0.01
    noise: float = 1 / 30
    average: float = 0.99
    drop: float = 5.0
    guard: int = 50
    look: int = 10
    stop: Stop | None = None
    code: int = 0
    """Seed of z and of the noise, the same for all images."""


class Drawing(NamedTuple):
    """Where each image's network stands; every leaf (B, ...). kept, kept_psnr: the copy it may be put back to. drawn,
    average (B, H, W, 3): what it drew last, and the running mean. psnr (B,): of `drawn`, in dB. restored (B,) int32:
    how often it was put back."""

    images: Array
    params: Params
    adam: Any
    kept: Params
    kept_psnr: Array
    drawn: Array
    average: Array
    psnr: Array
    restored: Array


class Watched(NamedTuple):
    """A drawing with what the detector said of it at each look, (B, looks): margins of what was drawn and of the
    running mean, and the PSNR; NaN where it has not looked yet. done (B,) bool: settled, what is shown stays."""

    drawing: Drawing
    said: Array
    said_average: Array
    psnr: Array
    done: Array


class Drawn(NamedTuple):
    """What came of B images. drawn, average (B, H, W, 3): at the last step; said, said_average, psnr (B, looks) at
    steps look, 2 look, ...; looks (B,): how many there were until the row was settled. restored (B,)."""

    drawn: Array
    average: Array
    said: Array
    said_average: Array
    psnr: Array
    looks: Array
    restored: Array


def begin(prior: Prior, images: Array, keys: Array, start: Params | None = None) -> Drawing:
    """A network for each of the images (B, H, W, 3) in [0, 1], its parameters drawn from that row of keys (B,), or all
    begun at `start`, one image's. An image of any size is the first rows and columns of what its network draws."""
    rows = len(images)
    if start is None:
        params = jax.vmap(lambda key: skip_network.init(prior.network, key))(keys)
    else:
        params = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape)), start)
    params = jax.tree.map(lambda x: x.astype(images.dtype), params)
    none, zero = jnp.full(rows, -jnp.inf, images.dtype), jnp.zeros(rows, jnp.int32)
    adam = jax.vmap(ADAM.init)(params)
    return Drawing(images, params, adam, params, none, images, images, none, zero)


def advance(prior: Prior, i: Array, at: Drawing, conv: Callable[..., Array] | None = None) -> Drawing:
    """One step of Adam on every image's network; i: how many there have been. conv: as of skip_network.apply.

    psnr is of the parameters before the step. Where it has fallen by more than `drop` below the copy's, the parameters
    go back to the copy instead (Adam's memory stays as it is, as there).
    """
    height, width = at.images.shape[1:3]
    key = jax.random.key(prior.code)
    z = skip_network.code(key, prior.network, height, width).astype(at.images.dtype)
    z += prior.noise * jax.random.normal(jax.random.fold_in(key, 1 + i), z.shape, z.dtype)

    def errors(params: Params) -> tuple[Array, tuple[Array, Array]]:
        drawn = skip_network.apply(prior.network, params, z, conv)[:, :height, :width]
        each = jnp.mean(jnp.square(drawn - at.images), axis=(1, 2, 3))
        return jnp.sum(each), (each, drawn)

    slope, (error, drawn) = jax.grad(errors, has_aux=True)(at.params)
    psnr = -10 / math.log(10) * jnp.log(error)
    direction, adam = jax.vmap(ADAM.update)(slope, at.adam)
    fell = psnr < at.kept_psnr - prior.drop

    def back(moved: Array, kept: Array) -> Array:
        return jnp.where(wide(fell, moved), kept, moved)

    def copied(_: None) -> tuple[Params, Array]:
        return jax.tree.map(back, at.params, at.kept), jnp.where(fell, at.kept_psnr, psnr)

    kept, kept_psnr = jax.lax.cond(i % prior.guard == 0, copied, lambda _: (at.kept, at.kept_psnr), None)
    moved = jax.tree.map(lambda x, d: x - prior.rate * d, at.params, direction)
    params = jax.tree.map(back, moved, at.kept)
    average = jnp.where(i == 0, drawn, prior.average * at.average + (1 - prior.average) * drawn)
    restored = at.restored + fell
    return Drawing(at.images, params, adam, kept, kept_psnr, drawn, average, psnr, restored)


def stood(prior: Prior, image: Array, steps: int, key: Array) -> Params:
    """Parameters of a network that has drawn this image (H, W, 3) for so many iterations, begun at random from key:
    where those of other images may begin."""
    at = begin(prior, image[None], key[None])
    for i in range(steps):
        at = _advance(prior, jnp.int32(i), at)
    return {name: x[0] for name, x in at.params.items()}


_advance = jax.jit(advance, static_argnums=0)


def images_in(memory: int, prior: Prior, height: int, width: int) -> int:
    """About how many images of that size one step may draw at once in so many bytes, 1 at least: as many as lie on the
    line through what the compiled steps of two and of four say of themselves. What the detector needs at its looks is
    not counted. InputError where programs say nothing."""

    def needed(rows: int) -> int:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        images = jax.ShapeDtypeStruct((rows, height, width, 3), jnp.float32)
        at = jax.eval_shape(functools.partial(begin, prior), images, keys)
        step = jax.jit(functools.partial(advance, prior)).lower(jax.ShapeDtypeStruct((), jnp.int32), at).compile()
        told = step.memory_analysis()
        if told is None:
            raise InputError("prior.batch: must be given: programs of this backend do not say what memory they need")
        return told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes

    two, four = needed(2), needed(4)
    return max(1, 2 + 2 * (memory - two) // max(1, four - two))


def dip(prior: Prior, start: Params | None = None) -> Process:
    """Every image drawn by a network of its own, the detector looking on. start: parameters of one network that all
    begin at, in place of random ones (a warm start).

    finish gives a Drawn. What a row gets is a function of the image, its id, the seed and the prior: to the bit, alone
    or with whatever others, while as many rows are drawn at once (engine.run fills up to compute.least: where that is
    compute.batch, as gandhi_dip has it, they always are). Another number of rows rounds
    otherwise in the last bit, and Adam's first steps, which are signs, magnify that: another drawing, though as near to
    the image (tests/defences/test_dip.py states both).
    """
    init = _init(prior) if start is None else functools.partial(_begun, prior, start)
    return Process(init, _step(prior), _finish, prior.steps)  # type: ignore[arg-type]


def _begun(prior: Prior, start: Params | None, forward: Forward, batch: Batch, eps: Array, seeds: Array) -> Watched:
    del forward, eps
    keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seeds, batch.ids)
    rows, looks = len(batch.labels), -(-prior.steps // prior.look)
    unseen = jnp.full((rows, looks), jnp.nan)
    return Watched(begin(prior, batch.images, keys, start), unseen, unseen, unseen, jnp.zeros(rows, bool))


@functools.lru_cache(maxsize=16)
def _init(prior: Prior) -> Callable[..., Watched]:
    """As `_step`."""
    return functools.partial(_begun, prior, None)


@functools.lru_cache(maxsize=16)
def _step(prior: Prior) -> Callable[..., Watched]:
    """The same function for the same prior, so that it is compiled once."""

    def step(i: Array, state: Watched, forward: Forward) -> Watched:
        drawing = advance(prior, i, state.drawing)
        now = state._replace(drawing=_frozen(state.done, state.drawing, drawing))
        due = ((i + 1) % prior.look == 0) | (i + 1 == prior.steps)
        return jax.lax.cond(due, lambda s: looked(prior, i // prior.look, s, forward), lambda s: s, now)

    return step


def _finish(state: Watched, forward: Forward) -> Drawn:
    seen, at = jnp.sum(~jnp.isnan(state.said), axis=1), state.drawing
    return Drawn(at.drawn, at.average, state.said, state.said_average, state.psnr, seen, at.restored)


def looked(prior: Prior, number: Array, state: Watched, forward: Forward) -> Watched:
    """The detector's `number`-th look at rows that are not done, and which of them it settles."""
    at = state.drawing

    def noted(values: Array, new: Array) -> Array:
        here = (jnp.arange(values.shape[1]) == number)[None] & ~state.done[:, None]
        return jnp.where(here, new[:, None], values)

    said = noted(state.said, margin(forward(at.drawn)))
    average = noted(state.said_average, margin(forward(at.average)))
    done = state.done
    if prior.stop is not None:
        done |= settled(prior.stop, said if prior.stop.form == "drawn" else average, number)
    return Watched(at, said, average, noted(state.psnr, at.psnr), done)


def settled(stop: Stop, said: Array, number: Array) -> Array:
    """said (B, looks), NaN past the look of that number -> (B,) bool: settled at it."""
    places = jnp.arange(said.shape[1])
    real = jnp.where(jnp.isnan(said), 0, jax.nn.sigmoid(-said))
    sums = jnp.cumsum(jnp.pad(real, ((0, 0), (1, 0))), axis=1)
    begins = jnp.maximum(places + 1 - stop.window, 0)
    means = (sums[:, 1:] - sums[:, begins]) / (places + 1 - begins)[None]
    among = (places <= number) & (places > number - stop.patience)
    return (number + 1 - stop.patience >= stop.first) & jnp.all((means > stop.threshold) | ~among[None], axis=1)


def unrolled(prior: Prior, key: Array, images: Array, stride: int = 0) -> Array:
    """Images (B, H, W, 3) -> what their networks have drawn after prior.steps, as one differentiable program: what an
    attacker who knows of the defence goes through. The running mean is what the defender shows, so it is returned.

    Memory: about 2 sqrt(steps) states and one step's activations, for steps are recomputed on the way back in pieces of
    `stride` (0: sqrt(steps)). Every row's parameters come from `key`, as if all had one id: the attacker has them.
    """
    stride = stride or max(1, math.isqrt(prior.steps))
    keys = jnp.broadcast_to(key, (len(images),))

    @jax.checkpoint
    def piece(at: Drawing, numbers: Array) -> tuple[Drawing, None]:
        def one(at: Drawing, i: Array) -> tuple[Drawing, None]:
            return jax.checkpoint(lambda a: advance(prior, i, a, skip_network.columns))(at), None

        return jax.lax.scan(one, at, numbers)[0], None

    at = begin(prior, images, keys)
    whole = prior.steps // stride * stride
    at, _ = jax.lax.scan(piece, at, jnp.arange(whole).reshape(-1, stride))
    if whole < prior.steps:
        at, _ = piece(at, jnp.arange(whole, prior.steps))
    return at.average


def transform(prior: Prior) -> Transform:
    """`unrolled` under the type of the other purifiers (ffjax.defences.purifiers), the key deciding the first
    parameters: for small images and few steps, since all of it is one program."""
    return lambda key, image: unrolled(prior, key, image[None])[0]


def _frozen(done: Array, old: Drawing, new: Drawing) -> Drawing:
    """What is shown of rows that are done stays; their parameters may go on, nobody looks at them."""

    def kept(a: Array, b: Array) -> Array:
        return jnp.where(wide(done, b), a, b)

    return new._replace(
        drawn=kept(old.drawn, new.drawn),
        average=kept(old.average, new.average),
        restored=kept(old.restored, new.restored),
    )
