"""Models that only give scores: a NumPy function, asked from JAX, counted, and without a gradient."""

import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffjax.detectors.adapters.build import Shape, Ways, adapt, declared, one_line
from ffjax.detectors.adapters.convention import Convention, Raw
from ffjax.errors import InputError
from ffjax.types import Array, Detector, Variables


class Queries(NamedTuple):
    """A ledger on the host, NOT a pure value: two () int64 arrays that grow in place while the model is asked.

    images: images shown to the model. calls: times it was called. Both count what was really asked, the checks
    included: JAX leaves out calls whose result nobody reads, and asks once for what does not change inside a loop. Read
    them after block_until_ready.
    """

    images: np.ndarray
    calls: np.ndarray


class BlackBox(NamedTuple):
    """An adapted model (see Adapted) with its ledger."""

    detector: Detector
    variables: Variables
    queries: Queries


def from_scores(
    fn: Callable[[np.ndarray], Any],
    shape: Shape,
    convention: Convention,
    *,
    dtype: Literal["float32", "uint8"] = "float32",
    check: Any = True,
) -> BlackBox:
    """A NumPy function images -> scores as a Detector for black-box attacks, and the ledger of its queries.

    fn: images (n, H, W, C), as the convention says, to scores (n, K), (n, 1) or (n,), each row by itself.
    dtype: what it takes; 'uint8' rounds to the nearest byte and needs bounds (0, 255) without normalisation.
    Works under jit, scan and vmap (rows joined into one call). Differentiating it raises InputError when it is traced.
    On a CPU that is split into several devices a callback and a collective can wait for each other: use one device.
    The checks ask about 64 images (three times nine, twice 18, and one alone), so pass check=False where a query costs.
    Raises InputError as `from_function`; a fault of fn in an attack surfaces as JAX's error with its text.

        detector, variables, queries = from_scores(ask, (64, 64, 3), says, dtype="uint8")
    """
    shape = declared("from_scores", shape, convention)
    _check_dtype(dtype, convention)
    queries, lock = Queries(np.zeros((), np.int64), np.zeros((), np.int64)), threading.Lock()
    answer = (convention.classes,) if convention.output in ("logits", "probabilities") else ()

    def ask(images: Array) -> np.ndarray:
        """Runs on the host: images (..., H, W, C) -> scores (..., K) or (...)."""
        x = np.asarray(images)
        rows = x.reshape(-1, *x.shape[-3:])
        rows = np.clip(np.rint(rows), 0, 255).astype(np.uint8) if dtype == "uint8" else rows
        with lock:  # JAX may ask from two threads
            queries.images[...] += len(rows)
            queries.calls[...] += 1
        return _scores(_answer(fn, rows), len(rows), answer).reshape(*x.shape[:-3], *answer)

    @jax.custom_jvp
    def call(images: Array) -> Array:
        shape = jax.ShapeDtypeStruct((images.shape[0], *answer), jnp.float32)
        return jax.pure_callback(ask, shape, images, vmap_method="broadcast_all")

    @call.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise InputError("from_scores: this model gives scores and no gradient; use a black-box attack")

    ways = Ways(cheap=False)
    return BlackBox(
        *adapt("from_scores", lambda _, images: Raw(call(images)), {}, shape, convention, check, ways), queries
    )


def _answer(fn: Callable[[np.ndarray], Any], rows: np.ndarray) -> Any:
    try:
        return fn(rows)
    except InputError:
        raise
    except Exception as error:  # whatever somebody else's function raises
        raise InputError(f"{type(error).__name__}: {one_line(error)}") from error


def _check_dtype(dtype: str, convention: Convention) -> None:
    if dtype not in ("float32", "uint8"):
        raise InputError(f"from_scores: unknown dtype {dtype!r}; known: float32, uint8")
    plain = tuple(convention.bounds) == (0, 255) and np.all(convention.mean == 0) and np.all(convention.std == 1)
    if dtype == "uint8" and not plain:
        raise InputError("from_scores: uint8 images have bounds (0, 255), mean 0 and std 1")


def _scores(found: Any, rows: int, answer: tuple[int, ...]) -> np.ndarray:
    """float32 scores (rows, *answer). InputError for another shape or for what is no number."""
    try:
        scores = np.asarray(found, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"from_scores: got a {type(found).__name__} that holds no numbers") from None
    if scores.shape not in ((rows, *answer), (rows, *(answer or (1,)))):
        raise InputError(f"from_scores: {rows} images got scores of shape {scores.shape}, not {(rows, *answer)}")
    return scores
