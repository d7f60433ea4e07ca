"""The uncaptured form of CapturedStep trains models of transformers, with their losses or this library's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

from detr_fast import SetCriterion, Targets
from detr_fast.integrations.huggingface import accelerate
from detr_fast.integrations.huggingface.matching import pack_labels
from detr_fast.training import CapturedStep

SIZES = [(3, 0, 2), (1, 4, 0), (2, 2, 2), (0, 0, 1), (5, 1, 3)]


def their_loss(
    model: nn.Module, pixel_values: Tensor, pixel_mask: Tensor, labels: Sequence[Mapping[str, Tensor]]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    output = model(pixel_values=pixel_values, pixel_mask=pixel_mask, labels=labels)
    return output.loss, output.loss_dict


def our_loss(
    model: Any, pixel_values: Tensor, pixel_mask: Tensor, targets: Targets
) -> tuple[Tensor, Mapping[str, Tensor]]:
    hidden = model.model(pixel_values, pixel_mask=pixel_mask).intermediate_hidden_states  # [L,B,Q,d]
    return SetCriterion()(model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid(), targets)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["accelerated", "Targets"])
def test_an_accelerated_detr_has_the_losses_of_transformers(build_model, make_batch, form):
    plain, fast = build_model("Detr").train(), accelerate(build_model("Detr").train())
    fast.load_state_dict(plain.state_dict())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (plain, fast)]
    step = CapturedStep(
        fast, their_loss if form == "accelerated" else our_loss, optimizers[1], clip_norm=0.1, capture=False
    )
    for seed, sizes in enumerate(SIZES):
        batch = make_batch("Detr", sizes)
        labels = batch["labels"] if form == "accelerated" else pack_labels(batch["labels"])
        torch.manual_seed(seed)
        losses = step(batch["pixel_values"], batch["pixel_mask"], labels)
        torch.manual_seed(seed)
        output = plain(**batch)
        output.loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizers[0].step()
        optimizers[0].zero_grad()
        torch.testing.assert_close(losses["loss"], output.loss.detach(), rtol=1e-4, atol=1e-5)
        for name, value in output.loss_dict.items():
            torch.testing.assert_close(losses[name], value.detach().float(), rtol=1e-4, atol=1e-4, msg=name)
