"""Assign detections to tracks frame by frame, with a gate on the IoU."""

import torch
from torch import Tensor

from detr_fast import ops

MIN_IOU = 0.3


def assign(tracks: Tensor, detections: Tensor) -> list[tuple[int, int]]:
    """Assign detections [N,4] to tracks [M,4], xyxy; pairs below the gate are left out.

    A pair below the gate costs more than all others together, so that as many pairs as possible pass the gate. A cost
    of +inf would forbid such a pair, but then a track without any candidate has no assignment, which is an error.
    """
    iou = ops.pairwise_box_iou(tracks, detections)
    penalty = float(min(iou.shape) + 1)
    track, detection = ops.linear_sum_assignment(torch.where(iou >= MIN_IOU, 1 - iou, penalty))
    return [(t, d) for t, d in zip(track.tolist(), detection.tolist(), strict=True) if iou[t, d] >= MIN_IOU]


def main(frames: int = 30) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[40.0, 60.0], [160.0, 80.0], [90.0, 160.0]])
    speed = torch.tensor([[3.0, 1.0], [-2.0, 1.5], [1.0, -2.0]])
    half = torch.tensor([18.0, 24.0])
    tracks: dict[int, Tensor] = {}
    for frame in range(frames):
        centers = centers + speed
        boxes = torch.cat((centers - half, centers + half), 1)
        found = boxes + torch.randn(boxes.shape, generator=generator)
        found = found[torch.randperm(len(found), generator=generator)]
        found = found[torch.rand(len(found), generator=generator) > 0.1]  # one detection in ten is missed

        names = list(tracks)
        last = torch.stack([tracks[name] for name in names]) if names else torch.zeros(0, 4)
        pairs = assign(last, found)
        for track, detection in pairs:
            tracks[names[track]] = found[detection]
        for detection in set(range(len(found))) - {detection for _, detection in pairs}:
            tracks[len(tracks)] = found[detection]
        if frame % 10 == 9:
            print(f"frame {frame}: {len(found)} detections, {len(pairs)} assigned, {len(tracks)} tracks")


if __name__ == "__main__":
    main()
