"""Every fenced block of the documentation runs as it is written, or is checked where a run is too expensive.

Python blocks of a page run in one fresh process, in order. Shell blocks run in a directory that has the files they
name. HTML comments, which no reader sees, say what is different:

``<!-- python``, lines, ``-->``
    Python that runs in place, for what a snippet takes as given and for assertions on what it computes.
``<!-- check -->``
    The commands of the shell block that follows are checked: options, paths, targets and extras exist.
``<!-- needs: NAME -->``
    The Python block that follows runs where ``NAME`` is installed (``cuda``: where there is a GPU), and is compiled
    elsewhere.
``<!-- paths -->``
    Each line of the text block that follows begins with paths of the repository.

YAML blocks are parsed as configurations of a training run, and C++ blocks, which begin with the name of their file, are
compiled. Every other block fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)")
COMMENT = re.compile(r"<!-- (check|paths|needs: [a-z_]+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block, or Python in a comment."""

    page: Path
    line: int  # of its first line of content, from 1
    language: str
    mode: str  # the comment before it, "" for none
    content: str

    @property
    def name(self) -> str:
        """Where it is, for a test's id."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    lines = page.read_text().splitlines()
    return list(_scan(page, lines))


def _scan(page: Path, lines: list[str]) -> Iterator[Block]:
    number, mode = 0, ""
    while number < len(lines):
        line = lines[number]
        number += 1
        if line == "<!-- python":
            end = lines.index("-->", number)
            yield Block(page, number + 1, "python", "", "\n".join(lines[number:end]))
            number = end + 1
        elif comment := COMMENT.fullmatch(line):
            mode = comment[1]
        elif fence := FENCE.fullmatch(line):
            assert not fence[1], f"{page.name}:{number}: a block that is indented cannot be copied"
            end = lines.index(fence[2], number)
            yield Block(page, number + 1, fence[3].strip(), mode, "\n".join(lines[number:end]))
            number, mode = end + 1, ""
        else:
            assert not mode, f"{page.name}:{number}: <!-- {mode} --> must stand directly before a block"


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def select(language: str, mode: str) -> list[Any]:
    """The parameters of a test of these blocks."""
    return [pytest.param(b, id=b.name) for b in BLOCKS if (b.language, b.mode) == (language, mode)]


def pages_with(language: str) -> list[Any]:
    """The parameters of a test of the pages that have blocks in this language."""
    pages = dict.fromkeys(block.page for block in BLOCKS if block.language == language)
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def is_available(requirement: str) -> bool:
    """Whether a block with ``<!-- needs: requirement -->`` can run."""
    return torch.cuda.is_available() if requirement == "cuda" else find_spec(requirement) is not None


def test_every_block_is_run_or_checked():
    languages = {"python", "sh", "yaml", "cpp", "text"}
    modes = {"sh": {"", "check"}, "yaml": {""}, "cpp": {""}, "text": {"paths"}}
    for block in BLOCKS:
        assert block.language in languages, f"{block.name}: a block of {block.language!r} is neither run nor checked"
        known = modes.get(block.language)
        if known is None:
            assert not block.mode or block.mode.startswith("needs: "), block.name
        else:
            assert block.mode in known, f"{block.name}: {block.mode!r} is no check of a block of {block.language}"


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page, workdir, tmp_path):
    # Every block stays on its own lines, so that a traceback names lines of the page.
    lines = [""] * len(page.read_text().splitlines())
    for block in read_blocks(page):
        if block.language != "python":
            continue
        compile(block.content, block.name, "exec")
        if not block.mode or is_available(block.mode.removeprefix("needs: ")):
            content = block.content.splitlines()
            lines[block.line - 1 : block.line - 1 + len(content)] = content
    script = tmp_path / f"page_{page.stem}.py"  # not the name of a package that it imports
    script.write_text("\n".join(lines) + "\n")
    _run([sys.executable, str(script)], workdir)


@pytest.mark.parametrize("block", select("sh", ""))
def test_shell_blocks_run(block, workdir):
    _run(["bash", "-euo", "pipefail", "-c", block.content], workdir)


@pytest.mark.parametrize("block", select("sh", "check"))
def test_shell_blocks_are_valid(block, workdir, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [shlex.split(line, comments=True) for line in block.content.replace("\\\n", " ").splitlines()]
    for command in filter(None, commands):
        for arguments in _split_at(command, "&&"):
            while "=" in arguments[0]:  # a variable of the environment
                arguments = arguments[1:]
            program, *rest = arguments
            assert program in CHECKS, f"{block.name}: {program} is neither run nor checked"
            CHECKS[program](rest, workdir)


@pytest.mark.parametrize("block", select("yaml", ""))
def test_yaml_blocks_are_configurations(block, workdir, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(block.content)
    _check_cli(["train", "--config", str(config)], workdir)


@pytest.mark.parametrize("page", pages_with("cpp"))
def test_cpp_blocks_compile(page, tmp_path):
    import pybind11

    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    sources = []
    for block in read_blocks(page):
        if block.language != "cpp":
            continue
        name = re.match(r"// (csrc/\S+)\n", block.content)
        assert name, f"{block.name}: the first line must name the file"
        source = tmp_path / name[1]
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(block.content + "\n")
        sources += [str(source)] if source.suffix == ".cpp" else []
    includes = [tmp_path / "csrc", ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    _run([compiler, "-std=c++17", "-fsyntax-only", *(f"-I{path}" for path in includes), *sources], tmp_path)


@pytest.mark.parametrize("block", select("text", "paths"))
def test_paths_exist(block):
    for line in block.content.splitlines():
        paths, *_ = re.split(r"\s{2,}", line.strip())
        for path in paths.split():
            assert (ROOT / path).exists(), f"{block.name}: there is no {path}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_to_files_exist(page):
    """Those within docs/ are checked by mkdocs."""
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (ROOT / link).exists(), f"{page}: there is no {link}"


def _run(command: list[str], directory: Path) -> str:
    return _run_once(tuple(command), directory)


@cache
def _run_once(command: tuple[str, ...], directory: Path) -> str:
    """Run a command that several pages may have."""
    # The environment of a user, which is activated and does not ask for Triton's interpreter as the tests do.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _split_at(command: list[str], separator: str) -> Iterator[list[str]]:
    while separator in command:
        position = command.index(separator)
        yield command[:position]
        command = command[position + 1 :]
    yield command


def _check_cli(arguments: list[str], workdir: Path) -> None:
    """Only what trains is too expensive to run; its configuration is parsed and printed."""
    assert arguments[0] in ("train", "demo"), f"detr-fast {arguments[0]} can be run"
    _run([sys.executable, "-m", "detr_fast.cli", *arguments, "--print_config"], workdir)


def _check_launcher(arguments: list[str], workdir: Path) -> None:
    """torchrun OPTIONS -m detr_fast.cli ..."""
    module = arguments.index("-m")
    assert arguments[module + 1] == "detr_fast.cli"
    _check_cli(arguments[module + 2 :], workdir)


def _check_make(arguments: list[str], workdir: Path) -> None:
    _run(["make", "-n", *arguments], ROOT)


def _check_pip(arguments: list[str], workdir: Path) -> None:
    if arguments[0] == "download":  # the data of an example, in the release that its numbers belong to
        requirements = [argument for argument in arguments[1:] if not argument.startswith("-")]
        assert all(re.fullmatch(r"[\w-]+==[\d.]+", requirement) for requirement in requirements), requirements
        return
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments.pop(0) == "install"
    for argument in arguments:
        if requirement := re.fullmatch(r"(?:\.|detr_fast)(?:\[(.*)\])?", argument):
            assert set((requirement[1] or "").split(",")) - {""} <= extras.keys(), argument
        elif "=" in argument:
            assert any(argument in requirements for requirements in extras.values()), argument
        elif not argument.startswith("-"):
            assert (ROOT / argument).is_file(), argument


def _check_python(arguments: list[str], workdir: Path) -> None:
    """python -m MODULE OPTIONS, or python FILE."""
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
        return
    module, *options = arguments[1:]
    if module == "detr_fast.cli":
        _check_cli(options, workdir)
        return
    help_text = _run([sys.executable, "-m", module, "--help"], ROOT)
    for option in options:
        assert not option.startswith("-") or option.partition("=")[0] in help_text, f"{module} has no {option}"


def _check_pytest(arguments: list[str], workdir: Path) -> None:
    for argument in arguments:
        if not argument.startswith("-") and "/" in argument:
            assert (ROOT / argument.partition("::")[0]).exists(), argument
    if "-m" in arguments:
        markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
        used = set(arguments[arguments.index("-m") + 1].split()) - {"not", "and", "or"}
        assert used <= {declared.partition(":")[0] for declared in markers}


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "accelerate": _check_launcher,
    "detr-fast": _check_cli,
    "make": _check_make,
    "pip": _check_pip,
    "pytest": _check_pytest,
    "python": _check_python,
    "torchrun": _check_launcher,
}
