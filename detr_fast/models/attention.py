"""The attention weights of the transformer, as maps over an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from detr_fast.images import to_tensor
from detr_fast.models.inference import ImageInput, as_sequence, evaluating, resize, to_pil

if TYPE_CHECKING:
    from detr_fast.models.detr import DETR


def attention_maps(
    model: DETR, images: ImageInput | Sequence[ImageInput], *, layer: int, part: Literal["encoder", "decoder"]
) -> list[Tensor]:
    """Compute what :meth:`detr_fast.DETR.attention` returns; its arguments and errors are those of the method."""
    if part not in ("encoder", "decoder"):
        raise ValueError(f"part must be 'encoder' or 'decoder', got {part!r}")
    layers: Any = getattr(model.transformer, part).layers
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"the {part} has {len(layers)} layers, so that there is no layer {layer}")
    module = layers[layer].self_attn if part == "encoder" else layers[layer].multihead_attn
    found: list[Tensor] = []  # weights, and the features that tell their height and width
    hooks = [
        model.input_proj.register_forward_hook(lambda module, args, output: found.append(output)),
        module.register_forward_pre_hook(lambda module, args: found.append(module.weights(args[0], args[1]))),
    ]
    parameter = next(model.parameters())  # decides the device and the dtype of the inputs
    maps = []
    try:
        with evaluating(model), torch.inference_mode():
            for index, image in enumerate(as_sequence(images)):
                found.clear()
                resized = resize(to_pil(image, index), model.image_size, model.max_image_size)
                model(to_tensor(resized)[None].to(parameter))
                features, weights = found
                cells = features.shape[-2:]  # (h, w)
                maps.append(weights[0].unflatten(-1, cells).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return [weights.unflatten(1, weights.shape[-2:]) for weights in maps] if part == "encoder" else maps
