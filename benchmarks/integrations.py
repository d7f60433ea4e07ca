"""Matcher and criterion of other people's detectors, from predictions to gradients, theirs and ours in turns.

``python -m benchmarks.integrations`` runs on one thread, compares the losses before it times anything, and writes
benchmarks/results/integrations.{json,md}: medians of the time, and by how much the process grows at most. RF-DETR is
there in the environment of ``make test-peers``: ``.venv/peers/bin/python -m benchmarks.integrations``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import importlib.util
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.conftest import coco_like_targets
from benchmarks.linear_sum_assignment import RESULTS, describe_machine, in_turns

COSTS = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "bbox_loss_coefficient": 5, "giou_loss_coefficient": 2}
DETR = {**COSTS, "num_labels": 91, "auxiliary_loss": True, "decoder_layers": 6, "eos_coefficient": 0.1}
RT_DETR = {
    "num_labels": 80,
    "auxiliary_loss": True,
    "eos_coefficient": 0.1,
    "use_focal_loss": True,
    "matcher_class_cost": 2,
    "matcher_bbox_cost": 5,
    "matcher_giou_cost": 2,
    "matcher_alpha": 0.25,
    "matcher_gamma": 2.0,
    "focal_loss_alpha": 0.75,
    "focal_loss_gamma": 2.0,
    "weight_loss_vfl": 1,
    "weight_loss_bbox": 5,
    "weight_loss_giou": 2,
}
FAMILIES = {
    "DETR": ("ForObjectDetection", DETR, 92),
    "Deformable DETR": ("DeformableDetrForObjectDetection", {**DETR, "focal_alpha": 0.25}, 91),
    "RT-DETR": ("RTDetrForObjectDetection", RT_DETR, 80),
    "RF-DETR": (None, {}, 91),
}

QUERIES, IMAGES = (100, 300), (2, 8, 16, 32)

Step = Callable[[], Tensor]


def predictions(layers: int, images: int, queries: int, num_logits: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    shape = (layers, images, queries)
    logits = torch.randn(*shape, num_logits, generator=generator)
    return logits, torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2


def labels(images: int, num_classes: int, name: str) -> list[dict[str, Tensor]]:
    targets = coco_like_targets(images, num_classes)
    split = zip(targets.labels.split(targets.sizes), targets.boxes.split(targets.sizes), strict=True)
    return [{name: of_image, "boxes": boxes} for of_image, boxes in split]


def declare_torchvision() -> None:
    """Let torchvision's wheel import beside a CPU build of torch: declare the operators that it asks for by name."""
    while importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            TORCHVISION.define(f"{missing[1]}(Tensor x) -> Tensor")
            for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[module]


TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")


def transformers_steps(family: str, images: int, queries: int) -> tuple[Step, Step]:
    """The step as transformers computes it, and as we do."""
    declare_torchvision()
    from transformers.loss.loss_utils import LOSS_MAPPING

    from detr_fast.integrations.huggingface.criteria import FastLoss

    name, settings, num_logits = FAMILIES[family]
    config = SimpleNamespace(**settings)
    logits, boxes = predictions(7 if family == "RT-DETR" else 6, images, queries, num_logits)
    truth = labels(images, config.num_labels, "class_labels")

    def step(function: Any) -> Tensor:
        leaves = logits.detach().requires_grad_(), boxes.detach().requires_grad_()
        if family == "RT-DETR":  # images first; the last layer stands for the encoder's
            (x, encoder_x), (y, encoder_y) = ((leaf[:6].transpose(0, 1), leaf[6]) for leaf in leaves)
            extra = {"enc_topk_logits": encoder_x, "enc_topk_bboxes": encoder_y}
            loss, *_ = function(x[:, -1], truth, "cpu", y[:, -1], config, x, y, **extra)
        else:
            x, y = leaves
            loss, *_ = function(x[-1], truth, "cpu", y[-1], config, x, y)
        loss.backward()
        return loss.detach()

    theirs = LOSS_MAPPING[name]
    ours = FastLoss(theirs, matcher=True, loss=True)
    return lambda: step(theirs), lambda: step(ours)


def rfdetr_steps(images: int, queries: int) -> tuple[Step, Step]:
    """The step as RF-DETR computes it, and as we do."""
    declare_torchvision()
    from detr_fast.integrations import rfdetr

    logits, boxes = predictions(5, images, queries, 91)
    truth = labels(images, 91, "labels")
    matcher = rfdetr.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
    losses = ["labels", "boxes", "cardinality"]
    criterion = rfdetr.SetCriterion(91, matcher, {}, 0.25, losses, ia_bce_loss=True)

    def step(prepare: Any) -> Tensor:
        prepare(criterion)
        leaves = zip(logits.detach().requires_grad_(), boxes.detach().requires_grad_(), strict=True)
        each = [{"pred_logits": x, "pred_boxes": y} for x, y in leaves]
        found = criterion(each[0] | {"aux_outputs": each[1:-1], "enc_outputs": each[-1]}, truth)
        loss = torch.stack([value for name, value in found.items() if name.startswith("loss")]).sum()
        loss.backward()
        return loss.detach()

    return lambda: step(rfdetr.restore), lambda: step(rfdetr.accelerate)


def library(family: str) -> str:
    return "rfdetr" if family == "RF-DETR" else "transformers"


def build_steps(family: str, images: int, queries: int) -> dict[str, Step]:
    """The step as the library computes it and as we do, the losses of both compared."""
    build = rfdetr_steps if family == "RF-DETR" else partial(transformers_steps, family)
    theirs, ours = build(images, queries)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=0)
    return {"theirs": theirs, "ours": ours}


def peak_memory(step: Step) -> int:
    """Bytes by which the process grows at most during a step, whoever allocates them (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what an earlier step freed would be used again, and not seen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def measure(family: str, images: int, queries: int, rounds: int) -> dict[str, dict[str, float]]:
    steps = build_steps(family, images, queries)
    times = in_turns(steps, rounds)
    return {
        who: {
            "median_ms": statistics.median(times[who]) * 1e3,
            "peak_mib": statistics.median(peak_memory(step) for _ in range(5)) / 2**20,
        }
        for who, step in steps.items()
    }


def as_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| | theirs, ms | ours, ms | theirs / ours | peak, theirs, MiB | peak, ours, MiB |", "|---|" + "---|" * 5]
    for name, row in results.items():
        (theirs, their_peak), (ours, own_peak) = (
            (row[who]["median_ms"], row[who]["peak_mib"]) for who in ("theirs", "ours")
        )
        lines.append(
            f"| {name} | {theirs:.3g} | {ours:.3g} | {theirs / ours:.3g} | {their_peak:.3g} | {own_peak:.3g} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    missing = {library(family) for family in FAMILIES if importlib.util.find_spec(library(family)) is None}
    if missing:
        print(f"left out, since not installed: {', '.join(sorted(missing))}", file=sys.stderr)
    results = {
        f"{family}, {images} images, {queries} queries": measure(family, images, queries, options.rounds)
        for family in FAMILIES
        if library(family) not in missing
        for queries in QUERIES
        for images in IMAGES
    }
    machine = describe_machine(["transformers", "rfdetr", "torch", "scipy"])
    (RESULTS / "integrations.json").write_text(json.dumps({"machine": machine, "steps": results}, indent=1) + "\n")
    (RESULTS / "integrations.md").write_text(as_table(results))
    print(as_table(results))


if __name__ == "__main__":
    main()
