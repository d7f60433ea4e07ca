"""A complete training step of DETR: eager, compiled and captured, and that of transformers.

A step is the forward pass in bf16, matching and losses in float32, the backward pass, clipping and AdamW. The learning
rate is 0, so that each step computes the same loss. On a CPU nothing is captured, and the model runs in float32.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inputs import NUM_CLASSES, as_dicts, coco_like_targets
from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation
from detr_fast import DETR, SetCriterion, Targets
from detr_fast.checkpoints.state_dict import save_state_dict
from detr_fast.models import convert_checkpoint
from detr_fast.training import CapturedStep
from detr_fast.training.device import fastest_memory_format
from detr_fast.training.step_graphs import WARM_UPS

SIZES = [("resnet50", 16, 800, 1333)]
SMALL = [("resnet18", 2, 64, 96)]
DEVICES = ("cuda",)
SMALL_TRANSFORMER = {"hidden_dim": 32, "num_encoder_layers": 1, "num_decoder_layers": 2, "dim_feedforward": 32}
IMAGES_PER_SECOND = 411  # 300 epochs of COCO's 118,287 training images in a day

Inputs = tuple[DETR, Tensor, Targets]
Losses = tuple[Tensor, Mapping[str, Tensor]]


def case(device: torch.device, backbone: str, images: int, height: int, width: int) -> Case:
    on_gpu = device.type == "cuda"

    def inputs() -> Inputs:
        torch.manual_seed(0)
        sizes = {} if backbone == "resnet50" else SMALL_TRANSFORMER
        model = DETR(NUM_CLASSES, backbone=backbone, dropout=0.0, norm_between_layers=True, **sizes).to(device)
        pixels = torch.randn(images, 3, height, width).to(device, memory_format=fastest_memory_format(device))
        return model, pixels, coco_like_targets(images).to(device)

    def detr_loss(model: nn.Module, pixels: Tensor, targets: Targets) -> Losses:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            output = model(pixels)
        return SetCriterion()(output.logits.float(), output.boxes.float(), targets)

    def transformers_loss(model: nn.Module, pixels: Tensor, labels: list[dict[str, Tensor]]) -> Losses:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            output = model(pixels, labels=labels)
        return output.loss, output.loss_dict

    def detr_step(inputs: Inputs, *, compiled: bool = False, captured: bool = False) -> Implementation:
        model, *batch = inputs
        model = copy.deepcopy(model).to(memory_format=fastest_memory_format(device))  # type: ignore[call-overload]
        if compiled:
            for part in (model.body, model.transformer):
                part.compile(backend="inductor" if on_gpu else "eager")
        return train(model, detr_loss, batch, capture=captured and on_gpu)

    def transformers(inputs: Inputs) -> Implementation:
        model, pixels, targets = inputs
        detector = import_peer("transformers").DetrForObjectDetection
        with tempfile.TemporaryDirectory() as directory:
            weights, target = Path(directory) / "detr.safetensors", Path(directory) / "transformers"
            save_state_dict(model.state_dict(), weights)
            convert_checkpoint(weights, target, "huggingface", norm_between_layers=True)
            peer = detector.from_pretrained(target, dropout=0.0).to(device).train()
        return train(peer, transformers_loss, [pixels, as_dicts(targets, "class_labels")], capture=False)

    return Case(
        f"{backbone}, {images} images, {height}x{width}",
        "captured",
        inputs,
        {
            "captured": lambda inputs: detr_step(inputs, captured=True),
            "compiled and captured": lambda inputs: detr_step(inputs, compiled=True, captured=True),
            "compiled": lambda inputs: detr_step(inputs, compiled=True),
            "eager": detr_step,
            "transformers": transformers,
        },
        lambda inputs: detr_loss(*inputs)[0].detach(),
        rtol=2e-2 if on_gpu else 1e-4,
        has_memory=True,
        goals=(Goal("us", round(images / IMAGES_PER_SECOND * 1e6)), Goal("ratio", 3, "transformers")),
    )


def train(model: nn.Module, loss: Callable[..., Losses], batch: list[Any], *, capture: bool) -> Implementation:
    """Return a training step on a batch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True, capturable=capture)
    step = CapturedStep(model, loss, optimizer, clip_norm=0.1, capture=capture)
    if not capture:
        return Implementation(lambda: step(*batch)["loss"])
    for _ in range(WARM_UPS):
        step(*batch)
    before = _reserved()
    step(*batch)  # is captured, and replayed
    return Implementation(lambda: step(*batch)["loss"], held=_reserved() - before)


def _reserved() -> int:
    """Return the bytes of the GPU that PyTorch has reserved and needs."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()
