"""What went wrong on the device: one word there, raised with its cause when the host next asks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INVALID_COST = 0
INFEASIBLE_COST = 1
LABEL_OUT_OF_RANGE = 2
TOO_MANY_TARGETS = 3
NOT_A_TARGET = (1 << 20) - 1

_MESSAGES = {
    INVALID_COST: "the matching cost holds NaN or -inf; were the model's logits and boxes finite?",
    INFEASIBLE_COST: "the cost matrix is infeasible",
    LABEL_OUT_OF_RANGE: "the label is out of range; build the model with more classes or map the labels "
    "to contiguous ones",
    TOO_MANY_TARGETS: "there are more targets than the sizes allow that the solver was launched for",
}
_NO_FAULT = torch.iinfo(torch.int64).max
_words: dict[torch.device, Tensor] = {}


def status_word(device: torch.device) -> Tensor:
    """The word of ``device`` that kernels report to: int64 [1]; it lives as long as the process."""
    if device not in _words:
        _words[device] = torch.full((1,), _NO_FAULT, dtype=torch.int64, device=device)
    return _words[device]


@triton.jit
def report_fault(status_ptr, layer, group, image, target, CODE: tl.constexpr):
    """Keep the fault that comes first by layer, group, image and target, whichever program is quicker."""
    place = ((layer.to(tl.int64) * 1024 + group) * 1048576 + image) * 1048576 + target
    tl.atomic_min(status_ptr, place * 4 + CODE, sem="relaxed")


def raise_faults() -> None:
    """Raise what kernels have reported since the last call. Waits for the devices that ran one.

    Raises:
        ValueError: a kernel met input that it could not work on; the message names the place and the cause.
    """
    for word in _words.values():
        fault = int(word)
        if fault != _NO_FAULT:
            word.fill_(_NO_FAULT)
            raise ValueError(_describe(fault))


def _describe(fault: int) -> str:
    place, code = divmod(fault, 4)
    place, target = divmod(place, 1 << 20)
    place, image = divmod(place, 1 << 20)
    layer, group = divmod(place, 1 << 10)
    where = f"layer {layer}" + (f", group {group}" if group else "") + f", image {image}"
    if target != NOT_A_TARGET:
        where += f", target {target}"
    return f"{where}: {_MESSAGES[code]}"
