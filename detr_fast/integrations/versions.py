"""Which releases of a library are known to work."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


class UntestedVersionError(RuntimeError):
    """The installed library is missing, or a release that these integrations were never tried with."""


def require_version(package: str, tested: Sequence[str]) -> None:
    """Check that one of the ``tested`` releases, named as in "5.23", is installed.

    Raises:
        UntestedVersionError: it is not; the message names the releases that are tested.
    """
    known = ", ".join(f"{release}.*" for release in tested)
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UntestedVersionError(f"{package} is not installed; releases that are tested: {known}") from None
    if not any(found == release or found.startswith(f"{release}.") for release in tested):
        raise UntestedVersionError(
            f"{package} {found} is installed, and how to patch it is not known; releases that are tested: {known} "
            f"(pip install '{package}=={tested[-1]}.*')"
        )
