"""The C++ ops as a compiler sees them that knows standard C++ only."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
EXTENSIONS = re.compile(r"__attribute__|__builtin_|_Pragma|#pragma (?!once)|__restrict|\bimmintrin\b")

# Compiled by GCC and Clang alone: x86 instruction sets beyond the baseline, and vector extensions with their arrays.
GUARDED = {
    "assignment/simd_avx2-inl.h",
    "assignment/simd_avx512-inl.h",
    "assignment/simd_portable-inl.h",
    "assignment/transpose_x86-inl.h",
    "common/compiler.h",
    "common/instruction_set.cpp",
    "common/lanes-inl.h",
}


def test_extensions_of_compilers_stay_in_few_files():
    using = {
        str(path.relative_to(CSRC))
        for path in CSRC.rglob("*")
        if path.suffix in (".h", ".cpp") and EXTENSIONS.search(path.read_text(encoding="utf-8"))
    }
    assert using == GUARDED


@pytest.mark.slow
def test_the_ops_in_standard_cpp_compute_the_same(tmp_path):
    if not shutil.which("c++"):
        pytest.skip("not installed: c++")
    sources = [path for path in CSRC.rglob("*.cpp") if "bindings" not in path.parts]
    flags = ["-std=c++17", "-O1", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread"]
    fuzz = tmp_path / "fuzz"
    command = ["c++", *flags, "-DDETR_FAST_STANDARD_CPP", f"-I{CSRC}", *map(str, sources), "-o", str(fuzz)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    found = subprocess.run([str(fuzz), "3000"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
