"""Run by test_huggingface.py on two ranks: losses normalised over both, as transformers does it and as we do."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.loss.loss_utils import LOSS_MAPPING

from detr_fast.integrations.huggingface.criteria import FastLoss

NUM_CLASSES, NUM_QUERIES, GROUPS = 5, 12, 3
SIZES = ((11, 0), (0,))  # of the images on each rank
CONFIG = SimpleNamespace(
    num_labels=NUM_CLASSES,
    auxiliary_loss=False,
    eos_coefficient=0.1,
    focal_alpha=0.25,
    class_cost=1,
    bbox_cost=5,
    giou_cost=2,
    class_loss_coefficient=1,
    bbox_loss_coefficient=5,
    giou_loss_coefficient=2,
    group_detr=GROUPS,
)
# Logits a query, and by how much the first rank's box losses grow when the second has no targets: the first two divide
# the mean over the processes by their number again.
LOSSES = {
    "ForObjectDetection": (NUM_CLASSES + 1, 4),
    "DeformableDetrForObjectDetection": (NUM_CLASSES, 4),
    "LwDetrForObjectDetection": (NUM_CLASSES, 2),
}


def make_step(rank: int, num_logits: int) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """Arguments of a loss function."""
    generator = torch.Generator().manual_seed(rank)
    labels = [
        {
            "class_labels": torch.randint(NUM_CLASSES, (size,), generator=generator),
            "boxes": torch.rand(size, 4, generator=generator) * 0.4 + 0.2,
        }
        for size in SIZES[rank]
    ]
    shape = (len(labels), NUM_QUERIES * GROUPS)
    logits = torch.randn(*shape, num_logits, generator=generator)
    boxes = torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2
    return (logits, labels, "cpu", boxes, CONFIG), {"enc_outputs_class": logits, "enc_outputs_coord": boxes}


def main() -> None:
    rank = int(os.environ["RANK"])
    steps = {name: make_step(rank, num_logits) for name, (num_logits, _) in LOSSES.items()}
    alone = {name: LOSS_MAPPING[name](*args, **kwargs)[1] for name, (args, kwargs) in steps.items()}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for name, (args, kwargs) in steps.items():
        host = LOSS_MAPPING[name]
        accelerated = FastLoss(host, matcher=True, loss=True)
        (_, expected, _), (_, found, _) = (function(*args, **kwargs) for function in (host, accelerated))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(expected["loss_bbox"], alone[name]["loss_bbox"] * LOSSES[name][1])
        print(f"{name}: alike on rank {rank}")
    accelerator.end_training()  # a process that ends with the group's threads running may abort


if __name__ == "__main__":
    main()
