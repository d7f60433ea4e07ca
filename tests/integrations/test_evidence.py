"""Parts that are taken from a host library because both sides agree, and parts that are left because they do not."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from importlib.metadata import version
from typing import Any

import pytest
import torch

from detr_fast import ops
from detr_fast.integrations import describe_hosts, evidence
from detr_fast.integrations.evidence import Disagreement, check_close, check_parameters, examine
from detr_fast.ops.dispatch import BackendError


@pytest.fixture(autouse=True)
def _fresh():
    """Each test compares anew, and leaves nothing to the next."""
    evidence.forget()
    yield
    evidence.forget()


def test_a_part_is_compared_once():
    calls = []
    for _ in range(2):
        assert examine("a part", lambda: calls.append(1), key="a").reason is None
    assert calls == [1]
    assert examine("a part", lambda: calls.append(1), key="b").reason is None
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Disagreement("x differs"), "x differs"), (KeyError("boxes"), "the comparison raised KeyError: 'boxes'")],
)
def test_the_reason_is_that_of_the_comparison(error, reason):
    def compare() -> None:
        raise error

    finding = examine("a part", compare, key=reason)
    assert finding.reason == reason
    assert str(finding) == f"a part: left to the host library, {reason}"


def test_what_the_caller_has_set_neither_matters_nor_changes():
    def compare() -> None:
        x = torch.randn(3, requires_grad=True)
        assert x.device.type == "cpu"
        assert x.dtype == torch.float32
        (x @ x).backward()
        assert x.grad is not None
        assert (x[:, None] @ x[None]).dtype == torch.float32

    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert examine("a part", compare, key="settings").reason is None
            assert torch.get_default_dtype() == torch.float64
            assert torch.empty(1).is_meta
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(2), expected)


def test_a_backend_that_only_a_gpu_can_run(monkeypatch):
    cost = torch.rand(1, 3, 8)
    monkeypatch.setenv("DETR_FAST_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    try:
        ops.batch_linear_sum_assignment(cost, [3])
    except BackendError:
        pass
    else:
        pytest.skip("Triton runs on the CPU, in its interpreter")
    assert examine("a part", lambda: ops.batch_linear_sum_assignment(cost, [3]), key="triton").reason is None
    with pytest.raises(BackendError):
        ops.batch_linear_sum_assignment(cost, [3])


def test_parameters():
    def host(self, outputs, targets, extra=None):
        raise NotImplementedError

    check_parameters(host, ("outputs", "targets", "extra", "more"))
    with pytest.raises(Disagreement, match="host has the unknown parameter 'extra'"):
        check_parameters(host, ("outputs", "targets"))
    with pytest.raises(Disagreement, match="in another order: outputs, targets, extra"):
        check_parameters(host, ("targets", "outputs", "extra"))


def test_values():
    ones = {"loss": torch.ones(2)}
    check_close(ones, {"loss": torch.ones(2) + 5e-5})
    with pytest.raises(Disagreement, match=r"loss differs by 0\.001 where its largest value is 1"):
        check_close(ones, {"loss": torch.ones(2) + 1e-3})
    with pytest.raises(Disagreement, match="loss differs by nan"):
        check_close(ones, {"loss": torch.tensor([1.0, float("nan")])})
    with pytest.raises(Disagreement, match=r"loss has the shape \[2, 1\], not \[2\]"):
        check_close(ones, {"loss": torch.ones(2, 1)})
    with pytest.raises(Disagreement, match="only one side returns loss_mask"):
        check_close(ones, ones | {"loss_mask": torch.ones(1)})


@pytest.mark.slow
def test_the_report_names_what_is_left(monkeypatch):
    """The report of `detr-fast info`: of this release, of a changed one, and of one that cannot be imported."""
    pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")
    from transformers.loss import loss_deformable_detr

    described = describe_hosts()
    title = f"  transformers {version('transformers')}\n"
    assert title in described
    assert "replaced: the sampling of deformable_detr" in described
    assert "replaced: the encoding of DetrSinePositionEmbedding" in described
    assert "DeformableDetrForObjectDetectionLoss" in described
    evidence.forget()
    criterion = loss_deformable_detr.DeformableDetrImageLoss
    monkeypatch.setattr(criterion, "loss_labels", _doubled(criterion.loss_labels))
    described = describe_hosts()
    for function in ("DeformableDetrForObjectDetectionLoss", "DeformableDetrForSegmentationLoss"):
        assert f"left to it: the losses of {function} (loss" in described
    monkeypatch.setitem(sys.modules, "detr_fast.integrations.huggingface.survey", None)
    assert f"{title.rstrip()} could not be examined: ModuleNotFoundError" in describe_hosts()


class TestTransformers:
    """Releases of transformers that compute something else, simulated by changing the installed one."""

    @pytest.fixture
    def left(self, caplog):
        """Accelerates a model and returns the line of the log about the parts that are left."""
        pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")
        from detr_fast.integrations.huggingface import accelerate

        def run(model: Any, **options: Any) -> str:
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="detr_fast"):
                accelerate(model, **options)
            lines = [record.getMessage() for record in caplog.records if record.name.startswith("detr_fast")]
            assert len(lines) <= 1
            return lines[0] if lines else ""

        return run

    def test_nothing_is_left_of_this_release(self, left, family, build_model):
        model = build_model(family)
        state = torch.get_rng_state()
        assert left(model) == ""
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("term", ["loss_labels", "loss_boxes"])
    @pytest.mark.parametrize("name", ["Detr", "DeformableDetr", "LwDetr", "DetrSegmentation"])
    def test_a_loss_with_another_factor(self, left, name, term, build_model, make_batch, monkeypatch):
        model = build_model(name)
        criterion = model.loss_function.__globals__[_family(model).criterion]
        original = getattr(criterion, term)

        def scaled(self, *args):
            return {key: 1.01 * value for key, value in original(self, *args).items()}

        monkeypatch.setattr(criterion, term, scaled)
        expected = model(**make_batch(name)).loss
        line = left(model)
        assert f"the losses of {model.loss_function.function.__name__} (loss" in line
        assert "matching" not in line
        assert "differs by" in line
        assert model.loss_function.matcher
        assert not model.loss_function.loss
        torch.testing.assert_close(model(**make_batch(name)).loss, expected, rtol=1e-6, atol=0)
        assert left(model, check=False) == ""
        assert model.loss_function.loss
        assert model(**make_batch(name)).loss.item() < expected.item()

    def test_another_cardinality_error(self, left, build_model, make_batch, monkeypatch):
        model = build_model("DeformableDetr")
        criterion = model.loss_function.__globals__["DeformableDetrImageLoss"]
        monkeypatch.setattr(criterion, "loss_cardinality", lambda *_: {"cardinality_error": torch.tensor(11.0)})
        line = left(model)
        assert line.count("(") == 1
        assert "the cardinality error of DeformableDetrForObjectDetectionLoss (cardinality_error differs" in line
        assert model.loss_function.loss
        terms = model(**make_batch("DeformableDetr")).loss_dict
        assert [float(terms[f"cardinality_error{suffix}"]) for suffix in ("", "_0", "_1")] == [11.0] * 3

    @pytest.mark.parametrize("factor", [0.9, 1.1])
    @pytest.mark.parametrize("name", ["Detr", "DeformableDetr", "RTDetr", "LwDetr", "GroundingDino"])
    @pytest.mark.parametrize("cost", ["class_cost", "bbox_cost", "giou_cost"])
    def test_a_matcher_with_other_weights(self, left, name, cost, factor, build_model, monkeypatch):
        model = build_model(name)
        matcher = _matcher(model)
        original = matcher.forward

        def weighted(self, *args, **kwargs):
            value = getattr(self, cost)
            setattr(self, cost, factor * value)
            try:
                return original(self, *args, **kwargs)
            finally:
                setattr(self, cost, value)

        weighted.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        monkeypatch.setattr(matcher, "forward", weighted)
        line = left(model)
        assert "the matching of" in line
        assert "the losses of" not in line
        assert "differs by" in line

    def test_a_matcher_with_another_parameter(self, left, build_model, monkeypatch):
        model = build_model("Detr")
        matcher = _matcher(model)
        original = matcher.forward

        def forward(self, outputs, targets, class_weights=None):
            return original(self, outputs, targets)

        monkeypatch.setattr(matcher, "forward", forward)
        assert left(model).count("forward has the unknown parameter 'class_weights'") == 2
        assert "_loss_function" not in model.__dict__

    def test_a_loss_function_with_another_parameter(self, left, build_model):
        model = build_model("Detr")
        original = model.loss_function

        def ForObjectDetectionLoss(logits, labels, device, pred_boxes, config, quality=None, **kwargs):
            return original(logits, labels, device, pred_boxes, config, **kwargs)

        ForObjectDetectionLoss.__globals__.setdefault("ImageLoss", original.__globals__["ImageLoss"])
        try:
            model.loss_function = ForObjectDetectionLoss
            line = left(model)
        finally:
            del ForObjectDetectionLoss.__globals__["ImageLoss"]
        assert line.count("ForObjectDetectionLoss has the unknown parameter 'quality'") == 2
        assert model.loss_function is ForObjectDetectionLoss

    def test_a_criterion_that_does_not_exist(self, left, build_model, monkeypatch):
        model = build_model("DeformableDetr")
        monkeypatch.delitem(model.loss_function.__globals__, "DeformableDetrImageLoss")
        assert left(model) == ""
        assert "_loss_function" not in model.__dict__

    def test_another_encoding(self, left, build_model, monkeypatch):
        model = build_model("Detr")
        embedding = next(m for m in model.modules() if type(m).__name__ == "DetrSinePositionEmbedding")
        original = type(embedding).forward

        def forward(self, shape, device, dtype, mask=None):
            return 1.001 * original(self, shape, device, dtype, mask)

        monkeypatch.setattr(type(embedding), "forward", forward)
        assert "the encoding of DetrSinePositionEmbedding (the encoding differs by 0.001" in left(model)
        assert "forward" not in embedding.__dict__
        monkeypatch.undo()
        evidence.forget()
        del embedding.num_position_features
        assert "DetrSinePositionEmbedding has none of the attributes num_position_features" in left(model)

    @pytest.mark.parametrize("name", ["DeformableDetr", "DFine", "RTDetrV2", "Mask2Former"])
    def test_another_sampling(self, left, name, build_model, monkeypatch):
        from detr_fast.integrations.huggingface.attention import attentions

        model = build_model(name)
        module, function = attentions(model)[0]
        if function is None:
            original = type(module).forward
            monkeypatch.setattr(type(module), "forward", _scaled(original))
        else:
            names = type(module).forward.__globals__
            monkeypatch.setitem(names, function, _scaled(names[function]))
        assert "the sampling of" in left(model)
        assert not any(m.__dict__.get("forward") for m, _ in attentions(model))

    def test_another_assignment(self, left, build_model, monkeypatch):
        model = build_model("MaskFormer")
        matcher = next(m for m in model.modules() if type(m).__name__ == "MaskFormerHungarianMatcher")
        names = type(matcher).forward.__wrapped__.__globals__
        original = names["linear_sum_assignment"]
        monkeypatch.setitem(names, "linear_sum_assignment", lambda cost: original(-cost))
        assert "the assignment of MaskFormerHungarianMatcher (the matches of image 0 differs" in left(model)
        assert "forward" not in matcher.__dict__


class TestRFDETR:
    """Releases of RF-DETR that compute something else, simulated by changing the installed one."""

    @pytest.fixture
    def rfdetr(self, import_or_skip):
        import_or_skip("rfdetr")
        from detr_fast.integrations import rfdetr

        return rfdetr

    @pytest.fixture
    def criterion(self, rfdetr):
        matcher = rfdetr.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
        losses = ["labels", "boxes", "cardinality"]
        options = {"focal_alpha": 0.25, "losses": losses, "group_detr": 13, "ia_bce_loss": True}
        return rfdetr.SetCriterion(7, matcher, {}, **options).train()

    @pytest.mark.parametrize("term", ["loss_labels", "loss_boxes"])
    def test_a_loss_with_another_factor(self, rfdetr, criterion, term, monkeypatch, caplog):
        original = getattr(rfdetr.SetCriterion, term)

        @functools.wraps(original)
        def scaled(self, *args, **kwargs):
            return {name: 1.01 * loss for name, loss in original(self, *args, **kwargs).items()}

        monkeypatch.setattr(rfdetr.SetCriterion, term, scaled)
        rfdetr.accelerate(criterion)
        assert type(criterion) is rfdetr.SetCriterion
        assert type(criterion.matcher) is rfdetr.FastMatcher
        (line,) = [record.getMessage() for record in caplog.records]
        assert "left to rfdetr" in line
        assert "the losses (" in line
        assert "differs by" in line
        rfdetr.accelerate(criterion, check=False)
        assert type(criterion) is rfdetr.FastCriterion

    @pytest.mark.parametrize("factor", [0.9, 1.1])
    @pytest.mark.parametrize("cost", ["cost_class", "cost_bbox", "cost_giou"])
    def test_a_matcher_with_other_weights(self, rfdetr, criterion, cost, factor, monkeypatch):
        for name in {"forward", "_match_many"} & vars(rfdetr.HungarianMatcher).keys():
            original = getattr(rfdetr.HungarianMatcher, name)

            def weighted(self, *args, original=original, **kwargs):
                value = getattr(self, cost)
                setattr(self, cost, factor * value)
                try:
                    return original(self, *args, **kwargs)
                finally:
                    setattr(self, cost, value)

            weighted.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
            monkeypatch.setattr(rfdetr.HungarianMatcher, name, weighted)
        rfdetr.accelerate(criterion)
        assert type(criterion.matcher) is rfdetr.HungarianMatcher
        assert isinstance(criterion, rfdetr.FastCriterion)

    def test_another_cardinality_error(self, rfdetr, criterion, monkeypatch):
        from detr_fast.integrations.rfdetr.comparisons import NUM_GROUPS, random_step

        monkeypatch.setattr(
            rfdetr.SetCriterion, "loss_cardinality", lambda *_, **__: {"cardinality_error": torch.tensor(11.0)}
        )
        rfdetr.accelerate(criterion)
        outputs, targets, _ = random_step(7)
        assert type(criterion) is rfdetr.FastCriterionWithoutCardinality
        criterion.group_detr = NUM_GROUPS
        assert float(criterion(outputs, targets)["cardinality_error_0"]) == 11

    def test_another_attention(self, rfdetr, monkeypatch):
        attention = rfdetr.MSDeformAttn(16, 2, 2, 2)
        monkeypatch.setattr(rfdetr.MSDeformAttn, "forward", _scaled(rfdetr.MSDeformAttn.forward))
        assert type(rfdetr.accelerate(attention)) is rfdetr.MSDeformAttn

        def forward(self, query, reference_points, input_flatten, input_spatial_shapes, input_level_start_index, gate):
            raise NotImplementedError

        monkeypatch.setattr(rfdetr.MSDeformAttn, "forward", forward)
        assert "has the unknown parameter 'gate'" in rfdetr.find_attention().reason


class TestMMDetection:
    """Releases of MMDetection that compute something else, simulated by changing the installed one."""

    @pytest.fixture
    def fast(self, import_or_skip):
        import_or_skip("mmdet")
        from mmengine.registry import init_default_scope

        from detr_fast.integrations import mmdet

        import_or_skip("mmdet.models")
        init_default_scope("mmdet")
        return mmdet

    def test_this_release(self, fast):
        from detr_fast.integrations.mmdet.survey import find_all

        findings = find_all()
        assert len(findings) == 5
        assert all(finding.reason is None for finding in findings)

    @pytest.mark.parametrize("loss", ["loss_cls", "loss_bbox", "loss_iou"])
    def test_a_head_with_another_factor(self, fast, loss, monkeypatch, caplog):
        from mmdet.models.dense_heads import DETRHead
        from mmdet.models.losses import CrossEntropyLoss, GIoULoss, L1Loss

        types = {"loss_cls": CrossEntropyLoss, "loss_bbox": L1Loss, "loss_iou": GIoULoss}
        monkeypatch.setattr(types[loss], "forward", _scaled(types[loss].forward))
        head = fast.FastDETRHead(num_classes=7, embed_dims=16, train_cfg=TRAIN)
        assert type(head) is DETRHead
        assert f"{loss} differs by" in caplog.text
        assert type(fast.FastDETRHead(num_classes=7, embed_dims=16, train_cfg=TRAIN, check=False)) is fast.FastDETRHead

    @pytest.mark.parametrize("factor", [0.9, 1.1])
    @pytest.mark.parametrize("index", range(3))
    def test_an_assigner_with_other_weights(self, fast, index, factor, monkeypatch):
        from mmdet.models.dense_heads import DETRHead
        from mmdet.models.task_modules.assigners import BBoxL1Cost, ClassificationCost, HungarianAssigner, IoUCost

        cost = (ClassificationCost, BBoxL1Cost, IoUCost)[index]
        original = cost.__call__
        monkeypatch.setattr(cost, "__call__", lambda *args, **kwargs: factor * original(*args, **kwargs))
        assert type(fast.FastHungarianAssigner(TRAIN["assigner"]["match_costs"])) is HungarianAssigner
        assert type(fast.FastDETRHead(num_classes=7, embed_dims=16, train_cfg=TRAIN)) is DETRHead

    def test_other_layers(self, fast, monkeypatch):
        from mmcv.ops import MultiScaleDeformableAttention
        from mmdet.models.layers import SinePositionalEncoding

        for host, name, arguments in (
            (SinePositionalEncoding, "FastSinePositionalEncoding", {"num_feats": 8, "normalize": True}),
            (MultiScaleDeformableAttention, "FastMultiScaleDeformableAttention", {"embed_dims": 16}),
        ):
            assert type(getattr(fast, name)(**arguments)) is getattr(fast, name)
            evidence.forget()
            monkeypatch.setattr(host, "forward", _scaled(host.forward))
            assert type(getattr(fast, name)(**arguments)) is host
            module = torch.nn.Sequential(host(**arguments))
            assert type(fast.accelerate(module)[0]) is host


TRAIN = {
    "assigner": {
        "type": "HungarianAssigner",
        "match_costs": [
            {"type": "ClassificationCost", "weight": 1.0},
            {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
            {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
        ],
    }
}


def _doubled(function):
    @functools.wraps(function)
    def doubled(*args, **kwargs):
        return {name: 2 * loss for name, loss in function(*args, **kwargs).items()}

    return doubled


def _scaled(function):
    @functools.wraps(function)
    def scaled(*args, **kwargs):
        return 1.001 * function(*args, **kwargs)

    return scaled


def _family(model):
    from detr_fast.integrations.huggingface.criteria import FAMILIES

    return FAMILIES[model.loss_function.__name__]


def _matcher(model) -> type:
    """The class of the matcher of a model's loss function."""
    from detr_fast.integrations.huggingface.comparisons import loss_arguments
    from detr_fast.integrations.huggingface.rebinding import rebind

    names = model.loss_function.__globals__
    criterion = names[_family(model).criterion]
    built = []

    def keep(*args, **kwargs):
        built.append(criterion(*args, **kwargs))
        return built[-1]

    arguments, _ = loss_arguments(model.loss_function, model.config)
    rebind(model.loss_function, **{_family(model).criterion: keep})(**arguments)
    return type(built[0].matcher)
