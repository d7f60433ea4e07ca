"""Attributes of a package that are imported on first access (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from detr_fast.extras import explaining_missing


def lazy_attributes(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build ``__getattr__`` and ``__dir__`` for a package that imports a module when a name of it is accessed.

    Where the import fails because a package of an extra is not installed, the error names the extra.

    Args:
        package: Name of the package.
        modules: The names that the package exports, by the name of the module that defines them.
        submodules: Names of subpackages and modules that are attributes of the package.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with explaining_missing(f"{package}.{name}"):
            value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def list_attributes() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of, *submodules})

    return get_attribute, list_attributes
