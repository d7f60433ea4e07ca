"""Write mmdet_2_11.npz: outputs of the DETR of MMDetection 2.11.0, which its own code computes.

It runs in an environment with mmdet 2.11.0 (the source distribution, on PYTHONPATH), mmcv 1.3.3 without compiled ops
and their requirements, beside PyTorch and NumPy; not with the requirements of this project::

    python tests/golden/make_mmdet_2_11.py

The losses are those of the head's own ``loss`` in float64, with gradients; the position encoding is float32 in any
case. torchvision and the compiled ops of mmcv, which the DETR does not use, are replaced by empty modules.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


class Absent(ModuleType):
    """A module whose functions do nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__: list[str] = []
        self.__version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}", lambda *args, **kwargs: None)


for absent in ("mmcv._ext", "torchvision", "torchvision.models", "torchvision.ops", "torchvision.transforms"):
    sys.modules[absent] = Absent(absent)

from mmdet import __version__  # noqa: E402
from mmdet.core import build_assigner  # noqa: E402
from mmdet.core.bbox.match_costs import build_match_cost  # noqa: E402
from mmdet.models import build_head  # noqa: E402
from mmdet.models.utils import build_positional_encoding  # noqa: E402
from mmdet.models.utils.transformer import FFN  # noqa: E402

CLASSES, QUERIES, CHANNELS = 5, 7, 12
BATCH_SHAPE = (160, 192)
IMAGE_SHAPES = ((130, 150, 3), (160, 96, 3), (100, 192, 3))

ENCODINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "normalize": {"normalize": True},
    "temperature 20, scale 1": {"normalize": True, "temperature": 20, "scale": 1.0},
    "eps 0.5": {"normalize": True, "eps": 0.5},
    "temperature 20": {"temperature": 20},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "gelu, deeper, pre_norm": {
        "num_fcs": 3,
        "transformer": {"num_fcs": 3, "act_cfg": {"type": "GELU"}, "pre_norm": True},
        "positional_encoding": {"temperature": 20, "scale": 1.0, "eps": 0.5},
    },
    "tanh, not normalized": {
        "transformer": {"act_cfg": {"type": "Tanh"}},
        "positional_encoding": {"normalize": False},
    },
}
COSTS: dict[str, dict[str, Any]] = {
    "class": {"type": "ClassificationCost", "weight": 0.2},
    "l1 xyxy": {"type": "BBoxL1Cost", "weight": 0.5},
    "l1 xywh": {"type": "BBoxL1Cost", "weight": 0.5, "box_format": "xywh"},
    "giou": {"type": "IoUCost", "weight": 3.0},
    "iou": {"type": "IoUCost", "weight": 3.0, "iou_mode": "iou"},
    "iof": {"type": "IoUCost", "weight": 3.0, "iou_mode": "iof"},
}
ASSIGNERS = {f"{l1}, {mode}": (l1, mode) for l1 in ("l1 xyxy", "l1 xywh") for mode in ("giou", "iou", "iof")}
FFNS: dict[str, dict[str, Any]] = {
    "default": {},
    "gelu": {"act_cfg": {"type": "GELU"}},
    "3 layers, no residual": {"num_fcs": 3, "add_residual": False},
}


def head(**options: Any) -> Any:
    """Build the head with options on top of small ones."""
    transformer = {
        "type": "Transformer",
        "embed_dims": 16,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
        "feedforward_channels": 24,
        "dropout": 0.0,
        "return_intermediate_dec": True,
    } | options.pop("transformer", {})
    encoding = {"type": "SinePositionalEncoding", "num_feats": 8, "normalize": True}
    encoding |= options.pop("positional_encoding", {})
    built = build_head(
        {
            "type": "TransformerHead",
            "num_classes": CLASSES,
            "in_channels": CHANNELS,
            "transformer": transformer,
            "positional_encoding": encoding,
            "test_cfg": {"max_per_img": QUERIES},
            "loss_cls": {  # the default, which the head changes in place
                "type": "CrossEntropyLoss",
                "bg_cls_weight": 0.1,
                "use_sigmoid": False,
                "loss_weight": 1.0,
                "class_weight": 1.0,
            },
            **options,
        }
    )
    built.init_weights()
    for parameter in built.parameters():  # biases and norms too, so that a forgotten one shows
        parameter.data += 0.1 * torch.randn_like(parameter)
    return built.double().eval()


def metas(shapes: Any) -> list[dict[str, Any]]:
    return [{"img_shape": shape, "batch_input_shape": BATCH_SHAPE} for shape in shapes]


def ground_truth(sizes: list[int], shapes: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Boxes xyxy in pixels and labels; the last box of an image with several has no area."""
    boxes, labels = [], []
    for size, (height, width, _) in zip(sizes, shapes, strict=True):
        corners = torch.rand(size, 2, 2, dtype=torch.float64).sort(1).values * torch.tensor([width, height])
        if size > 1:
            corners[-1, 1] = corners[-1, 0]
        boxes.append(corners.flatten(1))
        labels.append(torch.randint(CLASSES, (size,)))
    return boxes, labels


def encodings(save: Arrays) -> None:
    mask = torch.zeros(2, 6, 9, dtype=torch.bool)
    mask[1, 4:], mask[1, :, 5:] = True, True
    save["encoding/mask"] = mask.numpy()
    for name, options in ENCODINGS.items():
        built = build_positional_encoding({"type": "SinePositionalEncoding", "num_feats": 8, **options})
        save[f"encoding/{name}"] = built(mask).numpy()


def networks(save: Arrays) -> None:
    features = torch.randn(3, CHANNELS, 5, 6, dtype=torch.float64)
    save["network/features"] = features.numpy()
    for name, options in NETWORKS.items():
        built = head(**options)
        with torch.no_grad():
            logits, boxes = built.forward_single(features, metas(IMAGE_SHAPES))
        save[f"network/{name}/logits"], save[f"network/{name}/boxes"] = logits.numpy(), boxes.numpy()
        for key, tensor in built.state_dict().items():
            save[f"network/{name}/weights/{key}"] = tensor.float().numpy()  # exact


def predictions(layers: int, images: int, queries: int = QUERIES) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(layers, images, queries, CLASSES + 1, dtype=torch.float64)
    boxes = torch.rand(layers, images, queries, 4, dtype=torch.float64) * torch.tensor([1, 1, 0.5, 0.5])
    boxes[..., 0, 2] = 0  # of no area
    return logits, boxes


def costs(save: Arrays) -> None:
    (logits,), (boxes,) = (x[0] for x in predictions(1, 1))
    (truth,), (labels,) = ground_truth([6], IMAGE_SHAPES[:1])
    for name, array in (("logits", logits), ("boxes", boxes), ("gt_bboxes", truth), ("gt_labels", labels)):
        save[f"cost/{name}"] = array.numpy()
    height, width, _ = IMAGE_SHAPES[0]
    factor = torch.tensor([width, height, width, height])
    center, size = boxes[:, :2], boxes[:, 2:]
    corners = torch.cat([center - size / 2, center + size / 2], 1) * factor
    arguments = {"class": (logits, labels), "l1": (boxes, truth / factor)}
    for name, options in COSTS.items():
        cost = build_match_cost(options)(*arguments.get(name.split()[0], (corners, truth)))
        save[f"cost/{name}"] = cost.numpy()
    for name, (l1, mode) in ASSIGNERS.items():
        assigner = build_assigner(
            {"type": "HungarianAssigner", "cls_cost": COSTS["class"], "reg_cost": COSTS[l1], "iou_cost": COSTS[mode]}
        )
        result = assigner.assign(boxes, logits, truth, labels, {"img_shape": IMAGE_SHAPES[0]})
        save[f"assigned/{name}/gt_inds"], save[f"assigned/{name}/labels"] = result.gt_inds, result.labels


def losses(save: Arrays) -> None:
    for case, sizes, queries in (("ragged", [3, 0, 9], QUERIES), ("none", [0], 3)):
        shapes = IMAGE_SHAPES[: len(sizes)]
        logits, boxes = (x.requires_grad_() for x in predictions(3, len(sizes), queries))
        truth, labels = ground_truth(sizes, shapes)
        for name, array in (
            ("logits", logits.detach()),
            ("boxes", boxes.detach()),
            ("sizes", torch.tensor(sizes)),
            ("gt_bboxes", torch.cat(truth)),
            ("gt_labels", torch.cat(labels)),
        ):
            save[f"loss/{case}/{name}"] = array.numpy()
        built = head(test_cfg={"max_per_img": queries})
        terms = built.loss([logits], [boxes], truth, labels, metas(shapes))
        sum(terms.values()).backward()
        for name, value in terms.items():
            save[f"loss/{case}/{name}"] = value.detach().numpy()
        save[f"loss/{case}/d_logits"], save[f"loss/{case}/d_boxes"] = logits.grad.numpy(), boxes.grad.numpy()
        of_last = built.get_targets([*logits[-1].detach()], [*boxes[-1].detach()], truth, labels, metas(shapes))
        for name, images in zip(("labels", "label_weights", "bbox_targets", "bbox_weights"), of_last[:4], strict=True):
            save[f"loss/{case}/targets/{name}"] = torch.stack(images).numpy()
        save[f"loss/{case}/targets/counts"] = np.array(of_last[4:])


def feed_forward(save: Arrays) -> None:
    x, residual = torch.randn(2, 2, 3, 8, dtype=torch.float64)
    save["ffn/x"], save["ffn/residual"] = x.numpy(), residual.numpy()
    for name, options in FFNS.items():
        built = FFN(8, 12, **options).double()
        with torch.no_grad():
            save[f"ffn/{name}/out"] = built(x).numpy()
            save[f"ffn/{name}/out with residual"] = built(x, residual).numpy()
        save[f"ffn/{name}/repr"] = np.array(repr(built))
        for key, tensor in built.state_dict().items():
            save[f"ffn/{name}/weights/{key}"] = tensor.numpy()


def main() -> None:
    assert __version__ == "2.11.0"
    torch.manual_seed(0)
    save: Arrays = {}
    for part in (encodings, networks, costs, losses, feed_forward):
        part(save)
    np.savez_compressed(Path(__file__).with_name("mmdet_2_11.npz"), **save)


if __name__ == "__main__":
    main()
