"""The registry of cases: what is measured, at which sizes, against what, with which goals and which check.

A case is found by its file: each module of ``benchmarks/cases``, named after the op or step that it measures, has

- ``case(device, *sizes)``, which returns a :class:`Case`;
- ``SIZES``, the arguments of the cases that are measured;
- ``SMALL``, the arguments of small cases, which the tests and compute-sanitizer run on every backend;
- optionally ``DEVICES``, the types of devices on which it is measured: both, unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases
from benchmarks.clock import Call, Protocol, Times
from detr_fast.ops.dispatch import OPS

GOALS = {  # a goal's number, and how the goal is written
    "ratio": ">= {bound:g}x as fast as {over}",
    "us": "<= {bound:g} us",
    "memory": "<= {bound:g}x the memory of the output",
    "bandwidth": ">= {bound:g} of a copy's bandwidth",
}


class Unavailable(Exception):
    """An implementation cannot run here; the message says why."""


@dataclass(frozen=True)
class Goal:
    """A bound on a number of a case's subject."""

    number: str
    bound: float
    over: str = ""  # the implementation that a ratio of times refers to

    def __str__(self) -> str:
        return GOALS[self.number].format(bound=self.bound, over=self.over)

    def is_met(self, value: float) -> bool:
        """Whether ``value`` is within the bound; NaN never is."""
        return value >= self.bound if GOALS[self.number].startswith(">=") else value <= self.bound


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case, ready to be timed."""

    call: Call
    result: Callable[[Any], Any] = lambda output: output  # brings what the call returns into the form of ``expected``
    held: int = 0  # bytes that its calls use and do not allocate, such as the memory pool of a CUDA graph


@dataclass(frozen=True)
class Case:
    """What is measured, and what it is compared with."""

    sizes: str
    subject: str  # the implementation that the goals are about, and that the others are compared with
    inputs: Callable[[], Any]
    implementations: Mapping[str, Callable[[Any], Implementation]]  # from the inputs; may raise Unavailable
    expected: Callable[[Any], Any]  # from the inputs: what every implementation must return
    rtol: float = 1e-5
    atol: float = 1e-5
    goals: tuple[Goal, ...] = ()
    protocol: Protocol = "cold"
    has_memory: bool = False  # whether the peak memory of each implementation is reported
    numbers: Mapping[str, Callable[[Any, Times], float]] = field(default_factory=dict)  # of the subject

    def prepare(self, name: str, inputs: Any, expected: Any) -> Implementation:
        """Return an implementation, after checking what it returns.

        Raises:
            Unavailable: The implementation cannot run here.
            AssertionError: It returns something else than ``expected``.
        """
        implementation = self.implementations[name](inputs)
        result = implementation.result(implementation.call())
        options = {"rtol": self.rtol, "atol": self.atol, "check_dtype": False, "check_device": False}
        torch.testing.assert_close(result, expected, **options)
        return implementation


def backends(
    op: str, device: torch.device, compute: Callable[[Any, str], Any], exclude: Iterable[str] = ()
) -> dict[str, Callable[[Any], Implementation]]:
    """Return an implementation for each backend of an op.

    Args:
        op: Name of the op.
        device: Where it runs.
        compute: Computes the op from a case's inputs with the backend of a name.
        exclude: Backends that are too slow for the sizes of the case.
    """

    def prepare(backend: str, inputs: Any) -> Implementation:
        if reason := OPS[op].backends[backend].refusal(device):
            raise Unavailable(reason)
        return Implementation(partial(compute, inputs, backend))

    return {name: partial(prepare, name) for name in OPS[op].backends if name not in exclude}


def with_gradients(
    function: Callable[..., tuple[Tensor, ...]], leaves: Iterable[Tensor], grad: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the outputs of a function, followed by the gradients of its first output.

    Args:
        function: What is differentiated.
        leaves: Its arguments.
        grad: The gradient of the first output. None: the output is summed.
    """
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    first, *others = function(*leaves)
    total = first if grad is not None or first.dim() == 0 else first.sum()
    grads = torch.autograd.grad(total, leaves, grad)
    return first.detach(), *(other.detach() for other in others), *grads


def default_backend(op: str, device: torch.device) -> str:
    """Return the backend that a call of the op takes on a device."""
    return OPS[op].choose(device).name


def modules(only: Iterable[str] = ()) -> dict[str, ModuleType]:
    """Return the modules of cases by name.

    Raises:
        ValueError: There is no module of a name in ``only``.
    """
    found = {module.name: import_module(f"{cases.__name__}.{module.name}") for module in iter_modules(cases.__path__)}
    if unknown := set(only) - found.keys():
        raise ValueError(f"there is no case {', '.join(sorted(unknown))}; the cases are {', '.join(found)}")
    return {name: module for name, module in found.items() if not only or name in only}


def find_cases(device: torch.device, only: Iterable[str] = ()) -> Iterator[tuple[str, Case]]:
    """Yield the cases that are measured on a device, each with the name of its module."""
    for name, module in modules(only).items():
        if device.type in getattr(module, "DEVICES", ("cpu", "cuda")):
            for sizes in module.SIZES:
                yield name, module.case(device, *sizes)


def small_cases(device: torch.device, only: Iterable[str] = ()) -> Iterator[tuple[str, Case]]:
    """Yield the small cases, each with the name of its module; also those that only a GPU is measured with."""
    for name, module in modules(only).items():
        for sizes in module.SMALL:
            yield name, module.case(device, *sizes)


@dataclass(frozen=True)
class Row:
    """What was measured of a case."""

    name: str
    sizes: str
    protocol: Protocol
    subject: str
    goals: tuple[Goal, ...] = ()
    times: dict[str, Times] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # bytes
    numbers: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # implementation to the reason
    errors: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """Return the time of an implementation, divided by that of the subject."""
        return self.times[name].median / self.times[self.subject].median

    def value(self, goal: Goal) -> float | None:
        """Return the number that a goal is about; None where an implementation that it refers to was not measured."""
        if self.subject not in self.times or (goal.number == "ratio" and goal.over not in self.times):
            return None
        if goal.number == "ratio":
            return self.ratio(goal.over)
        return self.times[self.subject].median if goal.number == "us" else self.numbers.get(goal.number, math.nan)

    @property
    def missed(self) -> list[Goal]:
        """The goals that were measured and are not met."""
        values = [(goal, self.value(goal)) for goal in self.goals]
        return [goal for goal, value in values if value is not None and not goal.is_met(value)]
