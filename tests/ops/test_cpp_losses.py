"""The C++ backends of match_cost and set_loss: extreme logits, NaN, half precision and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detr_fast import LossWeights, Targets, ops

LOSS = {
    "detr": LossWeights.detr(),
    "mmdet2": LossWeights.mmdet2(),
    "deformable": LossWeights.deformable(),
    "rt_detr": LossWeights.rt_detr(),
    "lw_detr": LossWeights.lw_detr(),
    "other gamma": replace(LossWeights.deformable(), focal_gamma=1.5, focal_alpha=0.4),
}
# Layers, targets of each image, queries, logits, groups.


def make(shape, spread: float = 3.0, seed: int = 0):
    layers, sizes, queries, num_logits, _ = shape
    generator = torch.Generator().manual_seed(seed)
    lead = (len(sizes), layers, queries)  # images first, so that the layers' axis is strided
    logits = (torch.randn(*lead, num_logits, generator=generator) * spread).transpose(0, 1)
    boxes = (torch.rand(*lead, 4, generator=generator) * 0.5).transpose(0, 1)
    targets = Targets.from_list(
        [
            {
                "labels": torch.randint(num_logits - 1, (n,), generator=generator),
                "boxes": torch.rand(n, 4, generator=generator) * 0.5,
            }
            for n in sizes
        ]
    )
    return logits, boxes, targets


def run_loss(logits, boxes, targets, index, weights, backend):
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in (logits, boxes)]
    terms = ops.set_loss(*leaves, targets, index, weights=weights, backend=backend)
    upstream = torch.arange(1, 3 * len(logits) + 1).view(3, -1)
    sum((factor * term).sum() for factor, term in zip(upstream, terms.values(), strict=True)).backward()
    return {name: term.detach() for name, term in terms.items()} | {"logits": leaves[0].grad, "boxes": leaves[1].grad}


@pytest.mark.parametrize("name", LOSS)
def test_extreme_logits_stay_finite(name):
    """A saturated score: losses as large as the logit, gradients of at most the weights."""
    logits, boxes, targets = make((1, [3], 6, 5, 1))
    logits = logits.sign() * 200
    index = torch.tensor([[0, 3, 5]])
    exact = run_loss(logits.double(), boxes.double(), targets, index, LOSS[name], "reference")
    own = run_loss(logits, boxes, targets, index, LOSS[name], "cpp")
    for key, value in exact.items():
        torch.testing.assert_close(own[key].double(), value, rtol=1e-5, atol=1e-6, msg=key)


def test_not_a_number_stays_one():
    logits, boxes, targets = make((1, [2], 4, 5, 1))
    logits = logits.contiguous()
    logits[0, 0, 1, 2] = float("nan")
    index = torch.tensor([[0, 3]])
    for weights in LOSS.values():
        own = run_loss(logits, boxes, targets, index, weights, "cpp")
        assert own["loss_ce"].isnan().all()
        assert own["loss_bbox"].isfinite().all()
    assert ops.match_cost(logits, boxes, targets, backend="cpp")[0, :, 1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    logits, boxes, targets = (x.to(dtype) if isinstance(x, torch.Tensor) else x for x in make((2, [3, 1], 6, 9, 1)))
    index = ops.batch_linear_sum_assignment(ops.match_cost(logits, boxes, targets, backend="cpp"), targets)
    own = run_loss(logits, boxes, targets, index, LossWeights(), "cpp")
    single = run_loss(logits.float(), boxes.float(), targets, index, LossWeights(), "cpp")
    assert torch.equal(own["loss_ce"], single["loss_ce"])
    assert own["logits"].dtype == dtype
    torch.testing.assert_close(own["logits"], single["logits"].to(dtype))


def test_an_index_out_of_range_is_refused():
    logits, boxes, targets = make((1, [1], 4, 5, 1))
    with pytest.raises(ValueError, match="not below the number of queries"):
        ops.set_loss(logits, boxes, targets, torch.tensor([[4]]), backend="cpp")


def test_compiled_code_calls_the_extension():
    logits, boxes, targets = make((1, [2], 4, 5, 1))
    compiled = torch.compile(lambda x, y: ops.match_cost(x, y, targets), backend="eager")
    torch.testing.assert_close(compiled(logits, boxes), ops.match_cost(logits, boxes, targets, backend="cpp"))
