from typing import overload

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

@overload
def solve(cost: NDArray[np.float32]) -> tuple[Indices, Indices]: ...
@overload
def solve(cost: NDArray[np.float64]) -> tuple[Indices, Indices]: ...
@overload
def solve_batch(cost: NDArray[np.float32], sizes: Indices, groups: int) -> Indices: ...
@overload
def solve_batch(cost: NDArray[np.float64], sizes: Indices, groups: int) -> Indices: ...
