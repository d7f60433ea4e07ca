"""An op for torch.compile, torch.export and FakeTensorMode, derived from the signature of its reference.

Eager calls go straight to a backend. While tracing, a call becomes ``torch.ops.detr_fast.<name>``, whose last
argument is the backend's name, and its gradient ``<name>_backward``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LIBRARY = torch.library.Library("detr_fast", "DEF")

Differentiable: TypeAlias = Annotated[Tensor, "differentiable"]  # an argument that has a gradient
Scalar: TypeAlias = Tensor | float  # a number, or a tensor with one element

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Scalar: "Tensor",
    int: "SymInt",
    list[int]: "SymInt[]",
    list[float]: "float[]",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
    tuple[Tensor, Tensor]: "(Tensor, Tensor)",
    list[Tensor]: "Tensor[]",
}


class Signature:
    """The arguments of an op as its reference declares them, and how they are packed for torch's dispatcher.

    An argument is a tensor, a number, a string, a dtype, or a structure: a dataclass, or a class with ``pack`` and
    ``unpack``. A structure becomes one schema argument for each of its parts.

    Args:
        reference: a function whose arguments and result are annotated. Arguments annotated :data:`Differentiable`
            come first.
    """

    def __init__(self, reference: Callable[..., Any]) -> None:
        hints = get_type_hints(reference, include_extras=True)
        self.names = tuple(inspect.signature(reference).parameters)
        self.kinds = tuple(hints[name] for name in self.names)
        self._parts = tuple(_parts(kind) if _is_structure(kind) else None for kind in self.kinds)
        self._are_scalars = tuple(kind == Scalar for kind in self.kinds)
        self.returns = hints["return"]
        self.num_differentiable = sum(_is_differentiable(kind) for kind in self.kinds)
        if not all(map(_is_differentiable, self.kinds[: self.num_differentiable])):
            raise TypeError(f"the differentiable arguments of {reference.__name__} must come first")

    @property
    def takes_tensors(self) -> bool:
        """Whether the first argument is a tensor, so that torch can dispatch on it."""
        return _without_annotation(self.kinds[0]) is Tensor

    @property
    def schema(self) -> str:
        """The arguments as torch.library writes them."""
        parts: list[str] = []
        for name, kind, own_parts in zip(self.names, self.kinds, self._parts, strict=True):
            if own_parts is None:
                parts.append(f"{_schema_type(kind)} {name}")
            else:
                parts += [f"{_schema_type(part)} {name}_{key}" for key, part in own_parts.items()]
        return ", ".join(parts)

    @property
    def schema_returns(self) -> str:
        """The result as torch.library writes it."""
        return _schema_type(self.returns)

    def pack(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as the schema lists them."""
        packed: list[Any] = []
        for value, is_scalar, parts in zip(arguments, self._are_scalars, self._parts, strict=True):
            if parts is not None:
                packed += value.pack() if hasattr(value, "pack") else [getattr(value, key) for key in parts]
            elif is_scalar and not isinstance(value, Tensor):
                packed.append(torch.full((), value, dtype=torch.float64, device=arguments[0].device))
            else:
                packed.append(value)
        return packed

    def unpack(self, packed: Sequence[Any]) -> list[Any]:
        """The inverse of :meth:`pack`."""
        values = iter(packed)
        return [_next_argument(values, kind, parts) for kind, parts in zip(self.kinds, self._parts, strict=True)]


class CustomOp:
    """``torch.ops.detr_fast.<name>`` with its fake kernel and its gradient.

    Args:
        name: name of the op.
        signature: signature of its reference.
        load: from a backend's name to its forward and backward function. The latter takes the gradients of the
            outputs (None for those without one), which of the differentiable arguments need a gradient, and the op's
            arguments; it returns the gradients of the differentiable arguments.
        fake: from the op's arguments to outputs whose shapes, dtypes and devices count and whose values do not.
    """

    def __init__(
        self,
        name: str,
        signature: Signature,
        load: Callable[[str], tuple[Callable[..., Any], Callable[..., Any] | None]],
        fake: Callable[..., Any],
    ) -> None:
        self.name, self.signature, self.load, self.fake = name, signature, load, fake
        schema, returns = f"{signature.schema}, str backend", signature.schema_returns
        _define(name, schema, returns, self._run, self._fake)
        if signature.num_differentiable:
            self._define_backward(schema, returns)
        else:
            LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
        self._overload = getattr(torch.ops.detr_fast, name).default

    def _define_backward(self, schema: str, returns: str) -> None:
        count = self.signature.num_differentiable
        grads = [f"Tensor? grad_{i}" for i in range(returns.count("Tensor"))]
        outputs = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
        self._num_outputs = len(grads)
        name = f"{self.name}_backward"
        _define(name, ", ".join([*grads, schema]), outputs, self._run_backward, self._fake_backward)
        torch.library.register_autograd(
            f"detr_fast::{self.name}", self._backward, setup_context=_save_inputs, lib=LIBRARY
        )

    def __call__(self, arguments: Sequence[Any], backend: str) -> Any:
        """Record a call that ``backend`` computes."""
        return self._overload(*self.signature.pack(arguments), backend)

    def _run(self, *packed: Any) -> Any:
        forward, _ = self.load(packed[-1])
        return forward(*self.signature.unpack(packed[:-1]))

    def _fake(self, *packed: Any) -> Any:
        outputs = self.fake(*self.signature.unpack(packed[:-1]))
        if isinstance(outputs, Tensor):
            return _empty_like(outputs)
        return type(outputs)(_empty_like(output) for output in outputs)

    def _run_backward(self, *packed: Any) -> Any:
        grads, packed, backend = packed[: self._num_outputs], packed[self._num_outputs : -1], packed[-1]
        _, backward = self.load(backend)
        assert backward is not None
        needed = (True,) * self.signature.num_differentiable
        return _one_or_all(backward(grads, needed, *self.signature.unpack(packed)))

    def _fake_backward(self, *packed: Any) -> Any:
        return _one_or_all([_empty_like(x) for x in packed[self._num_outputs :][: self.signature.num_differentiable]])

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.inputs)
        tensors = iter(ctx.saved_tensors)
        packed = [next(tensors) if is_tensor else value for is_tensor, value in ctx.inputs]
        gradients = getattr(torch.ops.detr_fast, f"{self.name}_backward")(*grads, *packed)
        gradients = [gradients] if isinstance(gradients, Tensor) else gradients
        return *gradients, *[None] * (len(packed) - self.signature.num_differentiable)


class EagerFunction(torch.autograd.Function):
    """A backend's forward and backward function in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], count: int, *arguments: Any
    ) -> Any:
        ctx.count, ctx.rest = count, arguments[count:]
        # The others are saved as well, so that autograd finds those that are changed in place before backward.
        ctx.save_for_backward(*arguments[:count], *_tensors(ctx.rest))
        ctx.run_backward = backward
        ctx.set_materialize_grads(False)
        return forward(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors[: ctx.count]
        if all(grad is None for grad in grads):
            return None, None, None, *[None] * (len(inputs) + len(ctx.rest))
        needed = ctx.needs_input_grad[3 : 3 + len(inputs)]
        return None, None, None, *ctx.run_backward(grads, needed, *inputs, *ctx.rest), *[None] * len(ctx.rest)


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments, and those of structures."""
    for value in arguments:
        if isinstance(value, Tensor):
            yield value
        elif hasattr(value, "pack"):
            yield from (part for part in value.pack() if isinstance(part, Tensor))


def _is_differentiable(kind: Any) -> bool:
    return kind == Differentiable


def _without_annotation(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_structure(kind: Any) -> bool:
    return hasattr(kind, "unpack") or is_dataclass(kind)


def _parts(kind: Any) -> dict[str, Any]:
    """The names and types of a structure's parts, in the order in which they are packed."""
    if hasattr(kind, "unpack"):
        hints = get_type_hints(kind.unpack)
        return {name: hint for name, hint in hints.items() if name != "return"}
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _schema_type(kind: Any) -> str:
    kind = _without_annotation(kind)
    return "str" if get_origin(kind) is Literal else _SCHEMA_TYPES[kind]


def _next_argument(values: Iterator[Any], kind: Any, parts: dict[str, Any] | None) -> Any:
    if parts is None:
        return next(values)
    own = [next(values) for _ in parts]
    return kind.unpack(*own) if hasattr(kind, "unpack") else kind(*own)


def _define(name: str, schema: str, returns: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    LIBRARY.define(f"{name}({schema}) -> {returns}", tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"detr_fast::{name}", fake, lib=LIBRARY)


def _save_inputs(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.inputs = [(True, None) if isinstance(x, Tensor) else (False, x) for x in inputs]
    ctx.set_materialize_grads(False)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _one_or_all(tensors: Sequence[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
