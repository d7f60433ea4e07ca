"""RF-DETR's criterion and attention, accelerated and not."""

from __future__ import annotations

import pickle
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn

from detr_fast import ops

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
NUM_CLASSES, NUM_QUERIES = 7, 10


@pytest.fixture
def rfdetr(import_or_skip):
    """The integration of RF-DETR."""
    import_or_skip("rfdetr")
    from detr_fast.integrations import rfdetr

    return rfdetr


@pytest.fixture
def build_criterion(rfdetr):
    def build(groups: int = 3, **options: Any) -> nn.Module:
        matcher = rfdetr.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
        losses = ["labels", "boxes", "cardinality"]
        options = {"focal_alpha": 0.25, "losses": losses, "group_detr": groups, "ia_bce_loss": True} | options
        return rfdetr.SetCriterion(NUM_CLASSES, matcher, WEIGHTS, **options).train()

    return build


def make_step(sizes, groups: int = 3, dtype: torch.dtype = torch.float32, layers: int = 3):
    """Outputs of decoder layers and encoder, all tensors requiring gradients, and targets."""
    generator = torch.Generator().manual_seed(sum(sizes))
    shape = (layers + 1, len(sizes), groups * NUM_QUERIES)
    logits = torch.randn(*shape, NUM_CLASSES, generator=generator).to(dtype).requires_grad_()
    boxes = (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).to(dtype).requires_grad_()
    each = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
    outputs = each[0] | {"aux_outputs": each[1:-1], "enc_outputs": each[-1]}
    targets = [
        {
            "labels": torch.randint(NUM_CLASSES, (n,), generator=generator),
            "boxes": (torch.rand(n, 4, generator=generator) * 0.4 + 0.2).to(dtype),
        }
        for n in sizes
    ]
    return outputs, targets, (logits, boxes)


def evaluate(criterion, *args: Any, **kwargs: Any):
    outputs, targets, leaves = make_step(*args, **kwargs)
    losses = criterion(outputs, targets)
    sum(
        WEIGHTS.get(name.split("_")[0] + "_" + name.split("_")[1], 0) * loss for name, loss in losses.items()
    ).backward()
    gradients = {f"gradient {i}": leaf.grad for i, leaf in enumerate(leaves)}
    return {name: loss.detach() for name, loss in losses.items()} | gradients


@pytest.mark.parametrize("parts", [{}, {"loss": False}, {"matcher": False}], ids=["both", "matcher", "loss"])
@pytest.mark.parametrize(
    "sizes", [(3, 0, 5), (12, 2), (0, 0), (4,)], ids=["ragged", "more than queries", "none", "one"]
)
def test_losses_and_gradients_within_twice_the_noise(rfdetr, build_criterion, sizes, parts):
    criterion = build_criterion()
    exact, host = (evaluate(criterion, sizes, dtype=dtype) for dtype in (torch.float64, torch.float32))
    accelerated = evaluate(rfdetr.accelerate(criterion, **parts), sizes)
    assert accelerated.keys() == host.keys()
    for name, value in accelerated.items():
        scale = float(exact[name].abs().max())
        error, allowed = (float((x - exact[name]).abs().max()) for x in (value, host[name]))
        assert error <= 2 * allowed + 3e-7 * scale + 1e-12, name


def test_ours_runs_once_for_all_layers(rfdetr, build_criterion, monkeypatch):
    counts = dict.fromkeys(("match_cost", "batch_linear_sum_assignment", "set_loss"), 0)

    def counted(name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return original(*args, **kwargs)

    for name in counts:
        monkeypatch.setattr(ops, name, partial(counted, name, getattr(ops, name)))
    criterion = build_criterion()
    keys = criterion.state_dict().keys()
    rfdetr.accelerate(criterion)
    counts.update(dict.fromkeys(counts, 0))  # those of the comparison
    evaluate(criterion, (3, 0, 5))
    assert set(counts.values()) == {1}
    evaluate(pickle.loads(pickle.dumps(criterion)), (3, 0, 5))
    assert set(counts.values()) == {2}
    assert criterion.state_dict().keys() == keys
    evaluate(rfdetr.restore(criterion), (3, 0, 5))
    assert set(counts.values()) == {2}
    assert type(criterion) is rfdetr.SetCriterion
    assert type(criterion.matcher) is rfdetr.HungarianMatcher


def test_the_same_matches(rfdetr, build_criterion):
    for groups in (1, 13):
        criterion = build_criterion(groups)
        outputs, targets, _ = make_step((3, 0, 12), groups)
        layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
        expected = [criterion.matcher(layer, targets, group_detr=groups) for layer in layers]
        found = rfdetr.accelerate(criterion).matcher._match_many(layers, targets, group_detr=groups)
        for host, accelerated in zip(expected, found, strict=True):
            for (queries, rows), (found_queries, found_rows) in zip(host, accelerated, strict=True):
                assert sorted(zip(queries.tolist(), rows.tolist(), strict=True)) == list(
                    zip(found_queries.tolist(), found_rows.tolist(), strict=True)
                )


def test_ten_steps_stay_together(rfdetr, build_criterion):
    histories = []
    for patch in (False, True):
        criterion = build_criterion()
        outputs, targets, leaves = make_step((3, 0, 12))
        optimizer = torch.optim.SGD(leaves, lr=0.01)
        history = []
        for _ in range(10):
            each = [{"pred_logits": x, "pred_boxes": y.clamp(0.01, 1)} for x, y in zip(*leaves, strict=True)]
            outputs = each[0] | {"aux_outputs": each[1:-1], "enc_outputs": each[-1]}
            losses = (rfdetr.accelerate(criterion) if patch else criterion)(outputs, targets)
            total = sum(losses[f"{name}{s}"] * w for name, w in WEIGHTS.items() for s in ("", "_0", "_1", "_enc"))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append(total.item())
        histories.append(history)
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    assert histories[0][-1] < histories[0][0]


def test_what_is_not_plain_goes_their_way(rfdetr, build_criterion):
    criterion = build_criterion()
    outputs, targets, _ = make_step((3, 2))
    outputs["pred_logits"] = outputs["pred_logits"].detach().clone()
    outputs["pred_logits"][0, 0] = float("nan")
    expected = criterion(outputs, targets)["loss_bbox"]
    torch.testing.assert_close(rfdetr.accelerate(criterion)(outputs, targets)["loss_bbox"], expected)
    rfdetr.restore(criterion)
    criterion.ia_bce_loss = False  # the plain focal loss
    expected = criterion(*make_step((3, 2))[:2])
    found = rfdetr.accelerate(criterion)(*make_step((3, 2))[:2])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


SHAPES = [(8, 6), (4, 3)]


def build_decoder(rfdetr) -> nn.Module:
    """The decoder of RF-DETR, which samples anywhere: at the borders between cells rounding decides gradients."""
    from rfdetr.models.transformer import Transformer

    torch.manual_seed(0)
    transformer = Transformer(
        d_model=32,
        sa_nhead=4,
        ca_nhead=4,
        num_queries=NUM_QUERIES,
        num_decoder_layers=2,
        dim_feedforward=32,
        return_intermediate_dec=True,
        num_feature_levels=len(SHAPES),
        dec_n_points=2,
        bbox_reparam=True,
        lite_refpoint_refine=True,
    )
    if not hasattr(transformer.decoder, "bbox_embed"):
        transformer.decoder.bbox_embed = None  # which the model adds in releases before 1.8
    for module in transformer.modules():
        if isinstance(module, rfdetr.MSDeformAttn):
            for layer, scale in ((module.sampling_offsets, 1.0), (module.attention_weights, 0.5)):
                nn.init.normal_(layer.weight, std=0.1)
                nn.init.normal_(layer.bias, std=scale)
    return transformer


def decode(transformer: nn.Module, dtype: torch.dtype = torch.float64):
    """The outputs, and the gradients of parameters and inputs."""
    generator = torch.Generator().manual_seed(1)
    transformer = transformer.to(dtype)
    transformer.zero_grad()

    def features(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    maps = [features(2, 32, *shape) for shape in SHAPES]
    masks = [torch.zeros(2, *shape, dtype=torch.bool) for shape in SHAPES]
    for mask in masks:
        mask[1, :, -2:] = True
    positions = [features(2, 32, *shape) for shape in SHAPES]
    queries, references = features(NUM_QUERIES, 32), features(NUM_QUERIES, 4)
    outputs = [o for o in transformer(maps, masks, positions, references, queries) if o is not None]
    sum((o * torch.randn(o.shape, generator=generator).to(dtype)).sum() for o in outputs if o.requires_grad).backward()
    leaves = [*transformer.parameters(), *maps, queries, references]
    return [o.detach() for o in outputs], [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.fixture
def attentions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The spatial shapes of the calls of the op."""
    shapes: list[Any] = []
    original = ops.fused_deformable_attention

    def counted(value: Any, spatial_shapes: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(spatial_shapes)
        return original(value, spatial_shapes, *args, **kwargs)

    monkeypatch.setattr(ops, "fused_deformable_attention", counted)
    return shapes


def test_attention_of_the_decoder(rfdetr, attentions):
    transformer = build_decoder(rfdetr)
    outputs, gradients = decode(transformer)
    assert not attentions
    assert rfdetr.accelerate(transformer) is transformer
    attentions.clear()  # those of the comparison
    found, found_gradients = decode(transformer)
    assert len(attentions) == 2
    torch.testing.assert_close(found, outputs, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-8, atol=1e-9)
    decode(pickle.loads(pickle.dumps(transformer)))
    assert len(attentions) == 4
    decode(rfdetr.accelerate(transformer, deformable_attention=False))
    assert len(attentions) == 4
    rfdetr.restore(rfdetr.accelerate(transformer))
    assert not any(type(module) is rfdetr.FastAttention for module in transformer.modules())
    restored, _ = decode(transformer)
    assert all(map(torch.equal, restored, outputs))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("levels", [1, len(SHAPES)])
def test_one_attention(rfdetr, attentions, coordinates, levels):
    torch.manual_seed(0)
    attention = rfdetr.MSDeformAttn(32, len(SHAPES), 4, 3)
    nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    nn.init.normal_(attention.attention_weights.weight, std=0.3)
    size = sum(height * width for height, width in SHAPES)
    query, features, references = torch.randn(2, 5, 32), torch.randn(2, size, 32), torch.rand(2, 5, levels, coordinates)
    padding = torch.rand(2, size) > 0.8
    arguments = query, references, features, torch.tensor(SHAPES), torch.tensor([0, 48]), padding
    expected = attention(*arguments)
    rfdetr.accelerate(attention)
    attentions.clear()  # those of the comparison
    torch.testing.assert_close(attention(*arguments), expected, rtol=1e-5, atol=1e-5)
    if "input_spatial_shapes_hw" not in signature(rfdetr.MSDeformAttn.forward).parameters:
        return  # in releases before 1.8 the shapes are in a tensor only
    torch.testing.assert_close(attention(*arguments, SHAPES), expected, rtol=1e-5, atol=1e-5)
    assert len(attentions) == 2
    with pytest.raises(ValueError, match="value has 60 rows"):
        attention(*arguments, [(8, 6), (4, 4)])
    attention.export()
    torch.testing.assert_close(attention(*arguments, SHAPES), expected, rtol=1e-5, atol=1e-5)
    assert len(attentions) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_in_single_precision(rfdetr, attentions, dtype):
    transformer = build_decoder(rfdetr).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected, _ = decode(transformer, torch.float32)
        found, _ = decode(rfdetr.accelerate(transformer), torch.float32)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for desired, actual in zip(expected, found, strict=True):
        torch.testing.assert_close(actual.float(), desired.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_attention_compiled_without_a_graph_break(rfdetr):
    torch.manual_seed(0)
    attention = rfdetr.accelerate(rfdetr.MSDeformAttn(32, len(SHAPES), 4, 3))
    features, references = torch.randn(2, 60, 32), torch.rand(2, 5, 1, 4)
    arguments = torch.randn(2, 5, 32), references, features, torch.tensor(SHAPES), torch.tensor([0, 48]), None, SHAPES
    expected = attention(*arguments)
    found = torch.compile(attention, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(found, expected)


def test_other_criteria_are_refused(rfdetr):
    with pytest.raises(ValueError, match=r"expected a model of RF-DETR .*, got Linear"):
        rfdetr.accelerate(nn.Linear(2, 2))
