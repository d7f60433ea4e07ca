"""The multi-scale deformable attention of transformers, computed by ``multi_scale_deformable_attention``.

The models call it in one of three ways: as a submodule without parameters, as an attribute of the attention module, or
as a function of the attention module's file. Projections, softmax and sampling locations remain those of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detr_fast import ops
from detr_fast.integrations.huggingface.rebinding import rebind

SUBMODULE = "MultiScaleDeformableAttention"
ATTRIBUTE = "ms_deformable_attn_core"  # in D-FINE and DEIMv2
FUNCTIONS = ("multi_scale_deformable_attention_v2", "multi_scale_deformable_attention")


def attend(
    value: Tensor,
    value_spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int] | None = None,
    method: Any = "default",
) -> Tensor:
    """Replaces the functions of transformers; their arguments and results are those of the op."""
    if method == "discrete":  # without a gradient in transformers, where an optimizer decays no parameters without one
        sampling_locations = sampling_locations.detach()
    return ops.multi_scale_deformable_attention(
        value,
        value_spatial_shapes,
        sampling_locations,
        attention_weights,
        points_per_level=num_points_list,
        method=method,
    )


def attend_submodule(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[Sequence[int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Replaces the ``forward`` of the submodule."""
    return attend(value, value_spatial_shapes_list, sampling_locations, attention_weights)


class FastAttention:
    """Replaces the ``forward`` of an attention module that calls a function of its file.

    Args:
        attention: The module.
        name: The name of the function.
    """

    def __init__(self, attention: nn.Module, name: str) -> None:
        self.attention = attention
        self.name = name
        self.forward = rebind(type(attention).forward, **{name: attend})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(self.attention, *args, **kwargs)

    def __reduce__(self) -> tuple[type[FastAttention], tuple[nn.Module, str]]:
        return FastAttention, (self.attention, self.name)


def attentions(model: nn.Module) -> list[tuple[nn.Module, str | None]]:
    """Return the multi-scale deformable attention of a model.

    Args:
        model: A model of transformers, or a part of one.

    Returns:
        Each attention with the function of its file that samples the values; None if the module itself samples them.
    """
    found: list[tuple[nn.Module, str | None]] = []
    for module in model.modules():
        if type(module).__name__ == SUBMODULE and type(module).__module__.startswith("transformers."):
            found.append((module, None))
        elif (name := function_name(type(module))) is not None:
            found.append((module, name))
    return found


def replace_attention(module: nn.Module, name: str | None) -> None:
    """Replace the sampling of an attention that :func:`attentions` found."""
    if name is None:
        module.forward = attend_submodule
    elif hasattr(module, ATTRIBUTE):
        setattr(module, ATTRIBUTE, attend)
    else:
        module.forward = FastAttention(module, name)


def restore_attention(model: nn.Module) -> None:
    """Undo :func:`replace_attention`."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if forward is attend_submodule or isinstance(forward, FastAttention):
            del module.__dict__["forward"]
        elif module.__dict__.get(ATTRIBUTE) is attend:
            name = function_name(type(module))
            assert name is not None
            setattr(module, ATTRIBUTE, type(module).forward.__globals__[name])


def function_name(kind: type[nn.Module]) -> str | None:
    """Return the name of the function in the file of a class that computes its attention; None if there is none."""
    if not kind.__name__.endswith("MultiscaleDeformableAttention"):
        return None
    names = getattr(kind.forward, "__globals__", {})
    return next((name for name in FUNCTIONS if name in names), None)
