"""Comparisons of what an integration replaces with what its host library computes, on small random inputs.

A part is compared once per process, when it is first needed. Where both sides agree the integration takes the part;
otherwise the host library keeps it, and one line says why. No release of a host library is accepted or refused by its
number.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast.ops.dispatch import OPS, REFERENCE, BackendError, use_backend

logger = logging.getLogger(__name__)

RELATIVE_TOLERANCE = 1e-4  # of the largest absolute value of a tensor in float32
ABSOLUTE_TOLERANCE = 1e-6

# What the comparisons of all host libraries are made with.
SIZES = (9, 0, 5, 12, 7, 10, 11, 8, 3, 12, 10, 9, 12, 11)  # targets of the images; none is also a case
NUM_QUERIES = 24  # of a group
SHAPES = ((5, 4), (3, 2))  # (height, width) of the levels of an attention


class Disagreement(Exception):
    """A part of a host library that does not compute what its replacement computes."""


@dataclass(frozen=True)
class Finding:
    """The result of a comparison.

    Attributes:
        part: The part, as messages name it.
        reason: Why the host library computes the part; None if it is replaced.
    """

    part: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.part}: {'replaced' if self.reason is None else f'left to the host library, {self.reason}'}"


_findings: dict[Hashable, Finding] = {}


def examine(part: str, compare: Callable[[], None], key: Hashable) -> Finding:
    """Compare a part with its replacement, or return what an earlier comparison found.

    Args:
        part: The part, as messages name it.
        compare: Raises :class:`Disagreement`, or any other exception if the part cannot be computed. It may change
            neither the host library nor a model.
        key: The part and the settings that decide what it computes; equal keys are compared once.

    Returns:
        The finding.
    """
    try:
        known = _findings.get(key)
    except TypeError:  # an unhashable setting
        known, key = None, object()
    if known is None:
        known = _findings[key] = Finding(part, _find_reason(compare))
    return known


def forget() -> None:
    """Forget all comparisons, so that the next use of a part compares it again."""
    _findings.clear()


def _find_reason(compare: Callable[[], None]) -> str | None:
    try:
        with _isolated():
            compare()
    except Disagreement as disagreement:
        return str(disagreement)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return f"the comparison raised {type(error).__name__}: {lines[0]}"
    return None


@contextmanager
def _isolated() -> Iterator[None]:
    """Compute on the CPU in float32 with gradients, whatever the caller has set, and leave its random state alone."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    on_cpu = torch.get_default_device().type == "cpu"
    try:
        with (
            torch.random.fork_rng(devices=[]),
            nullcontext() if on_cpu else torch.device("cpu"),  # which takes time at every call
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            use_backend(**dict.fromkeys(_ops_that_cannot_run(), REFERENCE)),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _ops_that_cannot_run() -> list[str]:
    """Return the ops for which a backend has been chosen, such as Triton, that cannot run on the CPU."""
    names = []
    for op in OPS.values():
        try:
            op.choose(torch.device("cpu"))
        except BackendError:
            names.append(op.public_names[0])
    return names


def check_parameters(function: Callable[..., Any], known: Sequence[str]) -> None:
    """Check that a function of a host library takes no other parameters than its replacement.

    Args:
        function: The function; ``self`` is not counted.
        known: The names of the parameters of the replacement, in order.

    Raises:
        Disagreement: The function has a parameter that is not known, or has them in another order.
    """
    found = [name for name in parameter_names(function) if name != "self"]
    name = getattr(function, "__qualname__", str(function))
    if unknown := [parameter for parameter in found if parameter not in known]:
        raise Disagreement(f"{name} has the unknown parameter {', '.join(map(repr, unknown))}")
    if found != [parameter for parameter in known if parameter in found]:
        raise Disagreement(f"{name} has its parameters in another order: {', '.join(found)}")


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of a function without ``*args`` and ``**kwargs``."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind not in variadic]


def check_close(actual: Mapping[str, Tensor], desired: Mapping[str, Tensor]) -> None:
    """Check that tensors agree up to the rounding of float32.

    Args:
        actual: The tensors of the replacement.
        desired: Those of the host library.

    Raises:
        Disagreement: Names or shapes differ, or values by more than a relative tolerance of 1e-4.
    """
    if actual.keys() != desired.keys():
        raise Disagreement(f"only one side returns {', '.join(sorted(actual.keys() ^ desired.keys()))}")
    for name, value in desired.items():
        if actual[name].shape != value.shape:
            raise Disagreement(f"{name} has the shape {list(value.shape)}, not {list(actual[name].shape)}")
        if not value.numel():
            continue
        difference = float((actual[name].double() - value.double()).abs().max())
        scale = float(value.double().abs().max())
        if not difference <= RELATIVE_TOLERANCE * scale + ABSOLUTE_TOLERANCE:  # also where one of them is NaN
            raise Disagreement(f"{name} differs by {difference:.3g} where its largest value is {scale:.3g}")


def evaluate(losses: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return losses together with the gradients of their sum, for :func:`check_close`.

    Args:
        losses: Scalars, of which those with a gradient are added up.
        leaves: The tensors for which gradients are computed.

    Returns:
        The losses by their names, and "the gradient of NAME" for each leaf; zero where it has no gradient.
    """
    total = torch.stack([loss.sum() for loss in losses.values() if loss.requires_grad]).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    values = {name: loss.detach() for name, loss in losses.items()}
    return values | {
        f"the gradient of {name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def check_attentions(
    fast: nn.Module, host: nn.Module, arguments: Mapping[str, Any], leaves: Mapping[str, Tensor]
) -> None:
    """Check that two attentions agree in their output and in its gradients.

    Args:
        fast: The replacement.
        host: The module of the host library.
        arguments: The arguments of both by their names.
        leaves: The tensors for which gradients are computed, beside the parameters.

    Raises:
        Disagreement: As for :func:`check_close`.
    """
    results = []
    for module in (fast, host):
        output = module(**arguments)
        weighted = {"the output": (output * torch.arange(output.numel()).view(output.shape).cos()).sum()}
        parameters = dict(module.named_parameters())
        results.append({"the values": output.detach()} | evaluate(weighted, {**leaves, **parameters}))
    check_close(*results)


def randomize_sampling(attention: Any) -> None:
    """Give random weights to the layers of an attention for its offsets and weights, which begin with zeros."""
    for layer in (attention.sampling_offsets, attention.attention_weights):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)


def random_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    """Return random boxes of shape [*shape,4], cxcywh in [0,1], inside the image."""
    return torch.rand(*shape, 4, generator=generator) * 0.4 + 0.25


def random_targets(
    sizes: Sequence[int], num_classes: int, generator: torch.Generator, labels: str = "labels"
) -> list[dict[str, Tensor]]:
    """Return random targets: for each image ``boxes`` [t,4], cxcywh in [0,1], and classes [t] named ``labels``."""
    return [
        {
            labels: torch.randint(num_classes, (size,), generator=generator),
            "boxes": random_boxes(size, generator=generator),
        }
        for size in sizes
    ]


def report(package: str, findings: Sequence[Finding]) -> None:
    """Say in one line of the log which parts a host library computes itself.

    Args:
        package: Name of the host library.
        findings: What the comparisons found.
    """
    left = {finding.part: finding.reason for finding in findings if finding.reason is not None}
    if left:
        parts = "; ".join(f"{part} ({reason})" for part, reason in left.items())
        logger.warning("left to %s %s: %s", package, installed_version(package), parts)


def installed_version(package: str) -> str:
    """Return the version of an installed package; "without a version" if it has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "without a version"
