"""Fake tensors on ``cuda`` where PyTorch was built without CUDA, so that what a GPU is asked to do can be recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of a process in which fake tensors on ``cuda`` have gradients.

    Args:
        directory: Where a library is compiled, if PyTorch was built without CUDA.

    Raises:
        RuntimeError: The library is needed and cannot be compiled; the message says why.
    """
    if torch.version.cuda is not None:
        return dict(os.environ)
    if not sys.platform.startswith("linux"):
        raise RuntimeError("without CUDA, fake tensors on cuda need Linux")
    library, root = directory / "fake_cuda.so", Path(torch.__file__).parent
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
    command += [f"-I{root / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f"there is no C++ compiler {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {error.stderr}") from error
    return {**os.environ, "LD_PRELOAD": str(library)}
