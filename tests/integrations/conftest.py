"""Small detectors of transformers with random weights, and batches for them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import declare_torchvision

declare_torchvision()  # transformers, timm, RF-DETR and MMDetection import it where it is installed

NUM_CLASSES = 5
SIZES = (3, 0, 12)  # an image without targets, and one with more targets than queries
NUM_QUERIES = 10
PYRAMID = ("stage2", "stage3", "stage4")


def _without_name(config_type: type) -> dict[str, Any]:
    """The arguments of a configuration by which its backbone has no name, in early releases of transformers 5."""
    named = "backbone" in signature(config_type).parameters
    return {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False} if named else {}


def _resnet(kind: str = "ResNetConfig", stages: tuple[str, ...] = ("stage4",)) -> Any:
    import transformers

    return getattr(transformers, kind)(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def _swin(stages: tuple[str, ...]) -> Any:
    from transformers import SwinConfig

    heads = [1, 1, 2, 2]
    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=heads, window_size=4, out_features=list(stages)
    )


def _hgnet(stages: tuple[str, ...] = PYRAMID) -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        embedding_size=8,
        depths=[1] * 4,
        hidden_sizes=[8, 16, 16, 32],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[8, 16, 16, 32],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        out_features=list(stages),
    )


DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": NUM_QUERIES,
    "num_labels": NUM_CLASSES,
    "auxiliary_loss": True,
    "dropout": 0.0,
}
RT_DETR = {name: value for name, value in DETR.items() if name not in ("encoder_layers", "auxiliary_loss")} | {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 32],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 20,
}
GROUPED = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "num_queries": NUM_QUERIES,
    "num_labels": NUM_CLASSES,
    "group_detr": 3,
    "dropout": 0.0,
    "auxiliary_loss": True,
    "projector_scale_factors": [1.0],
}
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64}


def _configure(name: str) -> tuple[str, dict[str, Any]]:
    """The names of a family's model and the arguments of its configuration."""
    import transformers

    if name in ("Detr", "ConditionalDetr", "TableTransformer"):
        return f"{name}ForObjectDetection", DETR | {"backbone_config": _resnet()}
    if name == "DabDetr":
        width = {"hidden_size": 32, "backbone_config": _resnet()}
        return "DabDetrForObjectDetection", {k: v for k, v in DETR.items() if k != "d_model"} | width
    if name == "DeformableDetr":
        return "DeformableDetrForObjectDetection", DETR | {"backbone_config": _resnet(stages=PYRAMID)}
    if name in ("DetrSegmentation", "ConditionalDetrSegmentation"):
        stages = _resnet(stages=("stage1", *PYRAMID))
        wide = {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "backbone_config": stages}
        return name.replace("Segmentation", "ForSegmentation"), DETR | wide
    if name == "Yolos":
        vit = {"image_size": [64, 96], "intermediate_size": 32, "num_hidden_layers": 2, "num_labels": NUM_CLASSES}
        return "YolosForObjectDetection", VIT | vit | {"num_detection_tokens": NUM_QUERIES}
    if name in ("RTDetr", "RTDetrV2"):
        return f"{name}ForObjectDetection", RT_DETR | {"backbone_config": _resnet("RTDetrResNetConfig", PYRAMID)}
    if name in ("DFine", "Deimv2"):
        return f"{name}ForObjectDetection", RT_DETR | {"backbone_config": _hgnet()}
    if name == "LwDetr":
        windows = {"patch_size": 16, "out_indices": [0, 2], "window_block_indices": [1], "num_windows": 4}
        vit = transformers.LwDetrViTConfig(**VIT, **windows, pretrain_image_size=64)
        return "LwDetrForObjectDetection", GROUPED | {"backbone_config": vit}
    if name in ("RfDetr", "RfDetrSegmentation"):
        vit = transformers.RfDetrDinov2Config(
            **VIT, patch_size=8, out_features=["stage1", "stage3"], num_windows=2, mlp_ratio=1
        )
        task = "InstanceSegmentation" if name.endswith("Segmentation") else "ObjectDetection"
        return f"RfDetrFor{task}", GROUPED | {"backbone_config": vit}
    if name in ("GroundingDino", "MMGroundingDino"):
        text = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, max_position_embeddings=32
        )
        spoken = {"backbone_config": _swin(PYRAMID), "text_config": text, "max_text_len": 16}
        return f"{name}ForObjectDetection", {k: v for k, v in DETR.items() if k != "num_labels"} | spoken
    if name == "OmDetTurbo":
        text = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        text |= {"vocab_size": 50, "max_position_embeddings": 16, "projection_dim": 64}
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        of_text = ("text_projection_in_dim", "text_projection_out_dim", "class_embed_dim", "task_encoder_hidden_dim")
        of_images = ("encoder_hidden_dim", "encoder_dim_feedforward", "decoder_hidden_dim", "decoder_dim_feedforward")
        return "OmDetTurboForObjectDetection", {
            "backbone_config": _swin(PYRAMID),
            "text_config": transformers.CLIPTextConfig(**text, **special),
            **dict.fromkeys(of_text, 64),
            **dict.fromkeys(of_images, 32),
            "vision_features_channels": [32, 32, 32],
            "encoder_in_channels": [16, 32, 64],
            "apply_layernorm_after_vision_backbone": False,
            **dict.fromkeys(("encoder_attention_heads", "decoder_num_heads"), 4),
            "decoder_num_layers": 2,
            "num_queries": NUM_QUERIES,
        }
    if name.startswith("PPDocLayout"):
        size = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 1}
        order = {"coordinate_size": 6, "shape_size": 4, "num_classes": NUM_CLASSES, "relation_bias_embed_dim": 4}
        own: dict[str, dict[str, Any]] = {
            "PPDocLayoutV2": {
                "reading_order_config": size | order,
                "class_thresholds": [0.5] * NUM_CLASSES,
                "class_order": list(range(NUM_CLASSES)),
            },
            "PPDocLayoutV3": {"mask_feature_channels": [32, 32], "x4_feat_dim": 8, "num_prototypes": 8},
            "PPDocLayoutV4": {"hidden_size": 32},
        }
        stages = ("stage1", *PYRAMID) if name == "PPDocLayoutV3" else PYRAMID
        return f"{name}ForObjectDetection", RT_DETR | own[name] | {
            "backbone_config": _hgnet(stages),
            "num_denoising": 0,
        }
    if name == "OneFormer":
        widths = ("conv_dim", "mask_dim", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
        return "OneFormerForUniversalSegmentation", {
            "backbone_config": _swin(("stage1", *PYRAMID)),
            **dict.fromkeys((*widths, "text_encoder_width"), 32),
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "num_queries": NUM_QUERIES,
            "num_labels": NUM_CLASSES,
            "dropout": 0.0,
            "task_seq_len": 8,
        }
    if name == "MaskFormer":
        decoder = transformers.DetrConfig(**DETR, backbone_config=_resnet(), **_without_name(transformers.DetrConfig))
        masks = {"fpn_feature_size": 32, "mask_feature_size": 32, "decoder_config": decoder, "num_labels": NUM_CLASSES}
        return "MaskFormerForInstanceSegmentation", {"backbone_config": _swin(("stage1", *PYRAMID))} | masks
    assert name == "Mask2Former"
    return "Mask2FormerForUniversalSegmentation", {
        "backbone_config": _swin(("stage1", *PYRAMID)),
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim"), 32),
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 4,
        "num_queries": NUM_QUERIES,
        "num_labels": NUM_CLASSES,
        "train_num_points": 64,
    }


FAMILIES = (
    "Detr",
    "ConditionalDetr",
    "DabDetr",
    "DeformableDetr",
    "TableTransformer",
    "Yolos",
    "RTDetr",
    "RTDetrV2",
    "DFine",
    "LwDetr",
    "RfDetr",
    "GroundingDino",
    "MMGroundingDino",
    "Deimv2",
    "DetrSegmentation",
    "ConditionalDetrSegmentation",
    "RfDetrSegmentation",
    "Mask2Former",
    "MaskFormer",
)


SQUARE = ("LwDetr", "RfDetr", "GroundingDino", "MMGroundingDino", "Mask2Former", "MaskFormer")  # take square images
SQUARE += ("OneFormer", "OmDetTurbo")


@pytest.fixture(scope="module", params=["huggingface", "huggingface_timm"])
def backbone(request, import_or_skip):
    """The name of the format in which the backbone's weights are."""
    if request.param == "huggingface_timm":
        import_or_skip("timm")
    return request.param


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def build_model() -> Callable[..., nn.Module]:
    """Builds a family's model, always with the same random weights, in training mode."""

    def build(name: str, **overrides: Any) -> nn.Module:
        import transformers

        try:
            model_type, arguments = _configure(name)
            config_type = getattr(transformers, model_type).config_class
        except AttributeError as error:
            pytest.skip(f"transformers {transformers.__version__} does not have the model: {error}")
        arguments |= _without_name(config_type)
        torch.manual_seed(0)
        return getattr(transformers, model_type)(config_type(**(arguments | overrides))).train()

    return build


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, Any]]:
    """A batch as a family's model takes it: three images, the second partly padding and without targets."""

    def make(name: str, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        width = 64 if name.startswith(SQUARE) else 96
        num_classes = 3 if name.endswith("GroundingDino") else NUM_CLASSES
        images = torch.randn(len(sizes), 3, 64, width, generator=generator)
        mask = torch.ones(len(sizes), 64, width, dtype=torch.int64)
        mask[1:2, :, 48:] = 0
        labels = [_labels(n, num_classes, generator) for n in sizes]
        batch: dict[str, Any] = {"pixel_values": images, "pixel_mask": mask, "labels": labels}
        if name == "Yolos":
            del batch["pixel_mask"]
        if name.endswith("GroundingDino"):  # three phrases, each ended by a full stop
            tokens = torch.tensor([[101, 7, 1012, 8, 9, 1012, 10, 1012, 102]]).expand(len(sizes), -1)
            batch |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if name == "OmDetTurbo":  # one class for each image
            tokens = torch.arange(3, 3 + 8 * len(sizes)).view(len(sizes), 8)
            for text in ("classes", "tasks"):
                batch |= {f"{text}_input_ids": tokens, f"{text}_attention_mask": torch.ones_like(tokens).bool()}
            batch["classes_structure"] = torch.ones(len(sizes), dtype=torch.int64)
        if name == "OneFormer":
            batch["task_inputs"] = torch.ones(len(sizes), 8)
        if name in ("OmDetTurbo", "OneFormer"):
            del batch["labels"]
        masks = [(torch.rand(n, 64, width, generator=generator) > 0.5).float() for n in sizes]
        if name.endswith("Segmentation"):
            for image, image_masks in zip(labels, masks, strict=True):
                image["masks"] = image_masks
        if name in ("Mask2Former", "MaskFormer"):
            batch |= {"class_labels": [image["class_labels"] for image in batch.pop("labels")], "mask_labels": masks}
        return batch

    return make


def _labels(count: int, num_classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "class_labels": torch.randint(num_classes, (count,), generator=generator),
        "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
    }


@pytest.fixture(scope="session")
def import_or_skip() -> Callable[[str], Any]:
    """Imports a library that is not in the extra 'test', or skips, saying how to have it."""

    def load(name: str) -> Any:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; `make test-peers` installs it and runs these tests")
        return importlib.import_module(name)

    return load
