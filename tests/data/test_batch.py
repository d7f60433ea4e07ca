from __future__ import annotations

import torch

from detr_fast.data import Sample, collate


def _sample(identifier: int, height: int, width: int, count: int) -> Sample:
    generator = torch.Generator().manual_seed(identifier)
    return Sample(
        image=torch.randn(3, height, width, generator=generator),
        labels=torch.arange(count),
        boxes=torch.rand(count, 4, generator=generator),
        image_id=identifier,
        original_size=(2 * height, 2 * width),
    )


def test_collate_pads_and_packs() -> None:
    first, second = _sample(5, 4, 9, 2), _sample(3, 6, 7, 0)
    batch = collate([first, None, second])
    assert len(batch) == 2
    assert batch.images.shape == (2, 3, 6, 9)
    assert torch.equal(batch.images[0, :, :4], first.image)
    assert torch.equal(batch.images[1, :, :, :7], second.image)
    assert (~batch.mask).sum((1, 2)).tolist() == [36, 42]
    assert batch.padding is batch.mask
    assert collate([first, first]).padding is None
    assert batch.targets.sizes == [2, 0]
    assert torch.equal(batch.targets.boxes, first.boxes)
    assert (batch.image_ids, batch.original_sizes) == ([5, 3], [(8, 18), (12, 14)])


def test_collate_of_nothing() -> None:
    batch = collate([None, None])
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, 0, 0)
    assert (batch.targets.num_images, batch.targets.num_targets) == (0, 0)


def test_to_moves_every_tensor() -> None:
    batch = collate([_sample(1, 4, 4, 3)]).to("meta")
    tensors = (batch.images, batch.mask, batch.targets.labels, batch.targets.boxes, batch.targets.offsets)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (batch.image_ids, batch.targets.sizes) == ([1], [3])
