"""All parts of the installed release of transformers that can be replaced, without a model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import transformers
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING

from detr_fast.integrations.evidence import Finding
from detr_fast.integrations.huggingface.attention import SUBMODULE, function_name
from detr_fast.integrations.huggingface.comparisons import (
    find_assignment,
    find_attention,
    find_encoding,
    find_loss,
    find_matcher,
)
from detr_fast.integrations.huggingface.criteria import FAMILIES
from detr_fast.integrations.huggingface.position import OPTIONS, encoding_options
from detr_fast.integrations.huggingface.rebinding import MATCHER_MODULES

MODELS = (
    "detr",
    "conditional_detr",
    "dab_detr",
    "deformable_detr",
    "table_transformer",
    "rt_detr",
    "rt_detr_v2",
    "d_fine",
    "deimv2",
    "lw_detr",
    "rf_detr",
    "grounding_dino",
    "mm_grounding_dino",
    "omdet_turbo",
    "pp_doclayout_v2",
    "pp_doclayout_v3",
    "pp_doclayout_v4",
    "mask2former",
    "maskformer",
    "oneformer",
)


def find_all() -> list[Finding]:
    """Compare all parts of transformers, with the configurations that it has for new models.

    Returns:
        A finding for each part that this release has.
    """
    findings: list[Finding] = []
    functions: dict[str, Any] = {
        function.__name__: function for function in LOSS_MAPPING.values() if hasattr(function, "__name__")
    }
    for name, family in FAMILIES.items():
        config_type = getattr(transformers, family.config, None)
        if name not in functions or config_type is None:
            continue
        config = config_type()
        findings.append(find_matcher(functions[name], config))
        if family.weights is not None:
            findings += find_loss(functions[name], config)
    for kind in _classes():
        name = kind.__name__
        if name in OPTIONS:
            findings.append(_find_encoding(kind))
        elif name in MATCHER_MODULES:
            findings.append(find_assignment(kind()))
        elif name == SUBMODULE:
            findings.append(find_attention(kind, None))
        elif (function := function_name(kind)) is not None:
            findings.append(find_attention(kind, function))
    return findings


def _classes() -> Iterator[type[nn.Module]]:
    """Yield the modules that the files of the models define."""
    for model in MODELS:
        name = f"transformers.models.{model}.modeling_{model}"
        try:
            file = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if name.startswith(str(error.name)):
                continue  # this release does not have the model
            raise
        for value in vars(file).values():
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == name:
                yield value


def _find_encoding(kind: type[nn.Module]) -> Finding:
    part = f"the encoding of {kind.__name__}"
    try:
        embedding: Any
        if "config" in inspect.signature(kind).parameters:
            config = getattr(transformers, kind.__name__.replace("SinePositionEmbedding", "Config"))
            embedding = kind(config())
        else:
            embedding = kind(8, normalize=True)
        options = encoding_options(embedding)
    except (AttributeError, TypeError) as error:
        return Finding(part, str(error))
    return Finding(part, "its settings are not supported") if options is None else find_encoding(embedding, options)
