"""Training steps and inference of transformers' models with deformable attention, accelerated and not."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.inputs import as_dicts, coco_like_targets
from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation

NUM_CLASSES = 80
PYRAMID = ["stage2", "stage3", "stage4"]
SMALL_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "layer_type": "basic"}
SMALL_TRANSFORMER = {
    "d_model": 32,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
    "num_queries": 10,
}
SMALL_RT_DETR = {"encoder_hidden_dim": 32, "encoder_in_channels": [8, 8, 16], "decoder_in_channels": [32] * 3}


class Model(NamedTuple):
    """A detector: the names of its class and of its configuration, and what differs from the defaults."""

    type: str
    backbone: str | None  # name of its configuration, a ResNet-50; None for the model's default
    settings: dict[str, Any]
    backbone_settings: dict[str, Any]


DEFORMABLE_DETR = Model("DeformableDetrForObjectDetection", "ResNetConfig", {"auxiliary_loss": True}, {})
RT_DETR = Model("RTDetrForObjectDetection", "RTDetrResNetConfig", {}, {})
MODELS = {
    "Deformable DETR": DEFORMABLE_DETR,
    "RT-DETR": RT_DETR,
    "Grounding DINO": Model("GroundingDinoForObjectDetection", None, {}, {}),
    "Mask2Former": Model("Mask2FormerForUniversalSegmentation", None, {}, {}),
    "small Deformable DETR": DEFORMABLE_DETR._replace(settings=SMALL_TRANSFORMER, backbone_settings=SMALL_BACKBONE),
    "small RT-DETR": RT_DETR._replace(settings=SMALL_TRANSFORMER | SMALL_RT_DETR, backbone_settings=SMALL_BACKBONE),
}
GOALS = {  # how much faster than transformers on a CPU, in training or inference
    ("Deformable DETR", True): 1.9,
    ("RT-DETR", True): 1.2,
    ("Deformable DETR", False): 1.0,
    ("RT-DETR", False): 1.0,
    ("Grounding DINO", False): 1.0,
    ("Mask2Former", False): 1.0,
}
SIZES = [
    ("Deformable DETR", True, 1, 800, 1066),
    ("RT-DETR", True, 2, 640, 640),
    ("Deformable DETR", False, 1, 800, 1066),
    ("RT-DETR", False, 1, 640, 640),
    ("Grounding DINO", False, 1, 800, 1066),
    ("Mask2Former", False, 1, 640, 640),
]
SMALL = [("small Deformable DETR", True, 2, 64, 96), ("small RT-DETR", False, 1, 64, 64)]

Inputs = tuple[nn.Module, dict[str, Any]]


def case(device: torch.device, name: str, training: bool, images: int, height: int, width: int) -> Case:
    run = train if training else infer

    def accelerated(inputs: Inputs) -> Implementation:
        from detr_fast.integrations.huggingface import accelerate

        model, batch = inputs
        return run(accelerate(copy.deepcopy(model)), batch)

    def transformers(inputs: Inputs) -> Implementation:
        return run(*inputs)

    def expected(inputs: Inputs) -> tuple[Tensor, ...]:
        implementation = transformers(inputs)
        return implementation.result(implementation.call())

    return Case(
        f"{name}, {'training step' if training else 'inference'}, {images} images, {height}x{width}",
        "accelerated",
        lambda: (build(MODELS[name], training).to(device), batch_of(name, training, images, (height, width), device)),
        {"accelerated": accelerated, "transformers": transformers},
        expected,
        rtol=1e-2,  # where rounding exchanges queries of a first stage that have nearly the same score
        atol=1e-3,
        goals=(Goal("ratio", GOALS[name, training], "transformers"),)
        if device.type == "cpu" and (name, training) in GOALS
        else (),
        has_memory=True,
    )


def build(model: Model, training: bool) -> nn.Module:
    """Build a model with random weights, whose attention samples a few cells around its reference points.

    A new model samples at the centers of cells, where rounding decides the gradients.
    """
    transformers = import_peer("transformers")
    settings = {"num_labels": NUM_CLASSES, **model.settings}
    if model.backbone is not None:
        settings["backbone_config"] = getattr(transformers, model.backbone)(
            out_features=PYRAMID, **model.backbone_settings
        )
    model_type = getattr(transformers, model.type)
    torch.manual_seed(0)
    detector: nn.Module = model_type(model_type.config_class(**settings)).train(training)
    for module in detector.modules():
        if isinstance(offsets := getattr(module, "sampling_offsets", None), nn.Linear):
            nn.init.normal_(offsets.weight, std=0.05)
            nn.init.normal_(offsets.bias)
    return detector


def batch_of(name: str, training: bool, images: int, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Draw images, and what else the model takes."""
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {"pixel_values": torch.randn(images, 3, *size, generator=generator).to(device)}
    if training:
        batch["labels"] = as_dicts(coco_like_targets(images, NUM_CLASSES, seed=1).to(device), "class_labels")
    if name == "Grounding DINO":  # "a cat. a remote control." in the vocabulary of BERT
        tokens = torch.tensor([[101, 1037, 4937, 1012, 1037, 6556, 2491, 1012, 102]], device=device)
        batch["input_ids"] = tokens.expand(images, -1)
    return batch


def train(model: nn.Module, batch: dict[str, Any]) -> Implementation:
    """Return a training step without the optimizer; its result are the loss and the norm of all gradients."""

    def step() -> Tensor:
        torch.manual_seed(0)  # dropout and denoising are then the same in each call
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    def result(loss: Tensor) -> tuple[Tensor, ...]:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return loss, torch.stack([gradient.norm() for gradient in gradients]).norm()

    return Implementation(step, result)


def infer(model: nn.Module, batch: dict[str, Any]) -> Implementation:
    """Return the inference of a batch; its result are sums over the queries, whose order rounding can change."""

    def result(output: Any) -> tuple[Tensor, ...]:
        if "masks_queries_logits" in output:
            return output.class_queries_logits.softmax(-1).sum(1), output.masks_queries_logits.sigmoid().mean((1, 2, 3))
        return output.logits.sigmoid().sum(1), output.pred_boxes.sum(1)

    return Implementation(torch.inference_mode()(lambda: model(**batch)), result)
