from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _empty_is_nan(request):
    """Results that no kernel wrote are NaN, except where launches are counted."""
    if "counter" not in request.fixturenames:
        request.getfixturevalue("empty_is_nan")


NO_INTERPRETER = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU"
)


@pytest.fixture(
    scope="session", params=[pytest.param("cpu", marks=NO_INTERPRETER), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run: the CPU, in Triton's interpreter, or a GPU; a process can do only one of them."""
    return torch.device(request.param)
