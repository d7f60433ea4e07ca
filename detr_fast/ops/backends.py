"""Which implementation of a hot path runs.

Each hot path is a :class:`Column` of backends, fastest first. A backend says why it cannot run on the
tensors at hand; the first that has nothing to say is taken, unless one was asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from detr_fast.kernels import automatic, unavailable

Functions = Mapping[str, Callable[..., Any]]

VARIABLE = "DETR_FAST_BACKEND"
_environment: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)

_chosen: ContextVar[Mapping[str, str]] = ContextVar("detr_fast_backends", default={})  # noqa: B039  (never changed in place)


class BackendError(RuntimeError):
    """The backend that was asked for does not exist or cannot run here."""


@dataclass(frozen=True)
class Backend:
    """One implementation of a hot path."""

    name: str
    load: Callable[[], Functions]  # imports on first use, so that nothing heavy is imported before
    unavailable: Callable[[torch.device], str | None]  # why it cannot run on this device, None where it can
    variants: frozenset[str] = frozenset()  # what it computes beyond what every backend of its hot path does
    automatic: Callable[[torch.device, Any], bool] = lambda device, work: True  # whether to take it for this unasked
    plain: bool = False  # whether it is all PyTorch: differentiable by itself, and can be traced through

    def refusal(self, device: torch.device, variant: str | None) -> str | None:
        """Why it cannot compute ``variant`` on this device, None where it can."""
        if variant is not None and variant not in self.variants:
            return f"it does not compute {variant!r}"
        return self.unavailable(device)


class Column:
    """One hot path and its backends, fastest first."""

    def __init__(self, name: str, backends: Sequence[Backend]) -> None:
        self.name = name
        self.backends = {backend.name: backend for backend in backends}
        COLUMNS[name] = self

    def choose(
        self, device: torch.device, backend: str | None = None, variant: str | None = None, work: Any = None
    ) -> Backend:
        """The backend to use on ``device``, for a variant that not every backend computes.

        ``backend`` comes before :func:`use_backend`, which comes before ``DETR_FAST_BACKEND``. ``work`` says how much
        there is to do, in the terms of the hot path; where None, a backend is taken for whatever it can run.

        Raises:
            BackendError: the backend asked for is unknown, or cannot run on ``device``; it says why.
        """
        wanted = backend or _chosen.get().get(self.name) or _from_environment(self)
        if wanted is not None:
            found = self._named(wanted)
            if reason := found.refusal(device, variant):
                raise BackendError(f"{self.name}: backend {wanted!r} cannot run on {device.type}: {reason}")
            return found
        for candidate in self.backends.values():
            if candidate.automatic(device, work) and candidate.refusal(device, variant) is None:
                return candidate
        reasons = [
            f"{candidate.name}: {candidate.refusal(device, variant) or 'runs here only when asked for by name'}"
            for candidate in self.backends.values()
        ]
        raise BackendError(f"{self.name}: no backend runs on {device.type}; " + "; ".join(reasons))

    def choose_name(self, device: torch.device, backend: str | None, variant: str | None, work: Any) -> str:
        """The name of the backend that :meth:`choose` takes."""
        return self.choose(device, backend, variant, work).name

    # torch.compile runs it once instead of looking inside; torch.compiler.assume_constant_result would say the same,
    # but imports the compiler.
    choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _named(self, name: str) -> Backend:
        if name not in self.backends:
            raise BackendError(f"{self.name} has no backend {name!r}; it has {', '.join(self.backends)}")
        return self.backends[name]


COLUMNS: dict[str, Column] = {}


def reference(functions: Functions) -> Backend:
    """A backend in plain PyTorch: runs on any device."""
    return Backend("reference", lambda: functions, lambda device: None, plain=True)


def extension(functions: Functions) -> Backend:
    """A backend in C++: on the CPU, with tensors as NumPy arrays."""
    return Backend("cpp", lambda: functions, _extension_unavailable)


def _extension_unavailable(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it runs on the CPU only"
    return why_no_extension()


@cache
def why_no_extension() -> str | None:
    """Why there is no detr_fast._C, None where there is."""
    try:
        import detr_fast._C  # noqa: F401
    except ImportError as error:
        return f"the extension is not built ({error}); install the package with pip"
    return None


def triton(load: Callable[[], Functions], fits: Callable[[Any], bool] = lambda work: True) -> Backend:
    """A backend in Triton; its interpreter, which also runs on the CPU, has to be asked for by name.

    ``fits`` says of what there is to do whether the kernel is the fastest for it, where there are others.
    """
    return Backend("triton", load, unavailable, automatic=lambda device, work: automatic(device) and fits(work))


def traced(tensor: Tensor) -> bool:
    """Whether a call is only recorded: under torch.compile, or with a tensor, such as a fake one, that sees to it."""
    return torch.compiler.is_compiling() or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


@contextmanager
def use_backend(**choices: str) -> Iterator[None]:
    """Choose backends by name inside a ``with`` block (in this thread or task).

    What torch.compile has compiled keeps the backends that were chosen when it was traced.

    Args:
        choices: hot path to backend, as in ``use_backend(match_cost="reference")``.

    Raises:
        BackendError: there is no such hot path, or it has no such backend.
    """
    for name, backend in choices.items():
        if name not in COLUMNS:
            raise BackendError(f"there is no op {name!r}; the ops are {', '.join(COLUMNS)}")
        COLUMNS[name]._named(backend)
    token = _chosen.set({**_chosen.get(), **choices})
    try:
        yield
    finally:
        _chosen.reset(token)


def environment_key(name: str) -> Any:
    """The key of an environment variable, for :func:`from_environment`."""
    return os.environ.encodekey(name) if _environment is not os.environ else name


def from_environment(name: str, key: Any) -> str | None:
    """The value of an environment variable, None where it is not set.

    That it is not set os.environ only finds out by raising inside, which takes longer than a small problem does.
    """
    return os.environ[name] if key in _environment else None


_variable_key = environment_key(VARIABLE)


def _from_environment(column: Column) -> str | None:
    """Read DETR_FAST_BACKEND: one name for every op that has it, or ``op=name`` pairs, comma-separated."""
    value = from_environment(VARIABLE, _variable_key)
    if value is None:
        return None
    wanted = None
    for entry in filter(None, value.replace(" ", "").split(",")):
        op, _, backend = entry.rpartition("=")
        if op and op not in COLUMNS:
            raise BackendError(f"{VARIABLE}: there is no op {op!r}; the ops are {', '.join(COLUMNS)}")
        if not op and not any(backend in other.backends for other in COLUMNS.values()):
            raise BackendError(f"{VARIABLE}: no op has a backend {backend!r}")
        if op == column.name:
            return backend
        if not op and backend in column.backends:
            wanted = backend
    return wanted
