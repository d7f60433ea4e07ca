"""What transformers computes against what replaces it, part by part, on small random inputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.integrations.evidence import (
    NUM_QUERIES,
    SHAPES,
    SIZES,
    Disagreement,
    Finding,
    check_close,
    check_parameters,
    evaluate,
    examine,
    parameter_names,
    random_boxes,
    random_targets,
)
from detr_fast.integrations.huggingface.attention import attend, attend_submodule
from detr_fast.integrations.huggingface.criteria import FAMILIES, FastLoss
from detr_fast.integrations.huggingface.position import FastEncoding, Options
from detr_fast.integrations.huggingface.rebinding import FastAssignment, rebind

NUM_LAYERS = 3
DENOISING_GROUPS = 2
PADDED = (2, 6, 7)  # the shape of a padding mask

Arguments = tuple[dict[str, Any], dict[str, Tensor]]  # arguments by name, and those with gradients


def find_matcher(function: Callable[..., Any], config: Any) -> Finding:
    """Compare the matching of a loss function of transformers.

    Args:
        function: The loss function.
        config: The configuration of the model.

    Returns:
        The finding. The loss function computes the losses from both matches; they and their gradients are compared.
    """
    return examine(
        f"the matching of {function.__name__}",
        partial(_compare_losses, function, config, FastLoss(function, matcher=True, loss=False)),
        ("matcher", *_identity(function, config)),
    )


def find_loss(function: Callable[..., Any], config: Any) -> list[Finding]:
    """Compare the losses of a loss function of transformers, from its own matches.

    Args:
        function: The loss function.
        config: The configuration of the model.

    Returns:
        The finding about class and box losses and, unless these are left to transformers, that about the cardinality
        error.
    """
    key = _identity(function, config)
    host = FastLoss(function, matcher=False, loss=True, cardinality=False)
    losses = examine(
        f"the losses of {function.__name__}", partial(_compare_losses, function, config, host), ("loss", *key)
    )
    if losses.reason is not None:
        return [losses]
    complete = FastLoss(function, matcher=False, loss=True)
    part = f"the cardinality error of {function.__name__}"
    return [losses, examine(part, partial(_compare_losses, function, config, complete), ("cardinality", *key))]


def _identity(function: Callable[..., Any], config: Any) -> tuple[Hashable, ...]:
    """Return what decides the result of a loss function: the function, and the plain settings of the model."""
    plain = (bool, int, float, str, type(None))
    settings = {name: value for name, value in vars(config).items() if isinstance(value, plain)}
    return (function, config.num_labels, *sorted(settings.items(), key=lambda item: item[0]))


def _compare_losses(function: Callable[..., Any], config: Any, fast: FastLoss) -> None:
    family = fast.family
    if family.criterion not in inspect.unwrap(function).__globals__:
        raise Disagreement(f"this release has no {family.criterion}")
    built: list[nn.Module] = []

    def keep(*args: Any, **kwargs: Any) -> nn.Module:
        built.append(inspect.unwrap(function).__globals__[family.criterion](*args, **kwargs))
        return built[-1]

    arguments, leaves = loss_arguments(function, config)
    torch.manual_seed(0)  # some costs are computed at random points
    desired = _losses(rebind(function, **{family.criterion: keep}), arguments, leaves)
    criterion: Any = built[0]
    check_parameters(type(criterion).forward, ("outputs", "targets"))
    check_parameters(type(criterion.matcher).forward, ("outputs", "targets", "group_detr"))
    if fast.loss:
        check_parameters(type(criterion).get_loss, ("loss", "outputs", "targets", "indices", "num_boxes"))
    torch.manual_seed(0)
    check_close(_losses(fast, arguments, leaves), desired)


def _losses(
    function: Callable[..., Any], arguments: Mapping[str, Any], leaves: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    loss, terms, _ = function(**arguments)
    values = {name: value for name, value in terms.items() if isinstance(value, Tensor)}
    gradients = evaluate({"loss": loss}, leaves)
    return {name: value.detach() for name, value in values.items()} | gradients


def loss_arguments(function: Callable[..., Any], config: Any) -> Arguments:
    """Return random arguments for a loss function of transformers.

    Args:
        function: The loss function.
        config: The configuration of the model.

    Returns:
        The arguments by their names, and those for which gradients are compared.

    Raises:
        Disagreement: The function has a parameter that is not known.
    """
    names = parameter_names(function)
    generator = torch.Generator().manual_seed(0)
    family = FAMILIES[function.__name__]
    num_classes = config.num_labels
    num_logits = num_classes + 1 if family.has_no_object else num_classes
    batch = len(SIZES)
    groups = 1
    if "enc_outputs_class" in names:
        groups = min(config.group_detr, 2)  # the time grows with the square
        config = copy.copy(config)
        config.group_detr = groups
    num_queries = NUM_QUERIES * groups
    denoising: dict[str, Any] | None = None
    if "denoising_meta_values" in names:
        denoising = _denoising_groups()
        num_queries += denoising["dn_num_split"][0]
    phrases: dict[str, Any] = {}
    if "label_maps" in names:
        num_logits = config.max_text_len
        phrases = _phrases(num_classes, num_logits, generator)
    images_first = "enc_topk_logits" in names
    layers = (batch, NUM_LAYERS) if images_first else (NUM_LAYERS, batch)
    leaves: dict[str, Tensor] = {
        "outputs_class": torch.randn(*layers, num_queries, num_logits, generator=generator),
        "outputs_coord": random_boxes(*layers, num_queries, generator=generator),
    }
    if "pred_masks" in names:
        leaves["pred_masks"] = torch.randn(batch, num_queries, 8, 8, generator=generator)
    if "outputs_masks" in names:
        leaves["outputs_masks"] = torch.randn(*layers, num_queries, 8, 8, generator=generator)
        leaves["enc_outputs_masks"] = torch.randn(batch, num_queries, 8, 8, generator=generator)
    for logits, boxes in (
        ("enc_topk_logits", "enc_topk_bboxes"),
        ("enc_outputs_class", "enc_outputs_coord"),
        ("encoder_logits", "encoder_pred_boxes"),
    ):
        if logits in names:
            leaves[logits] = torch.randn(batch, NUM_QUERIES * groups, num_logits, generator=generator)
            leaves[boxes] = random_boxes(batch, NUM_QUERIES * groups, generator=generator)
    if "predicted_corners" in names:
        corners = 4 * (getattr(config, "max_num_bins", 32) + 1)
        leaves["predicted_corners"] = torch.randn(*layers, num_queries, corners, generator=generator)
        leaves["initial_reference_points"] = random_boxes(*layers, num_queries, generator=generator)
    for leaf in leaves.values():
        leaf.requires_grad_()
    labels = random_targets(SIZES, num_classes, generator, labels="class_labels")
    if "pred_masks" in names:
        for image in labels:
            image["masks"] = (torch.rand(len(image["boxes"]), 16, 16, generator=generator) > 0.5).float()
    last = 1 if images_first else 0
    arguments = phrases | {
        "labels": labels,
        "device": torch.device("cpu"),
        "config": config,
        "logits": leaves["outputs_class"].select(last, -1),
        "pred_boxes": leaves["outputs_coord"].select(last, -1),
        "denoising_meta_values": denoising,
        **leaves,
    }
    if unknown := [name for name in names if name not in arguments]:
        raise Disagreement(f"{function.__name__} has the unknown parameter {', '.join(map(repr, unknown))}")
    return {name: arguments[name] for name in names}, {k: v for k, v in leaves.items() if k in names}


def _denoising_groups() -> dict[str, Any]:
    """Return the indices of denoising queries: for each group those of all targets of the largest image."""
    largest = max(SIZES)
    positive = [
        torch.cat([torch.arange(size) + 2 * group * largest for group in range(DENOISING_GROUPS)]) for size in SIZES
    ]
    return {
        "dn_positive_idx": positive,
        "dn_num_group": DENOISING_GROUPS,
        "dn_num_split": [2 * largest * DENOISING_GROUPS, NUM_QUERIES],
    }


def _phrases(num_classes: int, length: int, generator: torch.Generator) -> dict[str, Any]:
    """Return the tokens of each class, of which there is at least one, and those that are no padding."""
    used = length - length // 4
    maps = torch.rand(num_classes, length, generator=generator) > 0.9
    maps[:, used:] = False
    maps[torch.arange(num_classes), torch.arange(num_classes) % used] = True
    text_mask = torch.zeros(len(SIZES), NUM_QUERIES, length, dtype=torch.bool)
    text_mask[..., :used] = True
    return {"label_maps": (maps.long(),) * len(SIZES), "text_mask": text_mask}


def find_assignment(matcher: nn.Module) -> Finding:
    """Compare the assignment of a matcher whose costs transformers computes."""
    settings = {name: value for name, value in vars(matcher).items() if isinstance(value, (bool, int, float))}
    return examine(
        f"the assignment of {type(matcher).__name__}",
        partial(_compare_assignment, matcher),
        ("assignment", type(matcher).forward, *sorted(settings.items())),
    )


def _compare_assignment(matcher: nn.Module) -> None:
    forward = type(matcher).forward
    known = ("masks_queries_logits", "class_queries_logits", "mask_labels", "class_labels")
    check_parameters(forward, known)
    if "linear_sum_assignment" not in inspect.unwrap(forward).__globals__:
        raise Disagreement(f"the module of {type(matcher).__name__} has no linear_sum_assignment")
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {
        "masks_queries_logits": torch.randn(len(SIZES), NUM_QUERIES, 8, 8, generator=generator),
        "class_queries_logits": torch.randn(len(SIZES), NUM_QUERIES, 5, generator=generator),
        "mask_labels": [(torch.rand(size, 16, 16, generator=generator) > 0.5).float() for size in SIZES if size],
        "class_labels": [torch.randint(4, (size,), generator=generator) for size in SIZES if size],
    }
    arguments = {name: value[: len(arguments["mask_labels"])] for name, value in arguments.items()}
    results = []
    for function in (FastAssignment(matcher), partial(forward, matcher)):
        torch.manual_seed(0)  # the costs are computed at random points
        pairs = function(**arguments)
        results.append({f"the matches of image {i}": torch.stack(pair) for i, pair in enumerate(pairs)})
    check_close(*results)


def find_encoding(module: nn.Module, options: Options) -> Finding:
    """Compare a sine position embedding with its replacement, which has the given options."""
    return examine(
        f"the encoding of {type(module).__name__}",
        partial(_compare_encodings, module, FastEncoding(module, options)),
        ("encoding", type(module).forward, *sorted(options.items())),
    )


def _compare_encodings(module: nn.Module, fast: FastEncoding) -> None:
    forward = type(module).forward
    of_features = "pixel_values" in parameter_names(forward)
    check_parameters(forward, ("pixel_values", "pixel_mask") if of_features else ("shape", "device", "dtype", "mask"))
    batch, height, width = PADDED
    valid = torch.ones(PADDED, dtype=torch.bool)
    valid[1, -2:] = False
    valid[1, :, -3:] = False
    features = torch.zeros(batch, 8, height, width)
    given: tuple[Any, ...] = (features, valid)
    if not of_features:
        given = (features.shape, features.device, features.dtype, valid)
    # The arithmetic of an embedding is that of float32 at arguments up to 2 pi: an error of 1e-6 is the usual one.
    check_close({"the encoding": fast(*given)}, {"the encoding": forward(module, *given)})


def find_attention(kind: type[nn.Module], name: str | None) -> Finding:
    """Compare the sampling of a multi-scale deformable attention.

    Args:
        kind: The class of the attention.
        name: The function of the file of the class that samples; None if its ``forward`` is the function.

    Returns:
        The finding about the values and their gradients.
    """
    function = kind.forward if name is None else inspect.unwrap(kind.forward).__globals__[name]
    return examine(
        f"the sampling of {kind.__module__.split('.')[-2]}",
        partial(_compare_sampling, kind, function, name),
        ("attention", function),
    )


def _compare_sampling(kind: type[nn.Module], function: Callable[..., Any], name: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    heads, points, queries, batch = 2, 3, 5, 2
    size = sum(height * width for height, width in SHAPES)
    leaves = {
        "value": torch.randn(batch, size, heads, 4, generator=generator),
        "sampling_locations": torch.rand(batch, queries, heads, len(SHAPES), points, 2, generator=generator),
        "attention_weights": torch.rand(batch, queries, heads, len(SHAPES), points, generator=generator),
    }
    of_points = "num_points_list" in parameter_names(function)
    if of_points:
        leaves["sampling_locations"] = leaves["sampling_locations"].flatten(3, 4)
        leaves["attention_weights"] = leaves["attention_weights"].flatten(3)
    for leaf in leaves.values():
        leaf.requires_grad_()
    shapes = torch.tensor(SHAPES)
    starts = torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    value, locations, weights = leaves.values()
    replacement: Callable[..., Any] = attend if name is not None else attend_submodule
    check_parameters(function, parameter_names(replacement))
    if name is None:
        given: tuple[Any, ...] = (value, shapes, list(SHAPES), starts, locations, weights, 64)
        cases: list[dict[str, Any]] = [{}]
        function = partial(function, kind())
    else:
        given = (value, list(SHAPES), locations, weights)
        cases = [{}]
        if of_points:
            given = (*given, [points] * len(SHAPES))
            cases = [{"method": method} for method in ("default", "discrete")]
    for options in cases:
        results = []
        for sample in (replacement, function):
            output = sample(*given, **options)
            weighted = {"the output": (output * torch.arange(output.numel()).view(output.shape).cos()).sum()}
            results.append({"the values": output.detach()} | evaluate(weighted, leaves))
        check_close(*results)
