"""A built wheel works from any directory, on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    source = target / "source"
    # Built from what git tracks, so that a file that was never added shows.
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout, so that nothing says which files are the project's")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "site")
    return target / "site"


def _run(code: str, site: Path, directory: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("directory", [Path("/"), ROOT], ids=["elsewhere", "root of the repository"])
def test_wheel_imports_from_anywhere(unpacked, directory):
    code = """
import sys; sys.path[:] = [p for p in sys.path if p not in ("", ROOT_PATH)]
import numpy as np, detr_fast, detr_fast.kernels, detr_fast._C
from importlib.resources import files
print(detr_fast.__file__, detr_fast._C.__file__, detr_fast.kernels.__file__, files("detr_fast.configs") / "demo.yaml")
assert detr_fast.ops.linear_sum_assignment(np.eye(2))[1].tolist() == [1, 0]
""".replace("ROOT_PATH", repr(str(ROOT)))
    for path in _run(code, unpacked, directory).split():
        assert path.startswith(str(unpacked))
        assert Path(path).exists()


def test_wheel_holds_no_package_called_kernels(unpacked):
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"detr_fast"}


def test_the_folder_makes_way_for_the_package_of_its_name(tmp_path):
    code = """
import sys; sys.path.insert(0, ROOT_PATH)
import kernels
print(getattr(kernels, "whose", None), kernels.__file__)
try:
    import kernels.anything
except ModuleNotFoundError:
    print("nothing inside")
""".replace("ROOT_PATH", repr(str(ROOT)))
    assert _run(code, Path("/nowhere"), Path("/")) == "None None\nnothing inside\n"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("whose = 'theirs'\n")
    assert _run(code, tmp_path, Path("/")).startswith(f"theirs {tmp_path}")
