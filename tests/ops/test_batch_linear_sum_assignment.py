from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from detr_fast import ops
from tests.ops.conformance import host_backends

BACKENDS = host_backends("batch_linear_sum_assignment")


@pytest.mark.parametrize("case", "ABCDEFT")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_indices(golden, golden_case, case, backend, dtype):
    expected = golden("match_official")
    logits, boxes, targets = golden_case(case, dtype)
    cost = ops.match_cost(logits, boxes, targets)
    index = ops.batch_linear_sum_assignment(cost, targets, backend=backend)
    precision = "f32" if dtype == torch.float32 else "f64"
    for layer in range(logits.shape[0]):
        src, tgt, counts = (expected[f"{case}/{precision}/L{layer}/{key}"] for key in ("src", "tgt", "len"))
        matched = np.full(targets.num_targets, -1)
        pair = start = 0
        for size, count in zip(targets.sizes, counts, strict=True):
            matched[start + tgt[pair : pair + count]] = src[pair : pair + count]
            pair, start = pair + count, start + size
        np.testing.assert_array_equal(index[layer].numpy(), matched)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_batch_is_scipy_on_each_images_matrix(ties, groups):
    generator = torch.Generator().manual_seed(groups)
    sizes, queries = [3, 0, 12, 17, 1], 12
    cost = torch.rand(2, sum(sizes), groups * queries, generator=generator)
    cost = (cost * 3).round() if ties else cost
    index = ops.batch_linear_sum_assignment(cost, sizes, groups=groups).reshape(2, groups, -1)
    assert torch.equal(
        index, ops.batch_linear_sum_assignment(cost, sizes, groups=groups, backend="scipy").reshape(2, groups, -1)
    )
    for layer, group in itertools.product(range(2), range(groups)):
        start = 0
        for size in sizes:
            block = cost[layer, start : start + size, group * queries : (group + 1) * queries]
            query, target = scipy.optimize.linear_sum_assignment(block.T)
            own = index[layer, group, start : start + size]
            assert own[target].tolist() == (query + group * queries).tolist()
            assert int((own == -1).sum()) == max(0, size - queries)
            start += size


def test_the_sizes_may_be_an_iterator():
    cost = torch.rand(1, 6, 5)
    expected = ops.batch_linear_sum_assignment(cost, [2, 4])
    assert torch.equal(ops.batch_linear_sum_assignment(cost, iter([2, 4])), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_batch_takes_other_dtypes_and_strides(dtype):
    cost = (torch.rand(2, 40, 6, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    view = cost.transpose(1, 2)[:, :, ::2]  # [2,6,20]
    expected = ops.batch_linear_sum_assignment(view.double().contiguous(), [2, 4], backend="scipy")
    assert torch.equal(ops.batch_linear_sum_assignment(view, [2, 4]), expected)


def test_batch_errors_name_the_place():
    cost = torch.zeros(2, 5, 4)
    cost[1, 3, 2] = float("nan")
    with pytest.raises(ValueError, match="layer 1, image 1, target 1: the matching cost contains NaN"):
        ops.batch_linear_sum_assignment(cost, [2, 3])
    cost[1, 3, :] = float("inf")
    with pytest.raises(ValueError, match="layer 1, image 1, target 1: the cost matrix is infeasible"):
        ops.batch_linear_sum_assignment(cost, [2, 3])
    with pytest.raises(ValueError, match="sum of the sizes"):
        ops.batch_linear_sum_assignment(cost, [2, 2])
    with pytest.raises(ValueError, match="cannot be divided into 3 groups"):
        ops.batch_linear_sum_assignment(cost, [2, 3], groups=3)


def test_nothing_to_assign():
    assert ops.batch_linear_sum_assignment(torch.zeros(2, 0, 5), [0, 0]).shape == (2, 0)
    assert ops.batch_linear_sum_assignment(torch.zeros(0, 3, 5), [3]).shape == (0, 3)
    assert ops.batch_linear_sum_assignment(torch.zeros(1, 3, 0), [3]).tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_problem_is_marked_and_the_others_are_solved(backend):
    cost = torch.rand(2, 9, 6, generator=torch.Generator().manual_seed(0))
    sizes = [2, 3, 4]
    expected = ops.batch_linear_sum_assignment(cost, sizes, backend=backend)
    cost[0, 1, 5] = float("nan")
    cost[1, 6] = float("inf")
    index = ops.batch_linear_sum_assignment(cost, sizes, on_error="mark", backend=backend)
    expected[0, :2] = expected[1, 5:] = -1
    assert torch.equal(index, expected)
    with pytest.raises(ValueError, match="layer 0, image 0"):
        ops.batch_linear_sum_assignment(cost, sizes, backend=backend)
    with pytest.raises(ValueError, match='on_error must be "raise" or "mark"'):
        ops.batch_linear_sum_assignment(cost, sizes, on_error="ignore")


def test_pairs_are_detrs():
    generator = torch.Generator().manual_seed(0)
    sizes, queries = [3, 0, 9, 2], 7
    cost = torch.rand(2, sum(sizes), queries, generator=generator)
    pairs = ops.matched_pairs(ops.batch_linear_sum_assignment(cost, sizes), sizes)
    for layer in range(2):
        for block, (query, target) in zip(cost[layer].split(sizes), pairs[layer], strict=True):
            expected = scipy.optimize.linear_sum_assignment(block.T)
            assert query.tolist() == expected[0].tolist()
            assert target.tolist() == expected[1].tolist()


def test_pairs_of_groups():
    cost = torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(0))
    index = ops.batch_linear_sum_assignment(cost, [2, 3], groups=3)
    for layer, pairs in enumerate(ops.matched_pairs(index, [2, 3])):
        for image, (query, target) in enumerate(pairs):
            own = index[layer][:, :2] if image == 0 else index[layer][:, 2:]
            assert sorted(query.tolist()) == query.tolist() == sorted(own.flatten().tolist())
            assert all(own[q // 4, t] == q for q, t in zip(query.tolist(), target.tolist(), strict=True))


class CudaTensor(torch.Tensor):
    """On the CPU, but says otherwise."""

    device = torch.device("cuda", 0)


def test_a_gpus_costs_come_in_one_pinned_copy(monkeypatch):
    """Everything but the GPU: the order of what happens, and that each transfer happens once."""
    happened = []
    cost = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    expected = ops.batch_linear_sum_assignment(cost, [1, 3])

    class Pinned(torch.Tensor):
        def copy_(self, source, non_blocking=False):
            assert non_blocking
            happened.append("copy")
            return super().copy_(source.as_subclass(torch.Tensor))

    def empty_like(like, device, pin_memory):
        assert device == "cpu"
        assert pin_memory
        happened.append("pin")
        return torch.empty_strided(like.shape, like.stride()).fill_(float("nan")).as_subclass(Pinned)

    class Stream:
        def synchronize(self):
            happened.append("wait")

    def to(self, device, non_blocking=False):
        assert device.type == "cuda"
        assert non_blocking
        happened.append("answer")
        return self

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    index = ops.batch_linear_sum_assignment(cost.as_subclass(CudaTensor), [1, 3], backend="cpp")
    assert happened == ["pin", "copy", "wait", "answer"]
    assert torch.equal(index, expected)


@pytest.mark.gpu
def test_a_gpus_costs():
    cost = torch.rand(6, 90, 300, generator=torch.Generator().manual_seed(0))
    sizes = [10, 0, 80]
    expected = ops.batch_linear_sum_assignment(cost, sizes)
    index = ops.batch_linear_sum_assignment(cost.cuda(), sizes)
    assert index.is_cuda
    assert torch.equal(index.cpu(), expected)
    turned = cost.transpose(1, 2).contiguous().cuda().transpose(1, 2)
    assert torch.equal(ops.batch_linear_sum_assignment(turned, sizes).cpu(), expected)
