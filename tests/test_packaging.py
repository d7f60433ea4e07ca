"""A built wheel works from any directory, on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks, so that a file that was never added is missed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout, so that nothing tells which files belong to the project")
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def unpacked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), "."]
    built = target / "source"
    shutil.copytree(source, built, symlinks=True)
    subprocess.run(build, cwd=built, check=True, capture_output=True)
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
import numpy as np, detr_fast, detr_fast.kernels.match_cost, detr_fast._C
from importlib.resources import files
print(detr_fast.__file__, detr_fast._C.__file__, detr_fast.kernels.match_cost.__file__)
print(files("detr_fast.configs") / "demo.yaml")
assert detr_fast.ops.linear_sum_assignment(np.eye(2))[1].tolist() == [1, 0]
""".replace("ROOT_PATH", repr(str(ROOT)))
    for path in _run(code, unpacked, directory).split():
        assert path.startswith(str(unpacked))
        assert Path(path).exists()


def test_wheel_holds_no_package_called_kernels(unpacked):
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"detr_fast"}


def test_a_source_tree_that_is_not_installed_runs_on_the_references(source):
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import detr_fast, torch
from detr_fast.info import describe
targets = detr_fast.Targets.from_list([{"labels": [0], "boxes": [[0.5, 0.5, 0.2, 0.2]]}])
print(detr_fast.SetCriterion()(torch.zeros(2, 1, 3, 4), torch.rand(2, 1, 3, 4), targets).total.isfinite())
print(detr_fast.__file__)
print(describe())
"""
    total, path, *info = _run(code, source, source).splitlines()
    assert total == "tensor(True)"
    assert path.startswith(str(source))
    assert sum("cpp: the extension is not built" in line for line in info) >= 4
    assert "  match_cost: reference" in info


def test_a_package_called_kernels_is_found_from_the_repository(tmp_path):
    """The folder is a namespace, which any package of its name takes precedence over."""
    code = """
import sys; sys.path.insert(0, ROOT_PATH)
from importlib.metadata import packages_distributions
import kernels
print(getattr(kernels, "owner", None), "kernels" in packages_distributions())
""".replace("ROOT_PATH", repr(str(ROOT)))
    assert _run(code, Path("/nowhere"), Path("/")) == "None False\n"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("owner = 'another project'\n")
    assert _run(code, tmp_path, Path("/")) == "another project False\n"
