"""What the comparisons of all parts of RF-DETR share."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from detr_fast.integrations.evidence import NUM_QUERIES, SIZES, random_boxes, random_targets
from detr_fast.integrations.rfdetr.outputs import Output

NUM_GROUPS = 2


def identity(module: nn.Module) -> tuple[Hashable, ...]:
    """Return the type of a module and its plain settings, which decide what the module computes."""
    settings = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float))}
    settings.pop("training", None)
    return (type(module).forward, *sorted(settings.items()))


def random_step(num_classes: int) -> tuple[Output, list[Output], dict[str, Tensor]]:
    """Return the outputs of all layers, targets, and the tensors that require gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, len(SIZES), NUM_GROUPS * NUM_QUERIES)
    leaves = {
        "pred_logits": torch.randn(*shape, num_classes, generator=generator).requires_grad_(),
        "pred_boxes": random_boxes(*shape, generator=generator).requires_grad_(),
    }
    layers = [dict(zip(leaves, layer, strict=True)) for layer in zip(*leaves.values(), strict=True)]
    outputs = layers[0] | {"aux_outputs": layers[1:-1], "enc_outputs": layers[-1]}
    return outputs, random_targets(SIZES, num_classes, generator), leaves
