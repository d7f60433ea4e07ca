"""Faults that kernels find on the device: kept there in a status word, and raised when the host asks for them."""

from __future__ import annotations

import torch
from torch import Tensor

INVALID_COST = 0
INFEASIBLE_COST = 1
LABEL_OUT_OF_RANGE = 2
TOO_MANY_TARGETS = 3
INDEX_OUT_OF_RANGE = 4
REPEATED_INDEX = 5
NOT_A_TARGET = (1 << 20) - 1

_MESSAGES = {
    INVALID_COST: "the matching cost contains NaN or -inf; were the model's logits and boxes finite?",
    INFEASIBLE_COST: "the cost matrix is infeasible, too many pairs are forbidden by +inf",
    LABEL_OUT_OF_RANGE: "the label is out of range; build the model with more classes or map the labels "
    "to contiguous ones",
    TOO_MANY_TARGETS: "the image has more targets than the sizes allow that the solver was launched for",
    INDEX_OUT_OF_RANGE: "query_index is neither -1 nor the index of a query",
    REPEATED_INDEX: "two targets have the same query_index; match a query to at most one target",
}
_NO_FAULT = torch.iinfo(torch.int64).max
_words: dict[torch.device, Tensor] = {}


def status_word(device: torch.device) -> Tensor:
    """Return the word of ``device`` that kernels report to: int64 [1]; it lives as long as the process."""
    if device not in _words:
        _words[device] = torch.full((1,), _NO_FAULT, dtype=torch.int64, device=device)
    return _words[device]


def raise_faults() -> None:
    """Raise the first fault that kernels have reported since the last call. Synchronizes with the devices used.

    Kernels do not wait for the host, so a fault that shows on the device only, such as a matching cost that is not
    finite or a label out of range, is reported there. Call it where the training step synchronizes anyway.

    Raises:
        ValueError: a kernel was given input that it cannot compute; the message names layer, image, target and cause.
    """
    for word in _words.values():
        fault = int(word)
        if fault != _NO_FAULT:
            word.fill_(_NO_FAULT)
            raise ValueError(_describe(fault))


def _describe(fault: int) -> str:
    position, code = divmod(fault, 8)
    position, target = divmod(position, 1 << 20)
    position, image = divmod(position, 1 << 20)
    layer, group = divmod(position, 1 << 10)
    where = f"layer {layer}" + (f", group {group}" if group else "") + f", image {image}"
    if target != NOT_A_TARGET:
        where += f", target {target}"
    return f"{where}: {_MESSAGES[code]}"
