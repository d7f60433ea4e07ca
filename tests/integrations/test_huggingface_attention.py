"""The models of transformers with multi-scale deformable attention, accelerated and not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

from detr_fast import ops
from detr_fast.integrations.huggingface import accelerate, restore
from detr_fast.integrations.huggingface.attention import ATTRIBUTE, attend

CALLS = {  # in one forward pass
    "DeformableDetr": 4,
    "RTDetr": 3,
    "RTDetrV2": 3,
    "DFine": 3,
    "Deimv2": 3,
    "LwDetr": 2,
    "RfDetr": 2,
    "RfDetrSegmentation": 2,
    "GroundingDino": 4,
    "MMGroundingDino": 4,
    "OmDetTurbo": 2,
    "PPDocLayoutV2": 3,
    "PPDocLayoutV3": 3,
    "PPDocLayoutV4": 3,
    "Mask2Former": 1,
    "OneFormer": 2,
}
DISCRETE = {"RTDetrV2": {"decoder_method": "discrete"}, "DFine": {"decoder_method": "discrete"}}
UNEQUAL = {"DFine": {"decoder_n_points": [3, 6, 4]}}
CASES = [(name, {}) for name in CALLS] + [*DISCRETE.items(), *UNEQUAL.items()]
BY_CASE = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value) if value else "")
ONE_OF_EACH_WAY = pytest.mark.parametrize("name", ["DeformableDetr", "DFine", "RTDetrV2"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the calls of the op."""
    methods: list[str] = []
    original = ops.multi_scale_deformable_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        methods.append(kwargs["method"])
        return original(*args, **kwargs)

    monkeypatch.setattr(ops, "multi_scale_deformable_attention", counted)
    return methods


def prepare(model: nn.Module, batch: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """The model, whose attention samples anywhere, and its inputs without labels.

    A new model samples at the borders between cells, where rounding decides which gradient is found.
    """
    torch.manual_seed(2)
    for module in model.modules():
        if hasattr(module, "sampling_offsets") and hasattr(module, "attention_weights"):
            for layer, scale in ((module.sampling_offsets, 1.0), (module.attention_weights, 0.5)):
                nn.init.normal_(layer.weight, std=0.1)
                nn.init.normal_(layer.bias, std=scale)
    if hasattr(model, "language_backbone"):  # OmDet-Turbo keeps the features of texts from one call to the next
        model.language_backbone.requires_grad_(False)
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    floating = {name: value.to(dtype) for name, value in inputs.items() if value.is_floating_point()}
    return model.eval().to(dtype), inputs | floating


def evaluate(model: nn.Module, inputs: dict[str, Any], **options: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """The outputs, and the gradients of a scalar of all outputs."""
    model.zero_grad()
    outputs = [leaf for leaf in tree_leaves(dict(model(**inputs, **options))) if isinstance(leaf, Tensor)]
    outputs = [output for output in outputs if output.is_floating_point()]
    torch.manual_seed(3)
    terms = [
        (output * torch.randn_like(output)).nan_to_num(0, 0, 0).sum() for output in outputs if output.requires_grad
    ]
    torch.stack(terms).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return [output.detach() for output in outputs], gradients


def is_patched(model: nn.Module) -> bool:
    return any("forward" in m.__dict__ or m.__dict__.get(ATTRIBUTE) is attend for m in model.modules())


@BY_CASE
def test_outputs_and_gradients(name, options, build_model, make_batch, calls):
    model, inputs = prepare(build_model(name, **options), make_batch(name), torch.float64)
    outputs, gradients = evaluate(model, inputs)
    assert not calls
    accelerate(model, position_encoding=False)
    calls.clear()  # those of the comparison
    found, found_gradients = evaluate(model, inputs)
    assert calls == [options.get("decoder_method", "default")] * CALLS[name]
    torch.testing.assert_close(found, outputs, rtol=1e-8, atol=1e-9)
    largest = max(float(g.nan_to_num().abs().max()) for g in gradients.values() if g is not None)
    for parameter, gradient in gradients.items():
        message = f"gradient of {parameter}"
        if gradient is None:
            assert found_gradients[parameter] is None, message
        else:
            torch.testing.assert_close(
                found_gradients[parameter],
                gradient,
                rtol=1e-7,
                atol=1e-11 * largest,
                equal_nan=True,  # LW-DETR of transformers 5.0 has such a gradient
                msg=message,
            )

    restore(model)
    assert not is_patched(model)
    calls.clear()
    restored, _ = evaluate(model, inputs)
    assert not calls
    assert all(map(torch.equal, restored, outputs))


@pytest.mark.parametrize("name", ["DeformableDetr", "DFine", "RTDetrV2", "GroundingDino", "Mask2Former"])
def test_attention_weights_are_returned(name, build_model, make_batch, calls):
    model, inputs = prepare(build_model(name, attn_implementation="eager"), make_batch(name), torch.float32)
    with torch.inference_mode():
        expected = model(**inputs, output_attentions=True)
        accelerate(model)
        calls.clear()
        found = model(**inputs, output_attentions=True)
    assert len(calls) == CALLS[name]
    names = [key for key in expected if "attentions" in key and expected[key] is not None]
    assert names
    for key in names:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5, msg=key)


@ONE_OF_EACH_WAY
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(name, autocast, build_model, make_batch, calls):
    model, inputs = prepare(build_model(name), make_batch(name), torch.float32 if autocast else torch.bfloat16)
    attention = next(m for m in model.modules() if type(m).__name__.endswith("MultiscaleDeformableAttention"))
    recorded: list[Any] = []
    hook = attention.register_forward_hook(lambda *call: recorded.append(call), with_kwargs=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**inputs)
        hook.remove()
        _, arguments, options, (expected, expected_weights) = recorded[0]
        accelerate(model)
        calls.clear()
        model(**inputs)
        found, weights = attention(*arguments, **options)
    assert len(calls) == CALLS[name] + 1
    assert found.dtype == torch.bfloat16
    assert torch.equal(weights, expected_weights)
    scale = float(expected.float().abs().max())
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=0.03 * scale)


@ONE_OF_EACH_WAY
@pytest.mark.slow
def test_compiled_without_a_graph_break(name, build_model, make_batch, calls):
    model, inputs = prepare(build_model(name), make_batch(name), torch.float32)
    inputs.pop("pixel_mask", None)
    accelerate(model)
    with torch.inference_mode():
        expected = model(**inputs)
        torch.compiler.reset()
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


@ONE_OF_EACH_WAY
def test_copies_and_pickles(name, build_model, make_batch, calls):
    model, inputs = prepare(build_model(name), make_batch(name), torch.float32)
    expected = accelerate(model)(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls.clear()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        assert torch.equal(other(**inputs).logits, expected)
        assert len(calls) == CALLS[name]
        other(**inputs).logits.sum().backward()
        assert any(parameter.grad is not None for parameter in other.parameters())
        assert not is_patched(restore(other))
    assert is_patched(model)


def test_a_part_of_a_model(build_model, calls):
    attention = build_model("OneFormer").model.pixel_level_module
    assert accelerate(attention) is attention
    with pytest.raises(ValueError, match="has no multi-scale deformable attention and none of the supported loss"):
        accelerate(attention, deformable_attention=False)
    assert not is_patched(attention)
