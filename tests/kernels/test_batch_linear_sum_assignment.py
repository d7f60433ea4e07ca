from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from detr_fast import ops
from detr_fast.kernels.batch_linear_sum_assignment import LARGEST_PROBLEM, batch_linear_sum_assignment
from detr_fast.ops import faults
from detr_fast.ops.targets import offsets_of

INF = float("inf")


@pytest.fixture
def launch(device):
    def run(cost: Tensor, sizes: list[int], groups: int = 1, offsets: Tensor | None = None) -> Tensor:
        offsets = offsets_of(sizes, device) if offsets is None else offsets.to(device)
        options = max(sizes), groups, 1, False, "raise"
        return batch_linear_sum_assignment(cost.to(device), [], offsets, *options)[0].cpu()

    return run


@pytest.fixture
def solve(launch):
    def run(*arguments) -> Tensor:
        index = launch(*arguments)
        faults.raise_faults()
        return index

    return run


def _scipy(cost: Tensor, sizes: list[int], groups: int = 1) -> Tensor:
    return ops.batch_linear_sum_assignment(cost, sizes, groups=groups, backend="scipy").reshape(-1, groups, sum(sizes))


def _forbid(cost: np.ndarray, sizes: list[int], rng: np.random.Generator) -> np.ndarray:
    """+inf over a fifth of the pairs; one assignment of each image stays allowed."""
    forbidden = np.where(rng.random(cost.shape) < 0.2, np.inf, cost)
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        k = np.arange(min(size, cost.shape[2]))
        forbidden[:, start + k, k] = cost[:, start + k, k]
    return forbidden


FAMILIES = {
    "uniform": lambda rng, shape: rng.random(shape),
    "float32": lambda rng, shape: rng.random(shape).astype(np.float32),
    "negative": lambda rng, shape: -rng.random(shape),
    "integer ties": lambda rng, shape: rng.integers(0, 3, shape).astype(np.float64),
    "all equal": lambda rng, shape: np.full(shape, 0.7, dtype=np.float32),
    "near ties": lambda rng, shape: 1 + 1e-6 * rng.integers(0, 4, shape),
    "blocks": lambda rng, shape: 1e6 * rng.integers(0, 2, shape) + rng.random(shape),
    "bf16": lambda rng, shape: torch.from_numpy(rng.random(shape)).bfloat16().float().numpy(),
    "contended": lambda rng, shape: (rng.random(shape[-1]) + 0.01 * rng.random(shape)).astype(np.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "forbidden"])
def test_same_indices_as_scipy(solve, family):
    """Two hundred problems of each family, down to no targets and up to twice as many as queries."""
    rng = np.random.default_rng(len(family))
    for layers, queries in ((5, 1), (5, 2), (5, 3), (4, 4), (1, 6), (1, 11)):
        sizes = [0, 1, queries - 1, queries, queries + 1, 2 * queries, *rng.integers(0, 2 * queries, 4).tolist()]
        cost = FAMILIES.get(family, FAMILIES["uniform"])(rng, (layers, sum(sizes), queries))
        cost = torch.from_numpy(_forbid(cost, sizes, rng) if family == "forbidden" else cost)
        assert torch.equal(solve(cost, sizes), _scipy(cost, sizes)), queries


@pytest.mark.parametrize("family", ["integer ties", "contended", "near ties"])
@pytest.mark.parametrize(("size", "queries"), [(20, 100), (24, 24), (50, 20)])
def test_larger_problems(solve, family, size, queries):
    cost = torch.from_numpy(FAMILIES[family](np.random.default_rng(size), (1, size, queries)))
    assert torch.equal(solve(cost, [size]), _scipy(cost, [size]))


def test_many_ties_in_small_problems(solve):
    """Every family of ties that four by four costs of 0, 1 and 2 can have, more or less."""
    rng = np.random.default_rng(0)
    cost = torch.from_numpy(rng.integers(0, 3, (1, 200, 4)).astype(np.float32))
    sizes = [4, 3, 5, 2, 6] * 10
    assert torch.equal(solve(cost, sizes), _scipy(cost, sizes))


@pytest.mark.parametrize("groups", [2, 3])
def test_groups(solve, groups):
    cost = torch.rand(2, 13, 6 * groups, generator=torch.Generator().manual_seed(groups))
    sizes = [4, 0, 8, 1]
    assert torch.equal(solve(cost, sizes, groups), _scipy(cost, sizes, groups))


def test_offsets_on_the_device_come_before_sizes(solve):
    cost = torch.rand(1, 7, 5, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 2, 7], dtype=torch.int32)
    index = solve(cost, [2, 5], 1, offsets)
    assert torch.equal(index, _scipy(cost, [2, 5]))


def test_launched_for_larger_sizes_than_there_are(launch):
    cost = torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)  # two rows of the cost are nobody's
    index = launch(cost, [60, 60], 1, offsets)
    assert torch.equal(index[:, :, :5], _scipy(cost[:, :5], [2, 3]))
    assert (index[:, :, 5:] == -1).all()


def test_launched_for_smaller_sizes_than_there_are(launch):
    cost = torch.rand(1, 90, 5, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 80, 90], dtype=torch.int32)
    index = launch(cost, [10, 10], 1, offsets)
    assert torch.equal(index[:, :, 80:], _scipy(cost[:, 80:], [10]))
    with pytest.raises(ValueError, match="layer 0, image 0: the image has more targets than the sizes allow"):
        faults.raise_faults()


@pytest.mark.slow
@pytest.mark.parametrize("case", "ABCDEFT")
def test_golden_indices(device, golden, golden_case, case):
    expected = golden("match_official")
    inputs = golden_case(case)
    cost = ops.match_cost(*inputs)[-1:]  # the last layer: the interpreter is slow
    index = ops.batch_linear_sum_assignment(cost.to(device), inputs.targets.to(device), backend="triton").cpu()
    layer = inputs.logits.shape[0] - 1
    src, tgt, counts = (expected[f"{case}/f32/L{layer}/{key}"] for key in ("src", "tgt", "len"))
    matched = np.full(inputs.targets.num_targets, -1)
    pair = start = 0
    for size, count in zip(inputs.targets.sizes, counts, strict=True):
        matched[start + tgt[pair : pair + count]] = src[pair : pair + count]
        pair, start = pair + count, start + size
    np.testing.assert_array_equal(index[0].numpy(), matched)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_other_dtypes_and_strides(solve, dtype):
    cost = (torch.rand(2, 40, 6, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    view = cost.transpose(1, 2)[:, :, ::2]  # [2,6,20]
    assert torch.equal(solve(view, [2, 4]), _scipy(view.double().contiguous(), [2, 4]))


@pytest.mark.parametrize("bad", [float("nan"), -INF])
@pytest.mark.parametrize("queries", [3, 4])
def test_an_invalid_cost_is_named_and_harms_no_other_image(launch, bad, queries):
    cost = torch.rand(2, 5, queries, generator=torch.Generator().manual_seed(0))
    expected = _scipy(cost, [2, 3])[:, 0]
    cost[1, 3, 2] = bad
    index = launch(cost, [2, 3], 1)[:, 0]
    expected[1, 2:] = -1
    assert torch.equal(index, expected)
    place = "layer 1, image 1, target 1" if queries == 4 else "layer 1, image 1"
    with pytest.raises(ValueError, match=f"{place}: the matching cost contains NaN"):
        faults.raise_faults()
    faults.raise_faults()  # said once


def test_infeasible_costs_and_the_first_of_several_faults(launch):
    cost = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))
    cost[2, 0, 0] = float("nan")
    cost[1, 3:6, 3:] = INF  # group 1: image 1 has no query for its targets
    cost[1, 3:6, 4] = 0.5
    index = launch(cost, [3, 3, 2], 2)
    assert index[1, 1, 3:6].tolist() == [-1, -1, -1]
    assert (index[1, 0] >= 0).all()
    with pytest.raises(ValueError, match="layer 1, group 1, image 1: the cost matrix is infeasible"):
        faults.raise_faults()


@pytest.mark.parametrize("bad", [float("nan"), -INF, INF, 3e38, -3e38])
def test_no_cost_makes_it_hang(launch, bad):
    rng = np.random.default_rng(0)
    for size, queries in itertools.product((1, 3, 5), (1, 3, 5)):
        cost = torch.rand(1, size, queries, generator=torch.Generator().manual_seed(size))
        cost[torch.from_numpy(rng.random(cost.shape) < 0.6)] = bad
        index = launch(cost, [size], 1)
        try:
            faults.raise_faults()
        except ValueError:
            assert (index == -1).all()
            with pytest.raises(ValueError, match=r"invalid|infeasible"):
                scipy.optimize.linear_sum_assignment(cost[0].T)
        else:
            assert torch.equal(index, _scipy(cost, [size]))


def test_nothing_to_assign(solve):
    assert solve(torch.zeros(2, 0, 5), [0, 0]).shape == (2, 1, 0)
    assert solve(torch.zeros(0, 3, 5), [3]).shape == (0, 1, 3)
    assert solve(torch.zeros(1, 3, 0), [3]).tolist() == [[[-1, -1, -1]]]


def test_too_large_names_the_way_out(solve):
    with pytest.raises(ValueError, match='pass backend="cpp"'):
        solve(torch.zeros(1, 1, LARGEST_PROBLEM + 1), [1])


def test_a_limit_of_the_costs(device):
    cost = torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(0))
    cost[1, 5] = torch.inf  # has no candidate
    for groups in (1, 2):
        options = {"groups": groups, "cost_limit": 0.15}
        expected = ops.batch_linear_sum_assignment(cost, [5, 0, 3], backend="scipy", **options)
        found = ops.batch_linear_sum_assignment(cost.to(device), [5, 0, 3], backend="triton", **options)
        assert torch.equal(found.cpu(), expected)
        assert ((found == -1).any(), (found >= 0).any()) == (True, True)
