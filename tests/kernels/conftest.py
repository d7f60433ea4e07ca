from __future__ import annotations

import sys
from contextlib import suppress

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _empty_is_nan(monkeypatch, request):
    """Fill ``torch.empty`` with NaN, so that a result which no kernel wrote shows; not where launches are counted."""
    if "counter" in request.fixturenames:
        return
    empty = torch.empty

    def nan(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(2**7))

    monkeypatch.setattr(torch, "empty", nan)


NO_INTERPRETER = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU"
)


@pytest.fixture(
    scope="session", params=[pytest.param("cpu", marks=NO_INTERPRETER), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run: the CPU, in Triton's interpreter, or a GPU; a process can do only one of them."""
    return torch.device(request.param)


@pytest.fixture
def assert_as_exact():
    """Hold a result to the float64 reference: its error may be twice that of plain PyTorch in its own dtype.

    A unit in the last place comes on top, which even an exact value may lose when it is stored; in float64,
    where the reference is plain PyTorch, 64 of them stand for its error.
    """

    def check(result: Tensor, plain: Tensor, exact: Tensor) -> None:
        result, plain, exact = result.cpu(), plain.cpu(), exact.cpu()
        assert result.dtype == plain.dtype
        assert result.shape == exact.shape
        if not exact.numel():
            return
        assert torch.equal(result.isfinite(), exact.isfinite())
        units = 64 if result.dtype == torch.float64 else 1
        rounding = units * torch.finfo(result.dtype).eps * exact.abs().nan_to_num(0, 0, 0).max()
        finite = exact.isfinite()
        result, plain, exact = (tensor[finite].double() for tensor in (result, plain, exact))
        assert (result - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding

    return check


@pytest.fixture(autouse=True)
def no_fault_is_left():
    """What a test provoked on the device is not the next one's."""
    yield
    if faults := sys.modules.get("detr_fast.ops.faults"):
        with suppress(ValueError):
            faults.raise_faults()
