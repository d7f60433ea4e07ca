"""What steps on a fake GPU do that no CUDA graph may contain, as JSON; run in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.launches import detr_loss, record_step
from benchmarks.peers import declare_torchvision
from detr_fast import DETR, SetCriterion, Targets

declare_torchvision()


def build(**options: Any) -> DETR:
    sizes = {"hidden_dim": 16, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 2, "dim_feedforward": 16}
    return DETR(3, num_queries=5, **({"backbone": "resnet_tiny"} | sizes | options))


def preset_loss(name: str) -> Callable[..., Any]:
    criterion = SetCriterion.preset(name)

    def loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> Any:
        output = model(images, mask)
        return criterion(output.logits, output.boxes, targets)

    return loss


def reading_loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> Any:
    total, terms = detr_loss(model, images, mask, targets)
    return total * float(total.detach()), terms


def copying_loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> Any:
    total, terms = detr_loss(model, images, mask, targets)
    return total * torch.tensor([1.0, 2.0], device="cpu").to("cuda").sum(), terms


def creating_loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> Any:
    total, terms = detr_loss(model, images, mask, targets)
    return total * torch.tensor(2.0, device="cuda"), terms


def build_transformers() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    from detr_fast.integrations.huggingface import accelerate

    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage4"],
    )
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5, "num_labels": 3}
    config = DetrConfig(
        backbone_config=backbone, backbone=None, use_timm_backbone=False, auxiliary_loss=True, **layers, **sizes
    )
    return accelerate(DetrForObjectDetection(config))


def transformers_loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> Any:
    hidden = model.model(images, pixel_mask=(~mask).long()).intermediate_hidden_states
    return SetCriterion()(model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid(), targets)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any]]] = {
    "detr": (build, detr_loss),
    "resnet50": (lambda: build(backbone="resnet50"), detr_loss),
    "learned positions": (lambda: build(position_encoding="learned", pre_norm=True), detr_loss),
    "mmdet2": (build, preset_loss("mmdet2")),
    "mmdet3": (build, preset_loss("mmdet3")),
    "deformable": (build, preset_loss("deformable")),
    "rt_detr": (build, preset_loss("rt_detr")),
    "lw_detr": (build, preset_loss("lw_detr")),
    "transformers": (build_transformers, transformers_loss),
    "reads": (build, reading_loss),
    "copies": (build, copying_loss),
    "creates": (build, creating_loss),
}


def describe(name: str) -> dict[str, Any]:
    model, loss = CASES[name]
    try:
        found = record_step(model, 2, 64, 96, loss, fused=True)
    except Exception as error:
        return {"forbidden": [f"{type(error).__name__}: {error}"]}
    return {
        "forbidden": found.graph.forbidden,
        "launched": len(found.graph.launched),
        "outside": found.outside.launched,
        "adamw": found.adamw,
    }


if __name__ == "__main__":
    print(json.dumps({name: describe(name) for name in CASES}))
