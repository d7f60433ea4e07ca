"""Assign detections to tracks frame by frame, with a gate on the IoU."""

import torch
from torch import Tensor

from detr_fast import ops

MIN_IOU = 0.3


def assign(tracks: Tensor, detections: Tensor) -> list[tuple[int, int]]:
    """Assign detections [N,4] to tracks [M,4], xyxy; a track stays unassigned rather than take a worse IoU."""
    distance = 1 - ops.pairwise_box_iou(tracks, detections)
    track, detection = ops.linear_sum_assignment(distance, cost_limit=1 - MIN_IOU)
    return list(zip(track.tolist(), detection.tolist(), strict=True))


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
