"""Accelerate a DETR of transformers, here a tiny one with random weights, and take three training steps."""

import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from detr_fast.integrations.huggingface import accelerate, restore


def build_model() -> DetrForObjectDetection:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=10,
        num_labels=3,
        auxiliary_loss=True,
        dropout=0.0,
    )
    return DetrForObjectDetection(config)


def main(steps: int = 3) -> None:
    torch.manual_seed(0)
    model = build_model()
    images = torch.rand(2, 3, 64, 64)
    labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.7, 0.1, 0.1]])},
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.3, 0.5, 0.4]])},
    ]
    model.train()
    expected = model(pixel_values=images, labels=labels).loss
    accelerate(model)  # before the model is wrapped or compiled
    accelerated = model(pixel_values=images, labels=labels).loss
    print(f"loss of transformers {expected:.6f}, accelerated {accelerated:.6f}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(steps):
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss:.4f}")
    restore(model)


if __name__ == "__main__":
    main()
