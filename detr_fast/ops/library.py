"""The hot paths as torch ops, for what must not look inside: torch.compile, torch.export, FakeTensorMode.

Eager calls go straight to a backend. While tracing, a call becomes ``torch.ops.detr_fast.<name>``, whose last
argument is the backend's name, and its gradient ``<name>_backward``. Plain PyTorch backends are traced through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detr_fast.ops.backends import Column, Functions, traced
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

LIBRARY = torch.library.Library("detr_fast", "DEF")
NUMBER = "number"  # a float, or a tensor with one element

Kind: TypeAlias = str | type  # a type of torch's schemas, NUMBER, Targets, or weights


class Op:
    """One op of a column, callable with any of its backends.

    Args:
        column: its backends; their functions bear ``name``. Those of a differentiable op that are not plain PyTorch
            have ``name_backward`` too: from the gradients of the outputs (None for those without), which of the first
            ``differentiable`` arguments need one, and the same arguments, to the gradients of those first ones.
        name: of the op.
        arguments: their names and kinds, in order; the first is a tensor.
        returns: what comes back, as in a schema.
        fake: the outputs without their values, from the same arguments.
        differentiable: how many of the first arguments have a gradient.
    """

    def __init__(
        self,
        column: Column,
        name: str,
        arguments: Mapping[str, Kind],
        returns: str,
        fake: Callable[..., Any],
        differentiable: int = 0,
    ) -> None:
        self.column, self.name, self.fake, self.differentiable = column, name, fake, differentiable
        self.kinds = tuple(arguments.values())
        schema = ", ".join([*(_schema(name, kind) for name, kind in arguments.items()), "str backend"])
        _define(name, schema, returns, self._run, self._fake)
        if differentiable:
            grads = [f"Tensor? grad_{i}" for i in range(returns.count("Tensor"))]
            outputs = ", ".join(["Tensor"] * differentiable)
            outputs = f"({outputs})" if differentiable > 1 else outputs
            _define(f"{name}_backward", ", ".join([*grads, schema]), outputs, self._run_backward, self._fake_backward)
            self._num_outputs = len(grads)
            torch.library.register_autograd(
                f"detr_fast::{name}", self._backward, setup_context=_save_inputs, lib=LIBRARY
            )
        else:
            LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
        self._traced = getattr(torch.ops.detr_fast, name).default

    def __call__(
        self, *arguments: Any, backend: str | None = None, variant: str | None = None, work: Any = None
    ) -> Any:
        """Run it with the backend asked for, or the fastest that can (see :meth:`Column.choose`)."""
        device = arguments[0].device
        chosen = self.column.choose_name(device, backend, variant, None if torch.compiler.is_compiling() else work)
        found = self.column.backends[chosen]
        if found.plain:
            return found.load()[self.name](*arguments)
        if traced(arguments[0]):
            return self._traced(*self._pack(arguments, device), chosen)
        functions = found.load()
        if self.differentiable:
            return _Differentiable.apply(self, functions, *arguments)
        return functions[self.name](*arguments)

    def _pack(self, arguments: Sequence[Any], device: torch.device) -> list[Any]:
        packed: list[Any] = []
        for value, kind in zip(arguments, self.kinds, strict=True):
            if kind is Targets:
                packed += [value.labels, value.boxes, value.offsets, value.most, value.padded]
            elif isinstance(kind, type):
                packed += [getattr(value, name) for name in _FIELDS[kind]]
            elif kind == NUMBER and not isinstance(value, Tensor):
                packed.append(torch.full((), value, dtype=torch.float64, device=device))
            else:
                packed.append(value)
        return packed

    def _unpack(self, packed: Sequence[Any]) -> list[Any]:
        values = iter(packed)
        return [_next_argument(values, kind) for kind in self.kinds]

    def _run(self, *packed: Any) -> Any:
        *packed, backend = packed  # type: ignore[assignment]
        return self.column.backends[backend].load()[self.name](*self._unpack(packed))

    def _fake(self, *packed: Any) -> Any:
        return self.fake(*self._unpack(packed[:-1]))

    def _run_backward(self, *packed: Any) -> Any:
        *packed, backend = packed  # type: ignore[assignment]
        grads, packed = packed[: self._num_outputs], packed[self._num_outputs :]
        run = self.column.backends[backend].load()[f"{self.name}_backward"]
        return _one_or_all(run(grads, (True,) * self.differentiable, *self._unpack(packed)))

    def _fake_backward(self, *packed: Any) -> Any:
        inputs = packed[self._num_outputs :][: self.differentiable]
        return _one_or_all([torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs])

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.inputs)
        tensors = iter(ctx.saved_tensors)
        packed = [next(tensors) if is_tensor else value for is_tensor, value in ctx.inputs]
        gradients = getattr(torch.ops.detr_fast, f"{self.name}_backward")(*grads, *packed)
        gradients = [gradients] if isinstance(gradients, Tensor) else gradients
        return *gradients, *[None] * (len(packed) - self.differentiable)


class _Differentiable(torch.autograd.Function):
    """A backend's function and its gradient, in eager mode."""

    @staticmethod
    def forward(ctx: Any, op: Op, functions: Functions, *arguments: Any) -> Any:
        ctx.save_for_backward(*arguments[: op.differentiable])
        ctx.rest = arguments[op.differentiable :]
        ctx.run_backward = functions[f"{op.name}_backward"]
        ctx.set_materialize_grads(False)
        return functions[op.name](*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return None, None, *[None] * (len(inputs) + len(ctx.rest))
        needed = ctx.needs_input_grad[2 : 2 + len(inputs)]
        return None, None, *ctx.run_backward(grads, needed, *inputs, *ctx.rest), *[None] * len(ctx.rest)


_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in (MatchWeights, LossWeights)
}


def _schema(name: str, kind: Kind) -> str:
    if kind is Targets:
        return "Tensor labels, Tensor target_boxes, Tensor offsets, SymInt most, bool padded"
    if isinstance(kind, type):
        return ", ".join(f"{'float' if field.type == 'float' else 'str'} {field.name}" for field in fields(kind))
    return f"{'Tensor' if kind == NUMBER else kind} {name}"


def _next_argument(values: Iterator[Any], kind: Kind) -> Any:
    if kind is Targets:
        labels, boxes, offsets, most, padded = (next(values) for _ in range(5))
        return Targets(labels, boxes, [], offsets, most=most, padded=padded)  # sizes: nobody inside an op reads them
    if isinstance(kind, type):
        return kind(*(next(values) for _ in fields(kind)))
    return next(values)


def _define(name: str, schema: str, returns: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    LIBRARY.define(f"{name}({schema}) -> {returns}", tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"detr_fast::{name}", fake, lib=LIBRARY)


def _save_inputs(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.inputs = [(True, None) if isinstance(x, Tensor) else (False, x) for x in inputs]
    ctx.set_materialize_grads(False)


def _one_or_all(tensors: Sequence[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
