"""Sets made at first use: by one process, while the others wait; and read from a folder nobody may write."""

import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from ffjax.data import forged_faces as f
folder = Path(sys.argv[1])
def render(seed, domain, split, count):
    (folder / "rendered").open("a").write(split + " ")
    for _ in range(1200):
        if (folder / "go").exists():
            break
        time.sleep(0.05)
    return map(f.encode, [f.example(0, "a", "test", k) for k in range(2)])
f.render = render
print(f.load("a", "test", folder / "data").labels.tolist())
"""


@pytest.mark.slow
def test_of_two_processes_one_makes_the_set_and_the_other_waits_and_says_so(tmp_path):
    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    processes = [start(), start()]
    try:
        while not (tmp_path / "rendered").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        late = start()
        processes.append(late)
        assert "another process is making a_evaluation_0; waiting for it" in late.stderr.readline()  # type: ignore[union-attr]
        (tmp_path / "go").touch()
        for process in processes:
            out, _ = process.communicate(timeout=120)
            assert (process.returncode, out) == (0, "[0, 1]\n")
    finally:
        for process in processes:
            process.kill()
    assert sorted((tmp_path / "rendered").read_text().split()) == ["test", "validation"]
    lock = tmp_path / "data" / ".a_evaluation_0.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # what is made is read without a lock, so a folder that may only be read will do
    assert subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], timeout=120).returncode == 0
