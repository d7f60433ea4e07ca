"""What is measured of the single ops: sine encoding, matching cost, solver."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor

from benchmarks import match_cost_peers
from benchmarks.assignment_costs import FAMILIES, random_targets, training_step
from benchmarks.conftest import coco_like_targets
from benchmarks.gpu_rows import Case, Goal, Sides
from benchmarks.gpu_timing import Times, copy_bandwidth, peak_memory
from benchmarks.integration_steps import predictions
from benchmarks.peers import import_peer
from detr_fast import MatchWeights, ops

assert_close = torch.testing.assert_close
bandwidth_of = cache(copy_bandwidth)


def sine(images: int, side: int, device: torch.device) -> Sides:
    mask = torch.zeros(images, side, side, dtype=torch.bool, device=device)
    mask[: images // 2, side * 3 // 4 :] = True
    mask[images // 2 :, :, side * 3 // 4 :] = True

    def encode(backend: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return ops.sine_position_encoding(mask, dtype=dtype, backend=backend)

    def check() -> None:
        exact = encode("reference", torch.float64)
        for backend in ("triton", "reference"):
            assert_close(encode(backend).double(), exact, rtol=0, atol=1e-5)

    def bandwidth(times: Times) -> dict[str, float]:
        written = encode("reference").nbytes
        return {"bandwidth": (written + mask.nbytes) / (times.median / 1e6) / bandwidth_of(device)}

    return Sides(lambda: encode("triton"), lambda: encode("reference"), check, bandwidth)


def match_cost(peer: str, layers: int, images: int, queries: int, device: torch.device) -> Sides:
    targets = coco_like_targets(images).to(device)
    logits, boxes = predictions(layers, images, queries, 92, device)
    if peer == "rfdetr":
        weights, theirs = match_cost_peers.rfdetr(logits, boxes, targets)
    else:
        weights, theirs = MatchWeights.detr(), match_cost_peers.original(logits, boxes, targets)

    def ours() -> Tensor:
        return ops.match_cost(logits, boxes, targets, weights=weights, backend="triton")

    def check() -> None:
        costs = theirs()
        kept = torch.stack(costs).mT if peer == "rfdetr" else match_cost_peers.own_images(costs, targets)
        assert_close(ours(), kept, rtol=1e-4, atol=1e-4)

    def memory(times: Times) -> dict[str, float]:
        return {"memory": peak_memory(ours, device) / ours().nbytes} if device.type == "cuda" else {}

    return Sides(ours, theirs, check, memory)


def solver_of_equal_sizes(images: int, targets: int, queries: int, device: torch.device) -> Sides:
    """Against torch-hungarian, which is given the layout that it need not copy."""
    solve = import_peer("torch_linear_assignment").batch_linear_assignment
    cost = torch.rand(1, images * targets, queries, generator=torch.Generator().manual_seed(0)).to(device)
    truth = random_targets([targets] * images, torch.Generator()).to(device)
    stack = cost.view(images, targets, queries)
    if targets > queries:
        stack = stack.mT.contiguous()

    def ours() -> Tensor:
        return ops.batch_linear_sum_assignment(cost, truth, backend="triton")

    def check() -> None:
        index, column = ours(), solve(stack)
        assert_close(index.cpu(), ops.batch_linear_sum_assignment(cost.cpu(), truth.sizes), rtol=0, atol=0)
        best = cost[0].double().gather(1, index[0].clamp(min=0)[:, None])[:, 0].where(index[0] >= 0, 0).sum()
        assert_close(stack.double().gather(2, column.clamp(min=0)[..., None]).sum(), best, rtol=1e-6, atol=0)

    return Sides(ours, lambda: solve(stack), check)


def solver_of_a_step(layers: int, images: int, queries: int, device: torch.device) -> Sides:
    cost, sizes = training_step("trained", layers, images, queries)
    return _triton_and_cpp(cost, sizes, device)


def solver_crossover(family: str, images: int, targets: int, queries: int, device: torch.device) -> Sides:
    generator, sizes = torch.Generator().manual_seed(0), [targets] * images
    return _triton_and_cpp(FAMILIES[family](1, queries, random_targets(sizes, generator), generator), sizes, device)


def _triton_and_cpp(cost: Tensor, sizes: list[int], device: torch.device) -> Sides:
    cost, targets = cost.to(device), random_targets(sizes, torch.Generator()).to(device)

    def solve(backend: str) -> Tensor:
        return ops.batch_linear_sum_assignment(cost, targets, backend=backend)

    return Sides(
        lambda: solve("triton"),
        lambda: solve("cpp"),
        lambda: assert_close(solve("triton"), solve("cpp"), rtol=0, atol=0),
    )


def cases() -> Iterator[Case]:
    for images, side in ((16, 32), (32, 48), (64, 64)):
        at_bandwidth = [Goal("bandwidth", at_least=0.7)] if images == 64 else []
        yield Case(
            "sine_position_encoding",
            f"masks {images}x{side}x{side}, 256 channels",
            "plain PyTorch",
            partial(sine, images, side),
            (Goal("ratio", at_least=10), *at_bandwidth),
        )
    for queries in (100, 300, 900):
        for peer, name, faster in (("rfdetr", "RF-DETR", 10), ("original", "the original", 30)):
            yield Case(
                "match_cost",
                f"6 layers, 16 images, {queries} queries, 92 logits",
                name,
                partial(match_cost, peer, 6, 16, queries),
                (Goal("ratio", at_least=faster), Goal("memory", at_most=1.1)),
            )
    for targets, faster in ((100, 5), (300, 2), (600, 5)):
        yield Case(
            "linear_sum_assignment",
            f"208 problems, 300 queries x {targets} targets, uniform",
            "torch-hungarian",
            partial(solver_of_equal_sizes, 208, targets, 300),
            (Goal("ratio", at_least=faster),),
        )
    yield Case(
        "linear_sum_assignment",
        "a DETR's step: 6 layers, 16 images, 100 queries, trained",
        "cpp and its transfers",
        partial(solver_of_a_step, 6, 16, 100),
        (Goal("us", at_most=100), Goal("ratio", at_least=1)),
    )


def crossover_cases() -> Iterator[Case]:
    for family, queries, targets, images in product(FAMILIES, (100, 300, 900), (10, 100, 300), (12, 48, 192)):
        if targets <= queries:
            yield Case(
                "linear_sum_assignment: triton or cpp",
                f"{images} problems, {queries} queries x {targets} targets, {family}",
                "cpp and its transfers",
                partial(solver_crossover, family, images, targets, queries),
            )
