"""Each family of transformers with random weights, accelerated and not."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

from detr_fast import ops
from detr_fast.integrations.huggingface import accelerate, criteria, matching, restore
from detr_fast.integrations.huggingface.comparisons import find_loss
from detr_fast.integrations.huggingface.criteria import FastLoss
from detr_fast.integrations.huggingface.position import FastEncoding

ROOT = Path(__file__).parents[2]
OPS = ("match_cost", "batch_linear_sum_assignment", "linear_sum_assignment", "set_loss", "sine_position_encoding")
OPS += ("multi_scale_deformable_attention",)
MATCHING = {"match_cost", "batch_linear_sum_assignment"}
SINE = {"Detr", "ConditionalDetr", "DabDetr", "DeformableDetr", "TableTransformer", "GroundingDino", "MMGroundingDino"}
SINE |= {"DetrSegmentation", "ConditionalDetrSegmentation", "Mask2Former"}
DEFORMABLE = {"DeformableDetr", "RTDetr", "RTDetrV2", "DFine", "Deimv2", "LwDetr", "RfDetr", "RfDetrSegmentation"}
DEFORMABLE |= {"GroundingDino", "MMGroundingDino", "Mask2Former"}
DOUBLE = {"RTDetr", "RTDetrV2", "DeformableDetr", "ConditionalDetr", "DabDetr", "LwDetr", "RfDetr"}  # losses in float64
HOST_LOSS = {"GroundingDino", "MMGroundingDino", "Deimv2", "RfDetrSegmentation", "Mask2Former", "MaskFormer"}
HOST_COSTS = {
    "Mask2Former",
    "MaskFormer",
    "RfDetrSegmentation",
    "ConditionalDetrSegmentation",
}  # assigned by linear_sum_assignment


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The number of calls of each op."""
    counts = dict.fromkeys(OPS, 0)

    def counted(name: str) -> Any:
        original = getattr(ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        return call

    for name in OPS:
        monkeypatch.setattr(ops, name, counted(name))
    return counts


def run(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its terms; what is random in a forward pass is the same each time."""
    torch.manual_seed(5)
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output.loss.detach(), {k: v.detach() for k, v in (getattr(output, "loss_dict", None) or {}).items()}


def record_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[tuple, dict]:
    """The arguments with which the model calls its loss function, with predictions unlike each other.

    The queries of a model with random weights differ by less than float32 can tell, and so do their costs.
    """
    recorded: list[Any] = []
    original = model.loss_function

    def spy(*args: Any, **kwargs: Any) -> Any:
        recorded.append((args, kwargs))
        return original(*args, **kwargs)

    model.loss_function = spy
    torch.manual_seed(5)
    model(**batch)
    del model._loss_function
    spread: dict[int, Tensor] = {}

    def differ(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if id(value) not in spread:
            new = torch.rand_like(value) * 0.4 + 0.2 if value.shape[-1] == 4 else value + torch.randn_like(value)
            spread[id(value)] = new.detach()
        return spread[id(value)]

    args, kwargs = recorded[0]
    return tuple(differ(value) for value in args), {name: differ(value) for name, value in kwargs.items()}


def evaluate(function: Any, arguments: tuple[tuple, dict], dtype: torch.dtype) -> dict[str, Tensor]:
    """The loss, its terms, and its gradients for every floating-point input."""
    leaves: dict[int, Tensor] = {}

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if id(value) not in leaves:
            leaves[id(value)] = value.detach().to(dtype).requires_grad_()
        return leaves[id(value)]

    args = [leaf(value) for value in arguments[0]]
    args[1] = [image | {"boxes": image["boxes"].to(dtype)} for image in args[1]]
    kwargs = {name: leaf(value) for name, value in arguments[1].items()}
    loss, terms, _ = function(*args, **kwargs)
    loss.backward()
    gradients = {f"gradient {i}": tensor.grad for i, tensor in enumerate(leaves.values()) if tensor.grad is not None}
    return {"loss": loss.detach()} | {name: value.detach() for name, value in terms.items()} | gradients


def counts_alike(function: Any, config: Any) -> bool:
    """Whether this release of transformers computes the cardinality error as this package does."""
    return all(finding.reason is None for finding in find_loss(function, config))


def test_losses_and_gradients_within_twice_the_noise(family, build_model, make_batch):
    if family in HOST_LOSS:
        pytest.skip("transformers computes its losses; test_models compares its matches")
    model = build_model(family)
    arguments = record_loss(model, make_batch(family))
    original = model.loss_function
    fast = FastLoss(original, matcher=True, loss=True, cardinality=counts_alike(original, model.config))
    expected, found = evaluate(original, arguments, torch.float32), evaluate(fast, arguments, torch.float32)
    assert expected.keys() == found.keys()
    if family == "DFine":  # its loss over edges, which transformers computes, supports float32 only
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=2e-5, atol=2e-6, msg=name)
        return
    exact = evaluate(fast, arguments, torch.float64)
    if family in DOUBLE:
        for name, value in evaluate(original, arguments, torch.float64).items():
            torch.testing.assert_close(exact[name], value, rtol=1e-6, atol=1e-9, msg=name)
    for name, value in found.items():
        scale = float(exact[name].abs().max())
        error, allowed = (float((x - exact[name]).abs().max()) for x in (value, expected[name]))
        assert error <= 2 * allowed + 3e-7 * scale, f"{name}: {error} against {allowed}"


def test_models(family, build_model, make_batch, calls):
    model, batch = build_model(family), make_batch(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss, terms = run(model, batch)
    assert not any(calls.values())

    assert accelerate(model) is model
    assert model.state_dict().keys() == before.keys()
    calls.update(dict.fromkeys(calls, 0))  # those of the comparison
    patched_loss, patched_terms = run(model, batch)
    torch.testing.assert_close(patched_loss, loss, rtol=2e-6, atol=0)
    assert patched_terms.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(patched_terms[name], value, rtol=1e-5, atol=1e-6, msg=name)
    ran = {name for name, count in calls.items() if count}
    expected = {"linear_sum_assignment"} if family in HOST_COSTS else set(MATCHING)
    expected |= set() if family in HOST_LOSS else {"set_loss"}
    encoded = any(isinstance(module.__dict__.get("forward"), FastEncoding) for module in model.modules())
    expected |= {"sine_position_encoding"} if encoded else set()
    expected |= {"multi_scale_deformable_attention"} if family in DEFORMABLE else set()
    assert ran == expected
    assert calls["batch_linear_sum_assignment"] <= 2  # all layers at once; Grounding DINO's encoder has its own shape

    done = dict(calls)
    assert restore(model) is model
    restored_loss, _ = run(model, batch)
    assert torch.equal(restored_loss, loss)
    assert calls == done
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert "_loss_function" not in model.__dict__


@pytest.mark.parametrize("name", ["Detr", "DeformableDetr", "RTDetr", "DFine", "LwDetr", "GroundingDino"])
def test_the_same_matches(name, build_model, make_batch, monkeypatch):
    model, batch = build_model(name), make_batch(name)
    arguments = record_loss(model, batch)
    host, batched = [], []
    criterion_name = criteria.FAMILIES[model.loss_function.__name__].criterion
    criterion_type = model.loss_function.__globals__[criterion_name]

    def watched(found: list, wrap: Any) -> Any:
        def build(*args: Any, **kwargs: Any) -> nn.Module:
            criterion = criterion_type(*args, **kwargs)
            matcher = criterion.matcher
            criterion.matcher = wrap(matcher)
            criterion.matcher.register_forward_hook(lambda module, args, pairs: found.append(pairs))
            return criterion

        return build

    for found, wrap in ((host, lambda matcher: matcher), (batched, matching.BatchedMatcher)):
        function = criteria.rebind(model.loss_function, **{criterion_name: watched(found, wrap)})
        function(*arguments[0], **arguments[1])
    assert len(host) == len(batched) > 2
    for expected, pairs in zip(host, batched, strict=True):
        for (queries, rows), (batched_queries, batched_rows) in zip(expected, pairs, strict=True):
            assert queries.tolist() == batched_queries.tolist()
            assert rows.tolist() == batched_rows.tolist()


@pytest.mark.parametrize("name", ["Detr", "DeformableDetr", "RTDetr", "LwDetr"])
def test_each_part_alone(name, build_model, make_batch, calls):
    model, batch = build_model(name), make_batch(name)
    loss, _ = run(model, batch)
    parts = {
        "matcher": MATCHING,
        "loss": {"set_loss"},
        "position_encoding": {"sine_position_encoding"} if name in SINE else set(),
        "deformable_attention": {"multi_scale_deformable_attention"} if name in DEFORMABLE else set(),
    }
    for part, expected in parts.items():
        only = dict.fromkeys(parts, False) | {part: True}
        accelerate(model, **only)
        calls.update(dict.fromkeys(calls, 0))
        patched, _ = run(model, batch)
        torch.testing.assert_close(patched, loss, rtol=2e-6, atol=0)
        assert {op for op, count in calls.items() if count} == expected, part


@pytest.mark.parametrize("name", ["Detr", "DeformableDetr", "RTDetr", "LwDetr"])
def test_ten_steps_stay_together(name, build_model, make_batch):
    histories = []
    for patch in (False, True):
        model = build_model(name)
        if patch:
            accelerate(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        history = []
        for step in range(10):
            torch.manual_seed(step)
            loss = model(**make_batch(name)).loss
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if not patch and not norm.isfinite():
                pytest.skip("the gradient of this release of transformers is not finite")
            optimizer.step()
            history.append(loss.item())
        histories.append(history)
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    assert histories[0][-1] != histories[0][0]


def test_what_is_saved_is_unchanged(build_model, tmp_path):
    model = build_model("Detr")
    model.save_pretrained(tmp_path / "before")
    accelerate(model).save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()


def test_copies_and_pickles_stay_patched(build_model, make_batch, calls):
    batch = make_batch("Detr")
    model = accelerate(build_model("Detr"))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls.update(dict.fromkeys(calls, 0))
        run(other, batch)
        assert all(calls[name] for name in (*MATCHING, "set_loss", "sine_position_encoding"))
        restore(other)
    assert isinstance(model.loss_function, FastLoss)


@pytest.mark.slow
def test_compiled(build_model, make_batch, calls):
    model = accelerate(build_model("Detr", decoder_layers=2))
    loss, _ = run(model, make_batch("Detr"))
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    calls.update(dict.fromkeys(calls, 0))
    compiled_loss, _ = run(torch.compile(model), make_batch("Detr"))
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4, msg=name)
    assert calls["set_loss"] == calls["match_cost"] == 1


def test_trained_by_the_trainer(build_model, make_batch, tmp_path, calls):
    from transformers import Trainer, TrainingArguments

    batch = make_batch("Detr")
    samples = [
        {name: batch[name][i] for name in ("pixel_values", "pixel_mask", "labels")} for i in range(len(batch["labels"]))
    ]

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        stacked = {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "pixel_mask")}
        return stacked | {"labels": [item["labels"] for item in items]}

    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    losses = []
    for model in (build_model("Detr"), accelerate(build_model("Detr"))):
        trainer = Trainer(model, arguments, data_collator=collate, train_dataset=samples)
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert calls["set_loss"] == calls["match_cost"] == 4


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate without the settings of another test, and without this one's in the next."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_prepared_by_accelerate(build_model, make_batch, calls, fresh_accelerate):
    from accelerate import Accelerator

    histories = []
    for patch in (False, True):
        model = accelerate(build_model("Detr")) if patch else build_model("Detr")
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-4))
        history = []
        for _ in range(3):
            loss = model(**make_batch("Detr")).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            history.append(loss.item())
        histories.append(history)
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    assert calls["set_loss"] == calls["match_cost"] == 3


@pytest.mark.slow
def test_two_processes_count_boxes_together():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("two_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run([*launcher, script], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("alike on rank") == 6


def test_non_finite_costs_lose_and_bad_boxes_are_named(build_model, make_batch):
    model = build_model("Detr")
    args, kwargs = record_loss(model, make_batch("Detr"))
    args = list(args)
    args[0] = args[0].detach().clone()
    args[0][0, :3] = float("nan")
    found = []
    if "nan_to_num" not in getsource(model.loss_function.__globals__["HungarianMatcher"]):
        pytest.skip("this release of transformers raises an error")
    for function in (model.loss_function, FastLoss(model.loss_function, matcher=True, loss=True)):
        found.append(function(*args, **kwargs)[1])
    torch.testing.assert_close(found[1]["loss_bbox"], found[0]["loss_bbox"])
    args[3] = args[3].detach().clone()
    args[3][0, 0] = float("nan")
    with pytest.raises(ValueError, match="boxes that are not finite"):
        FastLoss(model.loss_function, matcher=True, loss=True)(*args, **kwargs)


def test_models_we_do_not_know(build_model):
    with pytest.raises(ValueError, match="Linear has no multi-scale deformable attention and none of the supported"):
        accelerate(nn.Linear(2, 2))
    model = build_model("Detr")
    model.loss_function = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match="without a custom loss_function"):
        accelerate(model)


@pytest.mark.slow
@pytest.mark.parametrize("directory", [Path("/"), ROOT], ids=["elsewhere", "root of the repository"])
def test_imported_from_anywhere(directory):
    code = "import detr_fast.integrations.huggingface; from transformers import DetrForObjectDetection"
    process = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
