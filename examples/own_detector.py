"""Train a small detector of your own with detr_fast's matcher and criterion, in a plain PyTorch loop."""

import torch
from torch import Tensor, nn

from detr_fast import SetCriterion, Targets

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS, SIZE = 2, 8, 2, 32


class TinyDetector(nn.Module):
    """A convolution, and decoder layers that attend to its features; every layer predicts."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.ReLU())
        self.position = nn.Parameter(torch.randn((SIZE // 8) ** 2, width))
        self.queries = nn.Parameter(torch.randn(NUM_QUERIES, width))
        layers = [nn.TransformerDecoderLayer(width, 4, 2 * width, 0.0, batch_first=True) for _ in range(NUM_LAYERS)]
        self.layers = nn.ModuleList(layers)
        self.classes = nn.Linear(width, NUM_CLASSES + 1)  # no-object is the last class
        self.boxes = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.features(images).flatten(2).mT + self.position
        x = self.queries.expand(len(images), -1, -1)
        outputs = []
        for layer in self.layers:
            x = layer(x, memory)
            outputs.append(x)
        stacked = torch.stack(outputs)  # [layers, images, queries, width]
        return self.classes(stacked), self.boxes(stacked).sigmoid()


def make_batch(num_images: int, generator: torch.Generator) -> tuple[Tensor, Targets]:
    """Black images with one or two rectangles, red ones of class 0 and green ones of class 1."""
    images = torch.zeros(num_images, 3, SIZE, SIZE)
    truth = []
    for image in images:
        count = int(torch.randint(1, 3, (), generator=generator))
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        low = torch.randint(0, SIZE // 2, (count, 2), generator=generator)
        side = torch.randint(6, SIZE // 2, (count, 2), generator=generator)
        for label, (x, y), (width, height) in zip(labels.tolist(), low.tolist(), side.tolist(), strict=True):
            image[label, y : y + height, x : x + width] = 1
        boxes = torch.cat((low + side / 2, side), 1) / SIZE  # centers and sizes as fractions of the image
        truth.append({"labels": labels, "boxes": boxes})
    return images, Targets.from_list(truth)  # in a real loop: in the collate function


def main(steps: int = 40) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = TinyDetector()
    criterion = SetCriterion.preset("detr")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        images, targets = make_batch(12, generator)
        logits, boxes = model(images)
        total, terms = criterion(logits, boxes, targets)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            parts = ", ".join(f"{name} {terms[name]:.3f}" for name in ("loss_ce", "loss_bbox", "loss_giou"))
            print(f"step {step}: total {total:.3f}; last layer: {parts}")


if __name__ == "__main__":
    main()
