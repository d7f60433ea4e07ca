"""The one numerical rule that every backend is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_fast import Targets
from detr_fast.ops.dispatch import Op


def assert_as_exact(result: Tensor, plain: Tensor, exact: Tensor, single: Tensor | None = None) -> None:
    """Hold the error of a result to twice that of plain PyTorch in the same dtype.

    A unit in the last place is added, which even an exact value may lose when it is stored. In float64, where the
    exact result is plain PyTorch's, its error is that of ``single``, scaled by the dtypes' resolution, and at least
    64 units. Values that are not finite are the same.

    Args:
        result: of a backend.
        plain: of plain PyTorch on the same inputs.
        exact: of plain PyTorch on the same inputs in float64.
        single: of plain PyTorch on the same inputs in float32; needed in float64 only.
    """
    result, plain, exact = result.detach().cpu(), plain.detach().cpu(), exact.detach().cpu()
    assert result.dtype == plain.dtype
    assert result.shape == plain.shape == exact.shape
    if not result.is_floating_point():
        assert torch.equal(result, exact)
        return
    finite = exact.isfinite() & plain.isfinite()
    torch.testing.assert_close(result[~finite], plain[~finite], equal_nan=True)
    if not finite.any():
        return
    eps = torch.finfo(result.dtype).eps
    result, plain, exact = (tensor[finite].double() for tensor in (result, plain, exact))
    largest, error, allowed = (float(x.abs().max()) for x in (exact, result - exact, plain - exact))
    if single is not None:
        error_of_single = (single.detach().cpu()[finite].double() - exact).abs().nan_to_num().max()
        allowed = float(error_of_single) * eps / torch.finfo(torch.float32).eps + 64 * eps * largest
    assert error <= 2 * allowed + eps * largest, (error, allowed, largest)


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
