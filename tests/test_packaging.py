"""A built wheel works from any directory, and the source distribution holds what builds and tests it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

# An editable install of this repository would provide what another copy of the package lacks.
WITHOUT_EDITABLE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks, so that a file that was never added is missed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout, so that nothing tells which files belong to the project")
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def unpacked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    shutil.copytree(source, target / "source", symlinks=True)
    built = _build(target / "source", os.environ)
    assert built.returncode == 0, built.stderr
    return _unpack(target / "source")


def _build(source: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Build the wheel of a source tree in its folder dist."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


def _unpack(source: Path) -> Path:
    (wheel,) = source.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(source / "site")
    return source / "site"


@pytest.fixture(scope="module")
def source_distribution(source: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of its files, without those that setuptools writes."""
    copy = tmp_path_factory.mktemp("sdist") / "source"
    shutil.copytree(source, copy, symlinks=True)
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (archive,) = copy.glob("dist/*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    return {name for name in names if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name}


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


def test_source_distribution_holds_what_builds_and_tests_the_ops(source, source_distribution):
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    folders = ("csrc/", "detr_fast/", "kernels/", "tests/ops/")
    unused = ("csrc/fuzz/", "detr_fast/kernels/")
    wanted = {name for name in files if name.startswith(folders) and not name.startswith(unused)}
    golden = {name for name in source_distribution if name.startswith("tests/golden/")}
    assert source_distribution - wanted - golden == {
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "setup.py",
        "tests/conftest.py",
    }
    assert wanted <= source_distribution
    tests = "".join(path.read_text() for path in (source / "tests/ops").glob("*.py"))
    read = {"inputs", *re.findall(r'golden\("(\w+)"\)', tests)}
    assert golden == {"tests/golden/README.md", *(f"tests/golden/{name}.npz" for name in read)}


def test_a_source_tree_that_is_not_installed_runs_on_the_references(source):
    code = f"""{WITHOUT_EDITABLE}
import detr_fast, torch
from detr_fast.info import describe
targets = detr_fast.Targets.from_list([{{"labels": [0], "boxes": [[0.5, 0.5, 0.2, 0.2]]}}])
print(detr_fast.SetCriterion()(torch.zeros(2, 1, 3, 4), torch.rand(2, 1, 3, 4), targets).total.isfinite())
print(detr_fast.__file__)
print(describe())
"""
    total, path, *info = _run(code, source, source).splitlines()
    assert total == "tensor(True)"
    assert path.startswith(str(source))
    assert sum("cpp: the extension is not built" in line for line in info) >= 4
    assert "  match_cost: reference" in info


@pytest.fixture
def without_compiler(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine on which no program is found by its name."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    return environment | {"PATH": str(tmp_path / "no programs")}


def test_without_a_compiler_the_wheel_is_of_python_alone(source, without_compiler, tmp_path):
    shutil.copytree(source, tmp_path / "source", symlinks=True)
    built = _build(tmp_path / "source", without_compiler)
    assert built.returncode == 0, built.stderr
    assert "-py3-none-any.whl" in built.stdout
    site = _unpack(tmp_path / "source")
    code = f"""{WITHOUT_EDITABLE}
import detr_fast, torch
from detr_fast.info import describe
targets = detr_fast.Targets.from_list([{{"labels": [0], "boxes": [[0.5, 0.5, 0.2, 0.2]]}}])
for _ in range(2):
    detr_fast.ops.match_cost(torch.zeros(1, 1, 3, 2), torch.rand(1, 1, 3, 4), targets)
print(detr_fast.__file__)
print(describe())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=without_compiler | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(site))
    assert "  match_cost: reference\n" in done.stdout
    assert done.stdout.count("is not built (No module named 'detr_fast._C'); install a C++17 compiler") >= 4
    assert done.stderr.count("RuntimeWarning: detr_fast runs on slower backends: the extension is not built") == 1


@pytest.mark.parametrize("compiler", [None, "/nowhere/c++"], ids=["faulty source", "CXX names none"])
def test_a_build_with_a_compiler_may_not_fail_silently(source, compiler, tmp_path):
    shutil.copytree(source, tmp_path / "source", symlinks=True)
    shutil.rmtree(tmp_path / "source/csrc")
    (tmp_path / "source/csrc").mkdir()
    (tmp_path / "source/csrc/faulty.cpp").write_text("#error this is faulty\n" if compiler is None else "")
    built = _build(tmp_path / "source", os.environ | ({} if compiler is None else {"CXX": compiler}))
    assert built.returncode != 0
    assert ("this is faulty" if compiler is None else compiler) in built.stderr + built.stdout


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
