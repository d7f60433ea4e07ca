"""The packages of the extras, and what to install where one of them is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# The modules that an extra of this package installs, by the name of the extra.
EXTRAS = {
    "datasets": ("datasets",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "supervision": ("supervision",),
    "train": (
        "PIL",
        "accelerate",
        "docstring_parser",  # with which jsonargparse describes options
        "filelock",
        "hotcoco",
        "huggingface_hub",
        "jsonargparse",
        "matplotlib",
        "safetensors",
        "shtab",
        "simplejpeg",
        "tensorboard",
        "tqdm",
        "yaml",
    ),
    "video": ("av",),
}


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """Return the command that installs the module whose import failed, or None if it belongs to no extra."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"{module} is missing; install the extra: pip install 'detr_fast[{extra}]'"
    return None


@contextmanager
def explaining_missing(package: str) -> Iterator[None]:
    """Name the extra in the error of an import that fails because a package of an extra is not installed.

    Args:
        package: Name of the package whose imports fail.

    Raises:
        ModuleNotFoundError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if explanation := explain_missing(error):
            raise ModuleNotFoundError(f"{package}: {explanation}", name=error.name) from error
        raise
