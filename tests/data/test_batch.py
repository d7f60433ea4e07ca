from __future__ import annotations

import torch
from PIL import Image

from detr_fast.data import Sample, collate
from detr_fast.images import to_tensor


def _sample(identifier: int, height: int, width: int, count: int) -> Sample:
    generator = torch.Generator().manual_seed(identifier)
    return Sample(
        image=torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8),
        labels=torch.arange(count),
        boxes=torch.rand(count, 4, generator=generator),
        image_id=identifier,
        original_size=(2 * height, 2 * width),
    )


def _normalized(image: torch.Tensor) -> torch.Tensor:
    return to_tensor(Image.fromarray(image.numpy()))


def test_collate_pads_and_packs() -> None:
    first, second = _sample(5, 4, 9, 2), _sample(3, 6, 7, 0)
    packed = collate([first, None, second._replace(flipped=True)])
    batch = packed.to("cpu")
    assert len(packed) == len(batch) == 2
    assert batch.images.shape == (2, 3, 6, 9)
    torch.testing.assert_close(batch.images[0, :, :4], _normalized(first.image), rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.images[1, :, :, :7], _normalized(second.image).flip(2), rtol=0, atol=1e-6)
    assert not batch.images[1, :, :, 7:].any()
    assert (~batch.mask).sum((1, 2)).tolist() == [36, 42]
    assert batch.padding is batch.mask
    assert collate([first, first]).to("cpu").padding is None
    assert batch.targets.sizes == [2, 0]
    assert torch.equal(batch.targets.boxes, first.boxes)
    assert (batch.image_ids, batch.original_sizes) == ([5, 3], [(8, 18), (12, 14)])


def test_collate_of_nothing() -> None:
    packed = collate([None, None])
    batch = packed.to("cpu")
    assert len(packed) == len(batch) == 0
    assert batch.images.shape == (0, 3, 0, 0)
    assert (batch.targets.num_images, batch.targets.num_targets) == (0, 0)


def test_to_moves_every_tensor() -> None:
    batch = collate([_sample(1, 4, 4, 3)]).to("meta")
    tensors = (batch.images, batch.mask, batch.targets.labels, batch.targets.boxes, batch.targets.offsets)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (batch.image_ids, batch.targets.sizes) == ([1], [3])


def test_images_in_another_format() -> None:
    packed = collate([_sample(1, 4, 6, 3), _sample(2, 5, 3, 0)])
    plain = packed.to("cpu")
    batch = packed.to("cpu", dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, plain.images.bfloat16())
    assert torch.equal(batch.mask, plain.mask)
