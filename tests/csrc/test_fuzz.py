"""The C++ ops under sanitizers, with random inputs whose results are checked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CSRC = Path(__file__).parents[2] / "csrc"
TOOLS = ["cmake", "ninja", "c++"]


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def _links(sanitizers: str, folder: Path) -> bool:
    """Return whether the compiler has the sanitizers' libraries."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    return _run("c++", f"-fsanitize={sanitizers}", source, "-o", folder / "empty").returncode == 0


@pytest.mark.parametrize(("sanitizers", "inputs"), [("address,undefined", 20_000), ("thread", 10_000)])
def test_fuzzing_finds_nothing(sanitizers, inputs, tmp_path):
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not _links(sanitizers, tmp_path):
        pytest.skip(f"the compiler lacks a sanitizer of {sanitizers}")
    build = tmp_path / "build"
    configured = _run("cmake", "-G", "Ninja", "-S", CSRC, "-B", build, f"-DSANITIZER={sanitizers}")
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = _run("cmake", "--build", build)
    assert built.returncode == 0, built.stdout + built.stderr
    found = _run(build / "fuzz", str(inputs))
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{inputs} inputs, nothing found" in found.stdout
