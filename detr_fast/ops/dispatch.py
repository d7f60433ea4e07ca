"""The registry of ops, and the choice of the backend that computes one.

An op is registered by decorating its reference. Its other backends are found by name: the function of the same name
in the module that :mod:`detr_fast.backends` has for it. A backend says why it cannot compute a call; the fastest
that can is taken, unless one is asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, cached_property
from importlib import import_module
from types import SimpleNamespace
from typing import Any, overload

import torch

from detr_fast.ops.custom_op import CustomOp, EagerFunction, Signature
from detr_fast.ops.tracing import is_tracing

BACKENDS = ("triton", "cpp", "scipy")  # modules of detr_fast.backends, the fastest first; the reference comes last
REFERENCE = "reference"
VARIABLE = "DETR_FAST_BACKEND"

_CPU = torch.device("cpu")
_environment: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_chosen: ContextVar[Mapping[str, str]] = ContextVar("detr_fast_backends", default={})  # noqa: B039  (never changed in place)


class BackendError(RuntimeError):
    """The backend that was asked for does not exist or cannot run here."""


class Backend:
    """One implementation of an op.

    Args:
        op: name of the op.
        name: name of the backend, a module of :mod:`detr_fast.backends`. The module has ``has(op)``,
            ``unavailable(op, device)``, ``automatic(device)`` and ``load(op)``.
    """

    def __init__(self, op: str, name: str, module: Any) -> None:
        self.op, self.name, self._module = op, name, module

    @cached_property
    def functions(self) -> Any:
        """The module with the op's function, ``<op>``, and what else it says of it.

        ``<op>_backward`` computes the gradients of a differentiable op, ``<op>_lacks`` is the set of features that
        it does not compute, and ``<op>_is_fastest(work)`` says whether the backend is the fastest for this work.
        """
        return self._module.load(self.op)

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The op's function."""
        return getattr(self.functions, self.op)

    @cached_property
    def backward(self) -> Callable[..., Any] | None:
        """The function that computes the gradients, None where the op has none."""
        return getattr(self.functions, f"{self.op}_backward", None)

    def refusal(self, device: torch.device, feature: str | None = None) -> str | None:
        """Return why it cannot compute the op on ``device`` with ``feature``, None where it can."""
        reason = self._module.unavailable(self.op, device)
        if reason is None and feature is not None and feature in getattr(self.functions, f"{self.op}_lacks", ()):
            return f"it does not compute {feature!r}"
        return reason

    def is_candidate(self, device: torch.device, feature: str | None) -> bool:
        """Whether it can compute the op on ``device`` with ``feature`` and is taken without being asked for."""
        return self._module.automatic(device) and self.refusal(device, feature) is None

    @cached_property
    def is_fastest(self) -> Callable[[Any], bool] | None:
        """Whether it is the fastest for an amount of work, None where it always is."""
        return getattr(self.functions, f"{self.op}_is_fastest", None)


class _References:
    """What a module of detr_fast.backends has, for the references: they run on any device."""

    @staticmethod
    def unavailable(op: str, device: torch.device) -> str | None:
        return None

    @staticmethod
    def automatic(device: torch.device) -> bool:
        return True

    @staticmethod
    def load(op: str) -> Any:
        return SimpleNamespace(**{op: OPS[op].reference})


class Op:
    """An op and its backends, the fastest first. A call runs it with the backend asked for, or the fastest that can.

    Args:
        name: name of the op, of the public function, and of the function in each backend.
        reference: its computation in plain PyTorch.
        fake: from the arguments to outputs whose values do not count. None: the reference can be traced, which also
            gives the outputs' shapes; it is then traced wherever it is the backend.
        aliases: other public functions that this op computes.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        fake: Callable[..., Any] | None = None,
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.name, self.reference, self.aliases = name, reference, aliases
        self.public_names = (name, *aliases)
        self.signature = Signature(reference)
        self.is_traceable = fake is None
        self.custom_op = (
            CustomOp(name, self.signature, self._load, fake or reference) if self.signature.takes_tensors else None
        )

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """The backends that have this op, by name, the fastest first."""
        modules = {name: import_module(f"detr_fast.backends.{name}") for name in BACKENDS}
        found = {name: Backend(self.name, name, module) for name, module in modules.items() if module.has(self.name)}
        return {**found, REFERENCE: Backend(self.name, REFERENCE, _References)}

    def choose(
        self,
        device: torch.device,
        backend: str | None = None,
        feature: str | None = None,
        work: Any = None,
    ) -> Backend:
        """Return the backend to use on ``device``.

        ``backend`` takes precedence over :func:`use_backend`, which takes precedence over ``DETR_FAST_BACKEND``.

        Args:
            device: device of the arguments.
            backend: a backend by name, or None.
            feature: a feature that some backends lack and the call needs, or None.
            work: how much there is to compute, in the terms of the op; None: a backend is taken for whatever it can
                run.

        Raises:
            BackendError: the backend asked for is unknown, or cannot run on ``device``; the message says why.
        """
        requested = backend or _chosen.get().get(self.name) or _from_environment(self)
        if requested is not None:
            found = self.named(requested)
            if reason := found.refusal(device, feature):
                raise BackendError(f"{self.name}: backend {requested!r} cannot run on {device.type}: {reason}")
            return found
        for found in self._candidates(device, feature):
            if work is None or found.is_fastest is None or found.is_fastest(work):
                return found
        raise AssertionError("the reference is a candidate for all work")

    @cache  # noqa: B019  (ops live as long as the process, and so does what can run)
    def _candidates(self, device: torch.device, feature: str | None) -> list[Backend]:
        return [found for found in self.backends.values() if found.is_candidate(device, feature)]

    def choose_name(self, device: torch.device, backend: str | None, feature: str | None, work: Any) -> str:
        """Return the name of the backend that :meth:`choose` takes."""
        return self.choose(device, backend, feature, work).name

    # torch.compile runs it once instead of tracing it; torch.compiler.assume_constant_result would say the same,
    # but imports the compiler.
    choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __call__(
        self, *arguments: Any, backend: str | None = None, feature: str | None = None, work: Any = None
    ) -> Any:
        """Compute the op; ``backend``, ``feature`` and ``work`` are those of :meth:`choose`."""
        if self.custom_op is None:
            return self.choose(_CPU, backend, feature, work).forward(*arguments)
        first = arguments[0]
        chosen = self.choose_name(first.device, backend, feature, None if torch.compiler.is_compiling() else work)
        if chosen == REFERENCE and self.is_traceable:
            return self.reference(*arguments)
        if is_tracing(first):
            return self.custom_op(arguments, chosen)
        found = self.backends[chosen]
        if found.backward is None:
            return found.forward(*arguments)
        return EagerFunction.apply(found.forward, found.backward, self.signature.num_differentiable, *arguments)

    def named(self, name: str) -> Backend:
        """Return the backend of this name.

        Raises:
            BackendError: there is none; the message lists those that there are.
        """
        if name not in self.backends:
            raise BackendError(f"{self.name} has no backend {name!r}; it has {', '.join(self.backends)}")
        return self.backends[name]

    def _load(self, backend: str) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
        found = self.backends[backend]
        return found.forward, found.backward


OPS: dict[str, Op] = {}  # every op by its name


@overload
def register_op(reference: Callable[..., Any]) -> Op: ...
@overload
def register_op(
    *, fake: Callable[..., Any] | None = ..., aliases: tuple[str, ...] = ...
) -> Callable[[Callable[..., Any]], Op]: ...
def register_op(
    reference: Callable[..., Any] | None = None,
    *,
    fake: Callable[..., Any] | None = None,
    aliases: tuple[str, ...] = (),
) -> Op | Callable[[Callable[..., Any]], Op]:
    """Register an op by its reference, a function named ``_<op>`` whose typed signature is the op's.

    Args:
        reference: the op in plain PyTorch. From its signature follow the schema of the torch op, its autograd
            formula and the packing of arguments for backends; from the reference, run on fake tensors, its fake kernel.
        fake: the fake kernel of an op whose reference cannot be traced.
        aliases: other public functions that the op computes.
    """

    def register(function: Callable[..., Any]) -> Op:
        name = function.__name__.removeprefix("_")
        OPS[name] = Op(name, function, fake, aliases)
        return OPS[name]

    return register if reference is None else register(reference)


def find_op(name: str) -> Op:
    """Return the op that computes the public function ``name``.

    Raises:
        BackendError: there is none; the message lists the names.
    """
    for op in OPS.values():
        if name in op.public_names:
            return op
    names = ", ".join(name for op in OPS.values() for name in op.public_names)
    raise BackendError(f"there is no op {name!r}; the ops are {names}")


@contextmanager
def use_backend(**choices: str) -> Iterator[None]:
    """Choose backends by name inside a ``with`` block, in the current thread or task.

    Code that torch.compile has compiled keeps the backends that were chosen when it was traced.

    Args:
        choices: op to backend, as in ``use_backend(match_cost="reference")``. An op is named by any of the public
            functions that it computes: ``set_loss`` and ``weighted_set_loss`` are one op.

    Raises:
        BackendError: there is no such op, it has no such backend, or two names of one op are given different ones.
    """
    added: dict[str, str] = {}
    for name, backend in choices.items():
        op = find_op(name)
        op.named(backend)
        if added.setdefault(op.name, backend) != backend:
            raise BackendError(f"{' and '.join(op.public_names)} are one op; they take one backend")
    token = _chosen.set({**_chosen.get(), **added})
    try:
        yield
    finally:
        _chosen.reset(token)


def environment_key(name: str) -> Any:
    """Return the key of an environment variable, for :func:`from_environment`."""
    return os.environ.encodekey(name) if _environment is not os.environ else name


def from_environment(name: str, key: Any) -> str | None:
    """Return the value of an environment variable, None where it is not set.

    os.environ raises and catches an exception to find that it is not set, which takes longer than a small problem.
    """
    return os.environ[name] if key in _environment else None


_variable_key = environment_key(VARIABLE)


def _from_environment(op: Op) -> str | None:
    """Read DETR_FAST_BACKEND: one name for every op that has it, or ``op=name`` pairs, comma-separated."""
    value = from_environment(VARIABLE, _variable_key)
    if value is None:
        return None
    requested = None
    for entry in filter(None, value.replace(" ", "").split(",")):
        name, _, backend = entry.rpartition("=")
        if name:
            try:
                if find_op(name) is op:
                    return backend
            except BackendError as error:
                raise BackendError(f"{VARIABLE}: {error}") from None
        elif backend not in (*BACKENDS, REFERENCE):
            raise BackendError(f"{VARIABLE}: no op has a backend {backend!r}")
        elif backend in op.backends:
            requested = backend
    return requested
