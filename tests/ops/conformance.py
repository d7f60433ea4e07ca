"""The one numerical rule that every backend is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_fast import Targets
from detr_fast.ops.dispatch import OPS, Op


def assert_as_exact(result: Tensor, plain: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]) -> None:
    """Hold the error of a result to twice that of plain PyTorch in the same dtype.

    A unit in the last place is added, which even an exact value may lose when it is stored. In float64, where plain
    PyTorch is the exact result, its error is taken in float32, scaled by the resolution of the dtypes, and is at least
    64 units. Values that are not finite are the same.

    Args:
        result: of a backend.
        plain: of plain PyTorch in the same dtype, for float64 in float32: on the same inputs, and on further ones that
            only serve to estimate its error.
        exact: of plain PyTorch in float64, on the same inputs as ``plain``.
    """
    plain, exact = ([x] if isinstance(x, Tensor) else list(x) for x in (plain, exact))
    plain, exact = [x.detach().cpu() for x in plain], [x.detach().cpu() for x in exact]
    result = result.detach().cpu()
    is_double = result.dtype == torch.float64
    assert result.dtype == (exact if is_double else plain)[0].dtype
    assert result.shape == plain[0].shape == exact[0].shape
    if not result.is_floating_point():
        assert torch.equal(result, exact[0])
        return
    finite = exact[0].isfinite() & (exact if is_double else plain)[0].isfinite()
    expected = (exact if is_double else plain)[0]
    torch.testing.assert_close(result[~finite], expected[~finite], equal_nan=True)
    if not finite.any():
        return
    eps = torch.finfo(result.dtype).eps
    error, largest = float((result.double() - exact[0])[finite].abs().max()), float(exact[0][finite].abs().max())
    allowed = max(map(_error, plain, exact))
    if is_double:
        allowed = allowed * eps / torch.finfo(torch.float32).eps + 64 * eps * largest
    assert error <= 2 * allowed + eps * largest, (error, allowed, largest)


def _error(plain: Tensor, exact: Tensor) -> float:
    """The largest error of plain PyTorch where both are finite."""
    errors = (plain.double() - exact).abs()
    return float(errors[errors.isfinite()].max()) if errors.isfinite().any() else 0.0


def run(op: Op, arguments: Sequence[Any], backend: str, device: torch.device, gradients: bool = True) -> list[Tensor]:
    """Return the outputs of a call, and the gradients of their sum with fixed weights where the op has any."""
    moved = [x.to(device) if isinstance(x, Tensor | Targets) else x for x in arguments]
    count = op.signature.num_differentiable if gradients else 0
    moved[:count] = [x.detach().requires_grad_() for x in moved[:count]]
    outputs = op(*moved, backend=backend)
    outputs = [torch.as_tensor(x) for x in (outputs if isinstance(outputs, tuple | list) else [outputs])]
    if not count:
        return outputs
    total = sum((output * _upstream(output)).sum() for output in outputs)
    grads = torch.autograd.grad(total, moved[:count], allow_unused=True)
    return [*outputs, *(torch.zeros_like(x) if g is None else g for x, g in zip(moved, grads, strict=False))]


def _upstream(output: Tensor) -> Tensor:
    """A gradient of the output that differs from element to element and has both signs."""
    return torch.linspace(-1, 1.5, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)


def host_backends(op: str) -> list[str]:
    """The backends of an op that run on the CPU without an interpreter; Triton's are tested with the kernels."""
    return [name for name in OPS[op].backends if name != "triton"]


def cast(arguments: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """The same arguments with their floating point tensors in ``dtype``, and so the result where a dtype is given."""
    return [_cast(x, dtype) for x in arguments]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return dtype if isinstance(value, torch.dtype) else value


def as_arrays(arguments: Sequence[Any]) -> list[Any]:
    """The same arguments with arrays in place of tensors, 16-bit floats as float32."""
    return [np.asarray(x.float() if x.element_size() == 2 else x) if isinstance(x, Tensor) else x for x in arguments]
