from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SECONDS = 15  # for each sanitizer
TOOLS = ["cmake", "ninja", "c++"]


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def _links(sanitizer: str, folder: Path) -> bool:
    """Whether the compiler has the sanitizer's library."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    return _run("c++", f"-fsanitize={sanitizer}", source, "-o", folder / "empty").returncode == 0


@pytest.mark.parametrize("sanitizer", ["address", "undefined", "thread"])
def test_fuzzing_finds_nothing(sanitizer, tmp_path):
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not _links(sanitizer, tmp_path):
        pytest.skip(f"the compiler has no {sanitizer} sanitizer")
    build = tmp_path / "build"
    configured = _run("cmake", "-G", "Ninja", "-S", CSRC, "-B", build, f"-DSANITIZER={sanitizer}")
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = _run("cmake", "--build", build)
    assert built.returncode == 0, built.stdout + built.stderr
    found = _run(build / "fuzz", str(SECONDS))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "nothing found" in found.stdout
