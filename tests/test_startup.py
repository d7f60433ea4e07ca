"""What the package and its command line import, and when."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from detr_fast.extras import EXTRAS

ROOT = Path(__file__).parents[1]

HEAVY = ("accelerate", "hotcoco", "huggingface_hub", "matplotlib", "tensorboard", "torch", "triton")
# Runs the code of its second argument while the import of the modules in its first one fails.
RUN_WITHOUT = """
import sys
refused, code = sys.argv[1].split(","), sys.argv[2]
del sys.argv[1:3]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Refuse())
exec(code)
"""


def run_without(modules: tuple[str, ...], code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", RUN_WITHOUT, ",".join(modules), code, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        *((command, "--help") for command in ("eval", "predict", "convert", "export", "check-data", "info")),
    ],
    ids=" ".join,
)
def test_help_is_printed_without_torch(arguments):
    output = run_without(HEAVY, "from detr_fast.cli import main; main()", *arguments)
    assert "detr-fast" in output


@pytest.mark.parametrize("command", ["demo", "train"])
def test_help_of_training_imports_no_library_of_training(command):
    light = tuple(name for name in HEAVY if name not in ("torch", "triton"))
    output = run_without(light, "from detr_fast.cli import main; main()", command, "--help")
    assert "--optim.lr" in output


def test_the_package_is_imported_without_torch():
    code = "import detr_fast; assert {'DETR', 'SetCriterion', 'Targets', 'ops'} <= set(dir(detr_fast))"
    run_without(HEAVY, code)


def test_training_imports_neither_matplotlib_nor_tensorboard():
    code = "import sys; from detr_fast.training import *; print({'matplotlib', 'tensorboard'} & set(sys.modules))"
    assert run_without((), code) == "set()\n"  # Accelerate looks whether TensorBoard exists, so that it is not refused


@pytest.mark.parametrize("package", ["detr_fast", "detr_fast.data", "detr_fast.models", "detr_fast.training"])
def test_every_exported_name_exists(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such_name'"):
        _ = module.no_such_name


# Makes the packages of the extra unavailable, as in an installation without it.
WITHOUT_EXTRA = """
import sys
from detr_fast.extras import EXTRAS
sys.modules.update(dict.fromkeys(EXTRAS["train"]))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from detr_fast import DETR",
        "from detr_fast.models import postprocess",
        "import detr_fast.data",
        "from detr_fast.training import Trainer",
        "from detr_fast.cli import main; main(['train'])",
    ],
)
def test_an_import_without_the_extra_names_it(statement):
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA + statement], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.endswith(" is missing; install the extra: pip install 'detr_fast[train]'")


@pytest.mark.parametrize(
    ("extra", "statement"),
    [
        ("datasets", "from detr_fast.data import save_huggingface_dataset as f; f(None, 'new', box_format='xywh')"),
        ("supervision", "from detr_fast.models import to_supervision; to_supervision({})"),
        ("video", "from detr_fast.training.prediction import _predict_video as f; f(None, None, None, 0.5, [])"),
    ],
)
def test_what_needs_another_extra_names_it(extra, statement):
    without = f"import sys; from detr_fast.extras import EXTRAS; sys.modules.update(dict.fromkeys(EXTRAS['{extra}']));"
    process = subprocess.run([sys.executable, "-c", without + statement], capture_output=True, text=True, check=False)
    assert process.stderr.splitlines()[-1].endswith(f" is missing; install the extra: pip install 'detr_fast[{extra}]'")


def test_transformers_are_accelerated_without_the_extra():
    pytest.importorskip("transformers")
    run_without((), WITHOUT_EXTRA + "import detr_fast.integrations.huggingface")


def test_the_tests_of_the_ops_need_no_extra():
    """So that a wheel can be tested with torch, pytest, hypothesis and scipy alone."""
    code = """
del sys.modules["filelock"]  # on which torch depends too
sys.modules["transformers"] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", *sys.argv[1:]]))
"""
    found = run_without((), WITHOUT_EXTRA + code, str(ROOT / "tests/ops"))
    assert "test_conformance.py::" in found


def test_every_package_of_an_extra_is_known():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"pillow": "PIL", "pyyaml": "yaml"}
    for extra, known in EXTRAS.items():
        packages = [re.match(r"[\w-]+", requirement)[0] for requirement in extras[extra]]
        assert {modules.get(package, package) for package in packages} - {"detr_fast"} == set(known)
