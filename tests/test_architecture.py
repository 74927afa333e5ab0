"""Who may import whom, read off the source: the rules of the house that keep the maths free of files and devices."""

import ast
from pathlib import Path

import pytest

import ffjax

ROOT = Path(ffjax.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

ONLY_IN = {
    "flax": ("detectors/",),
    "orbax": ("checkpoint.py",),
    "tensorflow_datasets": ("data/",),
    "jax.sharding": ("devices.py",),
    "jax.distributed": ("devices.py",),
    "jax.experimental.mesh_utils": ("devices.py",),
}
"""Library -> the only places that may name it."""

MATHS = ("types.py", "objectives.py", "balls.py", "goals.py", "gradients.py", "transforms.py", "jpeg.py", "targets.py")
MATHS += ("attacks/", "universal/", "defences/", "detectors/")
NOT_MATHS = tuple(f"detectors/{name}.py" for name in ("__init__", "weights", "keras", "pytorch", "loading"))
NOT_MATHS += ("detectors/adapters/command.py",)
"""Loading, and running somebody's program, is what these are for."""

OUTSIDE = (
    "os",
    "pathlib",
    "io",
    "json",
    "shutil",
    "tempfile",
    "subprocess",
    "PIL",
    "h5py",
    "safetensors",
    "rich",
    "tyro",
)
HOST = (
    "devices",
    "engine",
    "checkpoint",
    "run",
    "evaluate",
    "report",
    "progress",
    "train",
    "uap",
    "study",
    "data",
    "viewing",
)


def names(path: Path) -> set[str]:
    """Every module named: imported, or reached through jax as in jax.sharding.Mesh."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("jax."):
            found.add(ast.unparse(node))
    return found


def uses(path: Path, module: str) -> bool:
    return any(name == module or name.startswith(module + ".") for name in names(path))


def opens_files(path: Path) -> bool:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(isinstance(call, ast.Name) and call.id == "open" for call in calls)


MATHS_FILES = [name for name in FILES if name.startswith(MATHS) and name not in NOT_MATHS]


def test_there_is_something_to_check():
    assert {"types.py", "universal/ascent.py", "detectors/layers.py"} <= set(MATHS_FILES)
    assert uses(FILES["devices.py"], "jax.sharding")
    assert uses(FILES["checkpoint.py"], "orbax")
    assert uses(FILES["detectors/mesonet.py"], "flax")
    assert any(uses(path, "tensorflow_datasets") for name, path in FILES.items() if name.startswith("data/"))


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_named_only_in_its_place(library):
    elsewhere = [n for n, path in FILES.items() if not n.startswith(ONLY_IN[library]) and uses(path, library)]
    assert elsewhere == []


@pytest.mark.parametrize("name", MATHS_FILES)
def test_maths_knows_no_files_and_no_devices(name):
    outside = [module for module in OUTSIDE if uses(FILES[name], module)]
    host = [module for module in HOST if uses(FILES[name], f"ffjax.{module}")]
    assert outside + host == []
    assert not opens_files(FILES[name])


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("universal/", "attacks/", "defences/"))])
def test_what_attacks_sees_a_forward_and_no_detector(name):
    assert not uses(FILES[name], "ffjax.detectors")


def test_the_ground_floor_stands_on_nothing_but_itself():
    own = {name.split(".")[1] for f in ("types.py",) for name in names(FILES[f]) if name.startswith("ffjax.")}
    assert own == set()
    for name in ("objectives.py", "balls.py"):
        own = {n.split(".")[1] for n in names(FILES[name]) if n.startswith("ffjax.")}
        assert own == {"types"}, name


@pytest.mark.parametrize("name", FILES)
def test_files_stay_short(name):
    assert len(FILES[name].read_text().splitlines()) <= 350


def test_nothing_imports_an_experiment_or_a_test():
    assert [n for n, path in FILES.items() if any(uses(path, m) for m in ("experiments", "benchmarks", "tests"))] == []
