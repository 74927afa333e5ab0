"""Strict numerics for every test, derandomised property tests, and the data handed over beside the repository."""

import os
from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("ffjax", deadline=None, max_examples=15, derandomize=True, database=None)
hypothesis.settings.load_profile("ffjax")

SHARED = Path(os.environ.get("FFJAX_SHARED", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published weights and real images; the test is skipped, with the reason, where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"published weights and images not found at {SHARED} (set FFJAX_SHARED)")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def programs_let_go():
    """After each file its compiled programs are dropped: a process that keeps thousands runs out of memory mappings
    (Linux allows 65,530), and XLA's compiler then dies of a segmentation fault."""
    yield
    jax.clear_caches()
