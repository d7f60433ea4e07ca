"""The DETR, head and assigner of MMDetection compared with the integration, key by key."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detr_fast import DETR, LossWeights, MatchWeights, Targets, ops
from detr_fast.checkpoints.formats import recognize_format, to_original
from detr_fast.models import load_weights, read_state_dict

NUM_CLASSES, NUM_QUERIES = 6, 10
SIZES = ((480, 640), (333, 500), (64, 800))
COSTS = {
    "shipped": [
        {"type": "ClassificationCost", "weight": 1.0},
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ],
    "corners": [
        {"type": "ClassificationCost", "weight": 1.0},
        {"type": "BBoxL1Cost", "weight": 5.0},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ],
    "focal": [
        {"type": "FocalLossCost", "weight": 2.0},
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ],
    "iou": [
        {"type": "ClassificationCost", "weight": 1.0},
        {"type": "IoUCost", "iou_mode": "iou", "weight": 2.0},
    ],
    "iof": [
        {"type": "FocalLossCost", "weight": 2.0},
        {"type": "IoUCost", "iou_mode": "iof", "weight": 5.0},
    ],
    "unsupported": [
        {"type": "ClassificationCost", "weight": 1.0},
        {"type": "BBoxL1Cost", "weight": 5.0},
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    ],
}


@pytest.fixture(scope="session")
def fast(import_or_skip):
    """The integration of MMDetection, which is imported before the models of MMDetection: mmcv-lite has no ops."""
    import_or_skip("mmdet")
    from mmengine.registry import init_default_scope

    from detr_fast.integrations import mmdet

    import_or_skip("mmdet.models")  # all of it is registered
    init_default_scope("mmdet")
    return mmdet


def make_instances(counts, seed: int = 0):
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    instances = []
    for count, (height, width) in zip(counts, SIZES, strict=False):
        low = torch.rand(count, 2, generator=generator) * 0.5
        high = low + 0.05 + torch.rand(count, 2, generator=generator) * 0.4
        corners = torch.cat((low, high), -1) * torch.tensor([width, height, width, height])
        instances.append(InstanceData(bboxes=corners, labels=torch.randint(NUM_CLASSES, (count,), generator=generator)))
    return instances, [{"img_shape": size} for size in SIZES[: len(counts)]]


def make_predictions(images: int, num_logits: int, layers: int = 6):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(layers, images, NUM_QUERIES, num_logits, generator=generator)
    return logits.requires_grad_(), (
        torch.rand(layers, images, NUM_QUERIES, 4, generator=generator) * 0.4 + 0.2
    ).requires_grad_()


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("count", [0, 1, 7, 10, 14])
def test_the_assigner(fast, costs, count):
    from mmdet.registry import TASK_UTILS
    from mmengine.structures import InstanceData

    configuration = {"match_costs": COSTS[costs]}
    host = TASK_UTILS.build({"type": "HungarianAssigner", **configuration})
    integrated = TASK_UTILS.build({"type": "FastHungarianAssigner", **configuration})
    (truth, *_), (meta, *_) = make_instances((count,), seed=count)
    generator = torch.Generator().manual_seed(9)
    low = torch.rand(NUM_QUERIES, 2, generator=generator) * 300
    corners = torch.cat((low, low + torch.rand(NUM_QUERIES, 2, generator=generator) * 150 + 5), -1)
    predicted = InstanceData(scores=torch.randn(NUM_QUERIES, NUM_CLASSES + 1, generator=generator), bboxes=corners)
    expected, found = (assigner.assign(predicted, truth, meta) for assigner in (host, integrated))
    assert found.num_gts == expected.num_gts == count
    assert found.gt_inds.tolist() == expected.gt_inds.tolist()
    assert found.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize("costs", ["shipped", "corners", "focal", "iou", "iof"])
def test_the_costs(fast, costs):
    from mmdet.registry import TASK_UTILS
    from mmengine.structures import InstanceData

    from detr_fast.integrations.mmdet import conversions

    (truth, *_), (meta, *_) = make_instances((5,))
    logits, boxes = (tensor.detach() for tensor in make_predictions(1, NUM_CLASSES + 1, layers=1))
    height, width = SIZES[0]
    center, size = boxes[0, 0, :, :2], boxes[0, 0, :, 2:]
    corners = torch.cat((center - size / 2, center + size / 2), -1) * torch.tensor([width, height, width, height])
    predicted = InstanceData(scores=logits[0, 0], bboxes=corners)
    match_costs = [TASK_UTILS.build(cost) for cost in COSTS[costs]]
    expected = sum(cost(predicted, truth, meta) for cost in match_costs)  # [Q,T]
    weights = conversions.match_weights(match_costs)
    found = ops.match_cost(logits, boxes, conversions.pack([truth], [SIZES[0]]), weights=weights)
    torch.testing.assert_close(found[0].T, expected, rtol=2e-6, atol=2e-6)
    if costs == "corners":
        preset = ops.match_cost(logits, boxes, conversions.pack([truth], [SIZES[0]]), weights=MatchWeights.mmdet2())
        torch.testing.assert_close(preset[0].T, expected, rtol=2e-6, atol=2e-6)


HEAD = {"num_classes": NUM_CLASSES, "embed_dims": 16}
# Given explicitly, since DETRHead changes its default.
SOFTMAX = {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "class_weight": 1.0, "use_sigmoid": False}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 2.0}


def build_heads(costs: str, **options: Any):
    """Build the head of MMDetection and that of the integration."""
    from mmdet.registry import MODELS

    heads = []
    for head, assigner in (("DETRHead", "HungarianAssigner"), ("FastDETRHead", "FastHungarianAssigner")):
        train = {"assigner": {"type": assigner, "match_costs": COSTS[costs]}}
        heads.append(MODELS.build({"type": head, "train_cfg": train, **HEAD, "loss_cls": dict(SOFTMAX), **options}))
    return heads


@pytest.mark.parametrize(
    ("costs", "options"), [("shipped", {}), ("corners", {}), ("focal", {"loss_cls": FOCAL}), ("unsupported", {})]
)
@pytest.mark.parametrize("counts", [(3, 0, 5), (14, 2), (0, 0)], ids=["ragged", "more than queries", "none"])
def test_the_head(fast, costs, options, counts, monkeypatch):
    calls = []
    set_loss = ops.set_loss
    monkeypatch.setattr(ops, "set_loss", lambda *args, **kwargs: calls.append(1) or set_loss(*args, **kwargs))
    results = []
    for head in build_heads(costs, **{k: dict(v) for k, v in options.items()}):
        logits, boxes = make_predictions(len(counts), head.cls_out_channels)
        calls.clear()  # those of the comparison
        losses = head.loss_by_feat(logits, boxes, *make_instances(counts))
        sum(losses.values()).backward()
        results.append({**losses, "logits": logits.grad, "boxes": boxes.grad})
    host, integrated = results
    assert integrated.keys() == host.keys() >= {f"d{i}.loss_{k}" for i in range(5) for k in ("cls", "bbox", "iou")}
    for name, value in host.items():
        torch.testing.assert_close(integrated[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert len(calls) == (costs != "unsupported")


@pytest.mark.parametrize("counts", [(3, 0, 5), (14, 2)], ids=["ragged", "more than queries"])
def test_the_preset_is_the_head_of_2_11(fast, counts):
    """MatchWeights.mmdet2() and LossWeights.mmdet2(): L1 in xyxy, GIoU in pixels, divided by the matched pairs."""
    from detr_fast.integrations.mmdet.conversions import pack

    head, _ = build_heads("corners")
    logits, boxes = make_predictions(len(counts), NUM_CLASSES + 1)
    instances, metas = make_instances(counts)
    host = head.loss_by_feat(logits, boxes, instances, metas)
    targets: Targets = pack(instances, [meta["img_shape"] for meta in metas])
    weights = LossWeights.mmdet2()
    index = ops.batch_linear_sum_assignment(
        ops.match_cost(logits, boxes, targets, weights=MatchWeights.mmdet2()), targets
    )
    integrated = ops.set_loss(logits, boxes, targets, index, weights=weights)
    for term, name in (("loss_ce", "loss_cls"), ("loss_bbox", "loss_bbox"), ("loss_giou", "loss_iou")):
        for layer, value in enumerate(integrated[term] * getattr(weights, term)):
            key = name if layer == 5 else f"d{layer}.{name}"
            torch.testing.assert_close(value, host[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"normalize": True, "offset": -0.5}])
def test_the_positional_encoding(fast, options):
    from mmdet.registry import MODELS

    host, integrated = (
        MODELS.build({"type": name, "num_feats": 8, **options})
        for name in ("SinePositionalEncoding", "FastSinePositionalEncoding")
    )
    mask = torch.zeros(2, 5, 7)
    mask[1, 3:] = 1
    torch.testing.assert_close(integrated(mask), host(mask), rtol=0, atol=2e-6)
    if "input" not in signature(type(host).forward).parameters:
        return  # in releases before 3.2 there is always a mask
    features = torch.zeros(2, 4, 5, 7)
    torch.testing.assert_close(integrated(None, features), host(None, features), rtol=0, atol=2e-6)


def build_detector(kind: str, head: str, assigner: str):
    from mmdet.registry import MODELS

    layer = {
        "self_attn_cfg": {"embed_dims": 16, "num_heads": 2, "batch_first": True},
        "ffn_cfg": {"embed_dims": 16, "feedforward_channels": 24, "num_fcs": 2, "ffn_drop": 0.0},
    }
    cross = {"cross_attn_cfg": {"embed_dims": 16, "num_heads": 2, "batch_first": True}}
    configuration = {
        "type": kind,
        "num_queries": NUM_QUERIES,
        "data_preprocessor": {"type": "DetDataPreprocessor"},
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "out_indices": (3,),
            "norm_cfg": {"type": "BN", "requires_grad": False},
            "norm_eval": True,
            "style": "pytorch",
        },
        "neck": {
            "type": "ChannelMapper",
            "in_channels": [512],
            "kernel_size": 1,
            "out_channels": 16,
            "act_cfg": None,
            "norm_cfg": None,
            "num_outs": 1,
        },
        "encoder": {"num_layers": 1, "layer_cfg": layer},
        "decoder": {"num_layers": 2, "layer_cfg": layer | cross, "return_intermediate": True},
        "positional_encoding": {"num_feats": 8, "normalize": True},
        "bbox_head": {"type": head, **HEAD, "loss_cls": dict(SOFTMAX)},
        "train_cfg": {"assigner": {"type": assigner, "match_costs": COSTS["shipped"]}},
        "test_cfg": {"max_per_img": 5},
    }
    torch.manual_seed(0)
    return MODELS.build(configuration)


def make_samples():
    """Two images and their data samples; the second is narrower and has no targets."""
    from mmdet.structures import DetDataSample

    instances, _ = make_instances((3, 0))
    samples = []
    for truth, width in zip(instances, (128, 100), strict=True):
        truth.bboxes = truth.bboxes / 8
        sample = DetDataSample(gt_instances=truth)
        shapes = {"img_shape": (96, width), "batch_input_shape": (96, 128), "ori_shape": (96, width)}
        sample.set_metainfo(shapes | {"scale_factor": (1.0, 1.0)})
        samples.append(sample)
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(2)), samples


def test_a_complete_detector_from_its_configuration(fast):
    images, samples = make_samples()
    host = build_detector("DETR", "DETRHead", "HungarianAssigner")
    integrated = build_detector("FastDETR", "FastDETRHead", "FastHungarianAssigner")
    integrated.load_state_dict(host.state_dict())
    expected, found = (detector.loss(images, samples) for detector in (host, integrated))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def shipped(name: str, kind: str) -> Any:
    """A detector of the type ``kind``, with the configuration that MMDetection ships, on a smaller scale."""
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config

    smaller = {"feedforward_channels": 32, "num_layers": 2, "num_queries": NUM_QUERIES, "max_per_img": 5}
    smaller |= {"num_classes": NUM_CLASSES, "depth": 18, "in_channels": [128, 256, 512]}

    def shrink(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: smaller.get(k, shrink(v)) for k, v in value.items() if k != "init_cfg"}

    model = shrink(Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / name).model.to_dict())
    torch.manual_seed(0)
    detector = MODELS.build(model | {"type": kind})
    detector.init_weights()
    for module in detector.modules():  # samples anywhere: at the borders between cells rounding decides gradients
        if hasattr(module, "sampling_offsets"):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.sampling_offsets.bias)
    return detector


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The number of calls of the ops of a transformer."""
    counts = dict.fromkeys(("fused_deformable_attention", "sine_position_encoding"), 0)

    def counted(name: str) -> Any:
        original = getattr(ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(ops, name, counted(name))
    return counts


DEFORMABLE = {
    "DeformableDETR": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEFORMABLE)
def test_deformable_detectors(fast, kind, calls):
    images, samples = make_samples()
    host, integrated = shipped(DEFORMABLE[kind], kind), shipped(DEFORMABLE[kind], f"Fast{kind}")
    assert integrated.load_state_dict(host.state_dict())
    calls.update(dict.fromkeys(calls, 0))  # those of the comparison
    results = []
    for detector in (host, integrated):
        assert not any(calls.values())
        torch.manual_seed(1)
        losses = detector.loss(images, samples)
        sum(value for name, value in losses.items() if "loss" in name).backward()
        gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
        results.append((losses, {name: gradient for name, gradient in gradients.items() if gradient is not None}))
    (expected, expected_gradients), (found, gradients) = results
    assert calls == {"fused_deformable_attention": 4, "sine_position_encoding": 4}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-3 * scale + 1e-5, msg=name)

    with torch.no_grad():
        desired, actual = (detector.eval().predict(images, samples) for detector in (host, integrated))
    for expected_image, image in zip(desired, actual, strict=True):
        torch.testing.assert_close(
            image.pred_instances.scores, expected_image.pred_instances.scores, rtol=1e-4, atol=1e-5
        )


def test_a_detector_that_is_built_already(fast, calls):
    images, samples = make_samples()
    detector = shipped(DEFORMABLE["DeformableDETR"], "DeformableDETR").eval()
    with torch.no_grad():
        expected = detector(images, samples, mode="tensor")
        assert not any(calls.values())
        assert fast.accelerate(detector) is detector
        calls.update(dict.fromkeys(calls, 0))  # those of the comparison
        found = detector(images, samples, mode="tensor")
        assert calls == {"fused_deformable_attention": 4, "sine_position_encoding": 4}
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        restored = fast.restore(detector)(images, samples, mode="tensor")
    assert calls == {"fused_deformable_attention": 4, "sine_position_encoding": 4}
    assert all(torch.equal(x, y) for x, y in zip(restored[:2], expected[:2], strict=True))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_one_attention(fast, batch_first, coordinates):
    from mmdet.registry import MODELS

    shapes = torch.tensor([[5, 4], [3, 2]])
    layers = []
    for name in ("MultiScaleDeformableAttention", "FastMultiScaleDeformableAttention"):
        layers.append(
            MODELS.build({"type": name, "embed_dims": 32, "num_levels": 2, "batch_first": batch_first}).eval()
        )
        torch.manual_seed(0)
        nn.init.normal_(layers[-1].sampling_offsets.weight, std=0.3)
        nn.init.normal_(layers[-1].attention_weights.weight, std=0.3)
    layers[1].load_state_dict(layers[0].state_dict())
    query, position, value = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.randn(2, 26, 32)
    if not batch_first:
        query, position, value = (tensor.transpose(0, 1).contiguous() for tensor in (query, position, value))
    arguments = {"reference_points": torch.rand(2, 5, 2, coordinates), "spatial_shapes": shapes}
    arguments |= {"level_start_index": torch.tensor([0, 20])}
    for options in ({"query_pos": position, "key_padding_mask": torch.rand(2, 26) > 0.7}, {"identity": position}):
        expected, found = (layer(query, value=value, **arguments, **options) for layer in layers)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_focal_loss(fast):
    from mmdet.registry import MODELS

    logits, weight = torch.randn(7, NUM_CLASSES), torch.rand(7)
    classes = torch.tensor([0, 1, 5, NUM_CLASSES, NUM_CLASSES, 2, 2])
    host, integrated = (MODELS.build({"type": name, "loss_weight": 2.0}) for name in ("FocalLoss", "FastFocalLoss"))
    for target in (classes, nn.functional.one_hot(classes, NUM_CLASSES + 1)[:, :-1]):
        expected, found = (loss(logits, target, weight, avg_factor=3.0) for loss in (host, integrated))
        assert torch.equal(found, expected)


def test_a_missing_op_is_named(fast):
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    with pytest.raises(RuntimeError, match="mmcv-lite has no compiled op nms"):
        nms(boxes, torch.ones(1), 0.5)


def test_its_weights_in_our_model(fast):
    host = build_detector("DETR", "DETRHead", "HungarianAssigner").eval()
    weights = {k: v for k, v in host.state_dict().items() if not k.startswith("data_preprocessor")}
    assert recognize_format(weights) == "mmdet3"
    shape = {"hidden_dim": 16, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 2}
    integrated = DETR(NUM_CLASSES, backbone="resnet18", dim_feedforward=24, num_queries=NUM_QUERIES, **shape).eval()
    load_weights(integrated, to_original(weights))
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        from mmdet.structures import DetDataSample

        sample = DetDataSample()
        sample.set_metainfo({"img_shape": (96, 128), "batch_input_shape": (96, 128)})
        features = host.extract_feat(images)
        head_inputs = host.forward_transformer(features, [sample])
        logits, boxes = host.bbox_head(**head_inputs)
        output = integrated(images)
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.boxes, boxes, rtol=0, atol=1e-5)


def test_a_checkpoint_of_mmengine_is_read(fast, tmp_path):
    """A message hub, which the runner saves, has objects of MMEngine and NumPy."""
    from mmengine.logging import MessageHub

    hub = MessageHub("a run")
    hub.update_scalar("train/loss", np.float32(1.5))
    hub.update_info("lr", np.float64(1e-4))
    weights = {"weight": torch.randn(3)}
    torch.save({"meta": {"epoch": 1}, "state_dict": weights, "message_hub": hub.state_dict()}, tmp_path / "epoch_1.pth")
    assert torch.equal(read_state_dict(tmp_path / "epoch_1.pth")["weight"], weights["weight"])
