"""State dicts of other people's DETRs: recognised, renamed to the original's keys, and back.

The originals are those of facebookresearch/detr, which are this library's own. Hugging Face's come in two spellings of
the backbone (its own ResNet's and timm's) and two generations of names, MMDetection's from its versions 2 and 3, the
former with the heads of before and after 2.15.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from detr_fast.checkpoints.state_dict import CheckpointError, shorten

Format = Literal["original", "huggingface", "huggingface_timm", "mmdet2", "mmdet3"]
StateDict = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # the original's name and theirs; {} is a number

# COCO's 80 classes among the original's 92 rows, which go by raw category id; the last is no-object.
COCO_ROWS = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83)]
COCO_ROWS += [*range(84, 91), 91]
ABSENT = -1e4  # bias of a class that never occurs: its probability is 0, in half precision too

_CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
_BODY = "backbone.0.body."
_ENCODER, _DECODER = "transformer.encoder.layers.{}.", "transformer.decoder.layers.{}."


def _layers(encoder: str, decoder: str, names: Mapping[str, str]) -> Rules:
    """Rules of the transformer's layers; names as "encoder linear1" to theirs."""
    rules = []
    for name, theirs in names.items():
        part, own = name.split()
        prefixes = (_ENCODER, encoder) if part == "encoder" else (_DECODER, decoder)
        rules.append((prefixes[0] + own, prefixes[1] + theirs))
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
    ("input_proj", "model.input_projection"),
    ("query_embed", "model.query_position_embeddings"),
    ("class_embed", "class_labels_classifier"),
    ("bbox_embed.layers.{}", "bbox_predictor.layers.{}"),
    *_HF_LAYERS,
)
_MMDET_PARTS = {
    "encoder linear1": "{ffn}.layers.0.0",
    "encoder linear2": "{ffn}.layers.1",
    "encoder norm1": "norms.0",
    "encoder norm2": "norms.1",
    "encoder self_attn": "{self_attn}.attn",
    "decoder linear1": "{ffn}.layers.0.0",
    "decoder linear2": "{ffn}.layers.1",
    "decoder norm1": "norms.0",
    "decoder norm2": "norms.1",
    "decoder norm3": "norms.2",
    "decoder self_attn": "{self_attn}.attn",
    "decoder multihead_attn": "{cross_attn}.attn",
}


def _mmdet(prefix: str, input_proj: str, query: str, self_attn: str, cross_attn: str, ffn: str) -> Rules:
    parts = {
        name: theirs.format(self_attn=self_attn, cross_attn=cross_attn, ffn=ffn)
        for name, theirs in _MMDET_PARTS.items()
    }
    return (
        (_BODY.rstrip("."), "backbone"),
        ("transformer.decoder.norm", f"{prefix}decoder.post_norm"),
        ("input_proj", input_proj),
        ("query_embed", query),
        ("class_embed", "bbox_head.fc_cls"),
        ("bbox_embed.layers.0", "bbox_head.reg_ffn.layers.0.0"),
        ("bbox_embed.layers.1", "bbox_head.reg_ffn.layers.1"),
        ("bbox_embed.layers.2", "bbox_head.fc_reg"),
        *_layers(f"{prefix}encoder.layers.{{}}.", f"{prefix}decoder.layers.{{}}.", parts),
    )


_MMDET2 = "bbox_head.transformer.", "bbox_head.input_proj", "bbox_head.query_embedding"
RULES: dict[str, Rules] = {
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
    "mmdet2": _mmdet(*_MMDET2, "attentions.0", "attentions.1", "ffns.0"),
    "mmdet3": _mmdet("", "neck.convs.0.conv", "query_embedding", "self_attn", "cross_attn", "ffn"),
}
# Names that changed from one release to another, brought to the ones in RULES.
_NEWER_HF = (
    (r"^model\.backbone\.model\.", _HF_BODY),
    (r"_attn\.o_proj\.", "_attn.out_proj."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
)
_OLDER_MMDET2 = (
    (r"(layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(layers\.\d+)\.multihead_attn\.", r"\1.attentions.1."),
    (r"(layers\.\d+)\.ffn\.", r"\1.ffns.0."),
    (r"decoder\.norm\.", "decoder.post_norm."),
)
_ATTENTION = r"^(.*_attn)\.([qkv])_proj\.(weight|bias)$"


def recognise(names: Iterable[str]) -> Format:
    """Whose DETR has parameters of these names.

    Raises:
        CheckpointError: nobody's that is known.
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
        "the checkpoint is no DETR of the original, of Hugging Face or of MMDetection: there is no class head "
        f"(class_embed, class_labels_classifier or bbox_head.fc_cls) among its names {shorten(names)}"
    )


def to_original(state_dict: StateDict) -> dict[str, Tensor]:
    """A DETR's state dict with the original's names, whoever's it was.

    Raises:
        CheckpointError: nobody's that is known, or names are left over; the message lists them.
    """
    found = recognise(state_dict)
    # Counters of batch norms that are frozen say nothing.
    given = {name: tensor for name, tensor in state_dict.items() if not name.endswith(".num_batches_tracked")}
    if found == "original":
        return given
    older = _NEWER_HF if found.startswith("huggingface") else _OLDER_MMDET2 if found == "mmdet2" else ()
    for pattern, replacement in older:
        given = {re.sub(pattern, replacement, name): tensor for name, tensor in given.items()}
    if found.startswith("huggingface"):
        given = _join_projections(given)
    renamed = {name: _rename(name, found, to_theirs=False) for name in given}
    left = [name for name, own in renamed.items() if own is None]
    if left:
        raise CheckpointError(f"{len(left)} names have no place in a DETR ({found}): {shorten(left)}")
    return {str(renamed[name]): tensor for name, tensor in given.items()}


def from_original(state_dict: StateDict, to: Format) -> dict[str, Tensor]:
    """The opposite of :func:`to_original`; Hugging Face's older names, which all its releases read.

    Raises:
        CheckpointError: the format has no place for some of the names; the message lists them.
    """
    if to == "original":
        return dict(state_dict)
    renamed = {name: _rename(name, to, to_theirs=True) for name in state_dict}
    left = [name for name, theirs in renamed.items() if theirs is None]
    if left:
        raise CheckpointError(f"{len(left)} names have no place in the format {to!r}: {shorten(left)}")
    given = {str(renamed[name]): tensor for name, tensor in state_dict.items()}
    return _split_projections(given) if to.startswith("huggingface") else given


def convert_classes(state_dict: StateDict, num_classes: int) -> dict[str, Tensor]:
    """Turn a class head for COCO's 91 raw category ids into one for its 80 contiguous classes, or back.

    Rows for ids that COCO does not use are dropped, or filled such that they are never predicted.

    Args:
        state_dict: with the original's names.
        num_classes: 80 or 91, without no-object.

    Raises:
        CheckpointError: the head is for neither number of classes.
    """
    weight, bias = (state_dict[name] for name in _CLASS_HEAD)
    if bias.shape[0] not in (81, 92) or num_classes not in (80, 91):
        raise CheckpointError(
            f"only heads of COCO's 80 contiguous classes or 91 raw ids convert into each other; this one is for "
            f"{bias.shape[0] - 1} classes, and {num_classes} are asked for"
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


def _rename(name: str, format_name: str, *, to_theirs: bool) -> str | None:
    for pattern, template, shift in _compiled(format_name, to_theirs):
        if match := pattern.match(name):
            numbers = [int(number) for number in match.groups()[:-1]]
            return template.format(*(n + s for n, s in zip(numbers, shift, strict=True))) + str(match.groups()[-1])
    return None


@cache
def _compiled(format_name: str, to_theirs: bool) -> list[tuple[re.Pattern[str], str, list[int]]]:
    compiled = []
    for own, theirs in RULES[format_name]:
        source, target = (own, theirs) if to_theirs else (theirs, own)
        pattern = re.escape(source).replace(r"\{\}", r"(\d+)") + r"(\..*)"
        # The original counts stages and convolutions of a block from 1, Hugging Face from 0; both count blocks from 0.
        step = [-1, 0, -1] if ".stages." in theirs else [0, 0, 0]
        shift = [s if to_theirs else -s for s in step][: source.count("{}")]
        compiled.append((re.compile(pattern), target, shift))
    return compiled


def _join_projections(state_dict: StateDict) -> dict[str, Tensor]:
    """Query, key and value projections one below the other, as in ``nn.MultiheadAttention``."""
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
        joined.setdefault(f"{prefix}.in_proj_{kind}", torch.cat([state_dict[part] for part in parts]))
    return joined


def _split_projections(state_dict: StateDict) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        prefix, joined, kind = name.partition(".in_proj_")
        if not joined:
            split[name] = tensor
            continue
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{prefix}.{part}_proj.{kind}"] = rows.clone()
    return split
