"""From the network's outputs to detections in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.boxes import box_cxcywh_to_xyxy


def postprocess(
    logits: Tensor,  # [B,Q,C+1], no-object last
    boxes: Tensor,  # [B,Q,4], cxcywh in [0,1]
    sizes: Sequence[tuple[int, int]],  # (height, width) of each picture, in pixels
) -> list[dict[str, Tensor]]:
    """One detection per query, as DETR does it: its best class, without a limit on their number.

    Returns:
        For each image ``scores`` [Q] in [0,1], ``labels`` int64 [Q] and ``boxes`` [Q,4], xyxy in pixels, which may
        reach beyond the picture.

    Raises:
        ValueError: there are not as many sizes as images.
    """
    if len(sizes) != logits.shape[0]:
        raise ValueError(f"{logits.shape[0]} images need as many sizes, got {len(sizes)}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    probabilities = logits.to(dtype).softmax(-1)[..., :-1]
    scores, labels = probabilities.max(-1)  # [B,Q]
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=dtype).to(boxes.device)  # [B,4]
    corners = box_cxcywh_to_xyxy(boxes.to(dtype)) * scale[:, None]
    return [{"scores": s, "labels": label, "boxes": b} for s, label, b in zip(scores, labels, corners, strict=True)]
