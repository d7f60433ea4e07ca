"""The releases of host libraries that the integrations support."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


class UntestedVersionError(RuntimeError):
    """A host library is not installed, or its release is not one that the integration is tested with."""


def require_version(package: str, tested: Sequence[str]) -> None:
    """Check that a tested release of a library is installed.

    Args:
        package: Name of the library.
        tested: The tested releases, for example "5.23".

    Raises:
        UntestedVersionError: No tested release is installed; the message lists the tested releases.
    """
    known = ", ".join(f"{release}.*" for release in tested)
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UntestedVersionError(f"{package} is not installed; the tested releases are {known}") from None
    if not any(found == release or found.startswith(f"{release}.") for release in tested):
        raise UntestedVersionError(
            f"{package} {found} is installed and not tested with this integration; the tested releases are {known} "
            f"(pip install '{package}=={tested[-1]}.*')"
        )
