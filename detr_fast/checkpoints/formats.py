"""Conversion of state dicts between the parameter names of DETR implementations.

The format "original" has the names of facebookresearch/detr, which this library uses. There are two formats of Hugging
Face, for its DETR and its Table Transformer, whose backbones have the names of its own ResNet or of timm's, each in two
generations of names; and two formats of MMDetection, of its versions 2 and 3, the former with the heads before and
after 2.15.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detr_fast.checkpoints.state_dict import CheckpointError, shorten

logger = logging.getLogger(__name__)

Format = Literal["original", "huggingface", "huggingface_timm", "mmdet2", "mmdet3"]
StateDict = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # prefixes of names: of facebookresearch/detr, and of the format; {} is a number

# The rows of COCO's 80 classes among the 92 of facebookresearch/detr, which are raw category ids and no-object.
COCO_ROWS = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83)]
COCO_ROWS += [*range(84, 91), 91]
ABSENT = -1e4  # bias of a class that does not occur: its probability is 0 even in half precision

_CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
_DETECTOR = "detr."  # prefix of the detector's names beside a mask head
_MASK_HEAD = ("mask_head.", "bbox_attention.")
_BODY = "backbone.0.body."
_ENCODER, _DECODER = "transformer.encoder.layers.{}.", "transformer.decoder.layers.{}."


def _layers(encoder: str, decoder: str, names: Mapping[str, str]) -> Rules:
    """Build rules for the layers from names such as "encoder linear1" and the names of the format."""
    rules = []
    for name, renamed in names.items():
        part, original = name.split()
        prefixes = (_ENCODER, encoder) if part == "encoder" else (_DECODER, decoder)
        rules.append((prefixes[0] + original, prefixes[1] + renamed))
    return tuple(rules)


_HF_LAYERS = _layers(
    "model.encoder.layers.{}.",
    "model.decoder.layers.{}.",
    {
        "encoder self_attn": "self_attn",
        "encoder linear1": "fc1",
        "encoder linear2": "fc2",
        "encoder norm1": "self_attn_layer_norm",
        "encoder norm2": "final_layer_norm",
        "decoder self_attn": "self_attn",
        "decoder multihead_attn": "encoder_attn",
        "decoder linear1": "fc1",
        "decoder linear2": "fc2",
        "decoder norm1": "self_attn_layer_norm",
        "decoder norm2": "encoder_attn_layer_norm",
        "decoder norm3": "final_layer_norm",
    },
)
_HF_BODY = "model.backbone.conv_encoder.model."
_HF: Rules = (
    ("transformer.decoder.norm", "model.decoder.layernorm"),
    ("transformer.encoder.norm", "model.encoder.layernorm"),  # of Table Transformer, which is a DETR with pre_norm
    ("input_proj", "model.input_projection"),
    ("query_embed", "model.query_position_embeddings"),
    ("class_embed", "class_labels_classifier"),
    ("bbox_embed.layers.{}", "bbox_predictor.layers.{}"),
    *_HF_LAYERS,
)
_MMDET_PARTS = {
    "encoder norm1": "norms.0",
    "encoder norm2": "norms.1",
    "encoder self_attn": "{self_attn}.attn",
    "decoder norm1": "norms.0",
    "decoder norm2": "norms.1",
    "decoder norm3": "norms.2",
    "decoder self_attn": "{self_attn}.attn",
    "decoder multihead_attn": "{cross_attn}.attn",
}


class Depths(NamedTuple):
    """Numbers of linear layers, on which the names of MMDetection depend."""

    ffn: int = 2  # of each feed-forward network
    box: int = 3  # of the box head


def _mmdet(
    prefix: str, input_proj: str, query: str, self_attn: str, cross_attn: str, ffn: str, *, depths: Depths
) -> Rules:
    parts = {name: renamed.format(self_attn=self_attn, cross_attn=cross_attn) for name, renamed in _MMDET_PARTS.items()}
    # Each linear layer but the last is the first module of a sequence with its activation and dropout.
    for part in ("encoder", "decoder"):
        for number in range(1, depths.ffn + 1):
            parts[f"{part} linear{number}"] = f"{ffn}.layers.{number - 1}" + (".0" if number < depths.ffn else "")
    last = depths.box - 1
    box_head = [(f"bbox_embed.layers.{i}", f"bbox_head.reg_ffn.layers.{i}.0") for i in range(last - 1)]
    box_head.append((f"bbox_embed.layers.{last - 1}", f"bbox_head.reg_ffn.layers.{last - 1}"))
    box_head.append((f"bbox_embed.layers.{last}", "bbox_head.fc_reg"))
    return (
        (_BODY.rstrip("."), "backbone"),
        ("transformer.decoder.norm", f"{prefix}decoder.post_norm"),
        # The encoder's, which a DETR with pre_norm has; MMDetection 3 has no such option.
        *([("transformer.encoder.norm", f"{prefix}encoder.post_norm")] if prefix else []),
        ("input_proj", input_proj),
        ("query_embed", query),
        ("class_embed", "bbox_head.fc_cls"),
        *(box_head if depths.box > 2 else ()),
        *_layers(f"{prefix}encoder.layers.{{}}.", f"{prefix}decoder.layers.{{}}.", parts),
    )


_MMDET2 = "bbox_head.transformer.", "bbox_head.input_proj", "bbox_head.query_embedding"
_HUGGINGFACE: dict[str, Rules] = {
    "huggingface": (
        (_BODY + "conv1", _HF_BODY + "embedder.embedder.convolution"),
        (_BODY + "bn1", _HF_BODY + "embedder.embedder.normalization"),
        (_BODY + "layer{}.{}.conv{}", _HF_BODY + "encoder.stages.{}.layers.{}.layer.{}.convolution"),
        (_BODY + "layer{}.{}.bn{}", _HF_BODY + "encoder.stages.{}.layers.{}.layer.{}.normalization"),
        (_BODY + "layer{}.{}.downsample.0", _HF_BODY + "encoder.stages.{}.layers.{}.shortcut.convolution"),
        (_BODY + "layer{}.{}.downsample.1", _HF_BODY + "encoder.stages.{}.layers.{}.shortcut.normalization"),
        *_HF,
    ),
    "huggingface_timm": ((_BODY.rstrip("."), _HF_BODY.rstrip(".")), *_HF),
}
_MMDET = {
    "mmdet2": (*_MMDET2, "attentions.0", "attentions.1", "ffns.0"),
    "mmdet3": ("", "neck.convs.0.conv", "query_embedding", "self_attn", "cross_attn", "ffn"),
}
FORMATS = (*_HUGGINGFACE, *_MMDET)  # other than that of facebookresearch/detr

# Replacements that turn the names of other releases into those of the rules.
_NEWER_HF = (
    (r"^model\.backbone\.model\.", _HF_BODY),
    (r"_attn\.o_proj\.", "_attn.out_proj."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
)
_OLDER_MMDET2 = (
    (r"(layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(layers\.\d+)\.multihead_attn\.", r"\1.attentions.1."),
    (r"(layers\.\d+)\.ffn\.", r"\1.ffns.0."),
    (r"(encoder|decoder)\.norm\.", r"\1.post_norm."),
)
# Names of the layers that Depths counts, in facebookresearch/detr and in MMDetection.
_FFN = r"transformer\.decoder\.layers\.0\.linear(\d{1,6})\."
_BOX_HEAD = r"bbox_embed\.layers\.(\d{1,6})\."
_MMDET_FFN = r"(?:bbox_head\.transformer\.)?decoder\.layers\.0\.ffns?(?:\.0)?\.layers\.(\d{1,6})\."
_MMDET_BOX_HEAD = r"bbox_head\.reg_ffn\.layers\.(\d{1,6})\."
_ATTENTION = r"^(.*_attn)\.([qkv])_proj\.(weight|bias)$"


def detector_of(state_dict: StateDict) -> dict[str, Tensor]:
    """Return the detector of a DETR with a mask head, of facebookresearch/detr or Hugging Face, without the mask head.

    A state dict of another model is returned as it is. A warning says what is left out.

    Args:
        state_dict: The weights.
    """
    others = [name for name in state_dict if not name.startswith(_DETECTOR)]
    mask_head = [name for name in others if name.startswith(_MASK_HEAD)]
    if not mask_head or len(mask_head) < len(others) or len(others) == len(state_dict):
        return dict(state_dict)
    logger.warning(
        "the checkpoint is one of panoptic segmentation: loaded its detector, and left out the %d tensors of its mask "
        "head",
        len(mask_head),
    )
    return {name.removeprefix(_DETECTOR): tensor for name, tensor in state_dict.items() if name.startswith(_DETECTOR)}


def recognize_format(names: Iterable[str]) -> Format:
    """Recognize the format of a state dict by its parameter names.

    Args:
        names: The parameter names.

    Raises:
        CheckpointError: The format is unknown.
    """
    names = list(names)
    for found, pattern in (
        ("original", r"class_embed\.weight"),
        ("huggingface", r"model\.backbone\.(conv_encoder\.)?model\.embedder\."),
        ("huggingface_timm", r"model\.backbone\.(conv_encoder\.)?model\.conv1\."),
        ("mmdet2", r"bbox_head\.transformer\."),
        ("mmdet3", r"bbox_head\.fc_cls\."),
    ):
        if any(re.match(pattern, name) for name in names):
            return found  # type: ignore[return-value]
    raise CheckpointError(
        "the checkpoint is not a DETR of facebookresearch/detr, Hugging Face or MMDetection: there is no class head "
        f"(class_embed, class_labels_classifier or bbox_head.fc_cls) among its names {shorten(names)}"
    )


def to_original(state_dict: StateDict) -> dict[str, Tensor]:
    """Rename the state dict of a DETR from any format to the names of facebookresearch/detr.

    The mask head of a DETR for panoptic segmentation is left out, as :func:`detector_of` does.

    Args:
        state_dict: The weights in a format that :func:`recognize_format` knows.

    Returns:
        The weights by the names of facebookresearch/detr.

    Raises:
        CheckpointError: The format is unknown, or some names are; the message lists them.
    """
    state_dict = detector_of(state_dict)
    found = recognize_format(state_dict)
    # Frozen batch norms do not use the number of batches.
    given = {name: tensor for name, tensor in state_dict.items() if not name.endswith(".num_batches_tracked")}
    if found == "original":
        return given
    older = _NEWER_HF if found.startswith("huggingface") else _OLDER_MMDET2 if found == "mmdet2" else ()
    for pattern, replacement in older:
        given = {re.sub(pattern, replacement, name): tensor for name, tensor in given.items()}
    if found.startswith("huggingface"):
        given = _join_projections(given)
    depths = _depths(given, _MMDET_FFN, _MMDET_BOX_HEAD)
    renamed = {name: _rename(name, found, depths, from_original=False) for name in given}
    unknown = [name for name, original in renamed.items() if original is None]
    if unknown:
        raise CheckpointError(f"{len(unknown)} names are not part of a DETR ({found}): {shorten(unknown)}")
    return {str(renamed[name]): tensor for name, tensor in given.items()}


def from_original(state_dict: StateDict, to: Format) -> dict[str, Tensor]:
    """Rename the state dict of a DETR from the names of facebookresearch/detr to a format.

    The formats of Hugging Face are written with their older names, which all releases of transformers read.

    Args:
        state_dict: The weights by the names of facebookresearch/detr.
        to: The format.

    Returns:
        The weights by the names of the format.

    Raises:
        CheckpointError: The format has no equivalent of some names; the message lists them.
    """
    if to == "original":
        return dict(state_dict)
    depths = depths_of(state_dict)
    renamed = {name: _rename(name, to, depths, from_original=True) for name in state_dict}
    unknown = [name for name, converted in renamed.items() if converted is None]
    if unknown:
        raise CheckpointError(f"{len(unknown)} names have no equivalent in the format {to!r}: {shorten(unknown)}")
    given = {str(renamed[name]): tensor for name, tensor in state_dict.items()}
    return _split_projections(given) if to.startswith("huggingface") else given


def convert_classes(state_dict: StateDict, num_classes: int) -> dict[str, Tensor]:
    """Convert a class head between COCO's 91 raw category ids and its 80 contiguous classes.

    The rows of ids that COCO does not use are dropped, or filled so that they are never predicted.

    Args:
        state_dict: The weights by the names of facebookresearch/detr.
        num_classes: 80 or 91, without no-object.

    Raises:
        CheckpointError: The class head has another number of classes.
    """
    weight, bias = (state_dict[name] for name in _CLASS_HEAD)
    if bias.shape[0] not in (81, 92) or num_classes not in (80, 91):
        raise CheckpointError(
            f"only class heads of COCO's 80 contiguous classes and 91 raw ids can be converted into each other; this "
            f"one is for {bias.shape[0] - 1} classes, and {num_classes} were requested"
        )
    if bias.shape[0] == num_classes + 1:
        return dict(state_dict)
    if num_classes == 80:
        weight, bias = weight[COCO_ROWS].clone(), bias[COCO_ROWS].clone()
    else:
        rows = torch.tensor(COCO_ROWS)
        weight = weight.new_zeros(92, weight.shape[1]).index_copy_(0, rows, weight)
        bias = bias.new_full((92,), ABSENT).index_copy_(0, rows, bias)
    return {**state_dict, _CLASS_HEAD[0]: weight, _CLASS_HEAD[1]: bias}


def depths_of(names: Iterable[str]) -> Depths:
    """Count the linear layers of the feed-forward networks and of the box head.

    Where the numbers of the layers are not consecutive, the default is taken, so that a comparison with the names of
    that network lists what is missing.

    Args:
        names: Parameter names of facebookresearch/detr.
    """
    return _depths(names, _FFN, _BOX_HEAD)


def _count_layers(names: Iterable[str], pattern: str, first: int) -> int | None:
    """Count the numbers that the pattern finds; None unless they are consecutive from ``first``."""
    found = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    return len(found) if found and found == set(range(first, first + len(found))) else None


def _depths(names: Iterable[str], ffn: str, box_head: str) -> Depths:
    names, default = list(names), Depths()
    box = _count_layers(names, box_head, 0)
    if box is not None and box_head == _MMDET_BOX_HEAD:
        box += 1  # fc_reg
    return Depths(_count_layers(names, ffn, int(ffn == _FFN)) or default.ffn, box or default.box)


def _rename(name: str, format_name: str, depths: Depths, *, from_original: bool) -> str | None:
    for pattern, template, shift in _compiled(format_name, depths, from_original):
        if match := pattern.match(name):
            numbers = [int(number) for number in match.groups()[:-1]]
            return template.format(*(n + s for n, s in zip(numbers, shift, strict=True))) + str(match.groups()[-1])
    return None


@cache
def _compiled(format_name: str, depths: Depths, from_original: bool) -> list[tuple[re.Pattern[str], str, list[int]]]:
    compiled = []
    rules = _HUGGINGFACE.get(format_name) or _mmdet(*_MMDET[format_name], depths=depths)
    for original, renamed in rules:
        source, target = (original, renamed) if from_original else (renamed, original)
        pattern = re.escape(source).replace(r"\{\}", r"(\d{1,6})") + r"(\..*)"
        # facebookresearch/detr counts stages and the convolutions of a block from 1, Hugging Face from 0.
        step = [-1, 0, -1] if ".stages." in renamed else [0, 0, 0]
        shift = [s if from_original else -s for s in step][: source.count("{}")]
        compiled.append((re.compile(pattern), target, shift))
    return compiled


def _join_projections(state_dict: StateDict) -> dict[str, Tensor]:
    """Concatenate query, key and value projections, as in ``nn.MultiheadAttention``."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        match = re.match(_ATTENTION, name)
        if match is None:
            joined[name] = tensor
            continue
        prefix, _, kind = match.groups()
        parts = [f"{prefix}.{part}_proj.{kind}" for part in "qkv"]
        missing = [part for part in parts if part not in state_dict]
        if missing:
            raise CheckpointError(f"{len(missing)} missing from the checkpoint: {shorten(missing)}")
        shapes = [list(state_dict[part].shape) for part in parts]
        if not shapes[0] or any(shape != shapes[0] for shape in shapes):
            raise CheckpointError(f"the projections {shorten(parts)} have the shapes {shapes}")
        joined.setdefault(f"{prefix}.in_proj_{kind}", torch.cat([state_dict[part] for part in parts]))
    return joined


def _split_projections(state_dict: StateDict) -> dict[str, Tensor]:
    """Split what :func:`_join_projections` concatenates."""
    split: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        prefix, joined, kind = name.partition(".in_proj_")
        if not joined:
            split[name] = tensor
            continue
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{prefix}.{part}_proj.{kind}"] = rows.clone()
    return split
