"""Export of a DETR to ONNX and to the format of torch.export, checked and with its preprocessing in the metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import detr_fast
from detr_fast.extras import EXTRAS, explaining_missing
from detr_fast.images import MEAN, STD
from detr_fast.models.detr import DETR
from detr_fast.ops.dispatch import use_backend

METADATA = "detr_fast.json"  # the file with the metadata in a .pt2 file
TOLERANCE = 1e-4  # of outputs, as a fraction of their largest magnitude, or of 1 where that is less
_AXES = ("batch", "height", "width")
_OUTPUTS = ("logits", "boxes")

Run = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]


class ExportError(RuntimeError):
    """A model cannot be exported, or the exported file does not compute what the model does."""


def export_model(model: DETR, path: str | Path) -> float:
    """Export a model to a file whose batch size, height and width are dynamic, and check the file.

    The inputs are ``images``, float32 [B,3,H,W], normalized, and ``mask``, bool [B,H,W], True where an image is padded.
    The outputs are those of the last decoder layer: ``logits`` float32 [B,Q,C+1], no-object last, and ``boxes`` float32
    [B,Q,4], cxcywh, as fractions of each image without its padding.

    The metadata are JSON values by their names: ``mean`` and ``std`` of the RGB values in [0,1], ``image_size`` and
    ``max_image_size`` in pixels as for :class:`~detr_fast.models.DETR`, ``categories`` (null, or for each label its
    ``id`` and ``name``), and ``version`` of this package. A .onnx file has them in its metadata properties, a .pt2 file
    in an extra file, ``detr_fast.json``.

    Args:
        model: The model, in any mode and on any device; it is not changed.
        path: The file to write. The suffix .onnx stands for ONNX, which needs the extra ``export``, and .pt2 for
            torch.export.

    Returns:
        The largest difference between the outputs of the file and of the model, as a fraction of the largest magnitude
        of an output or of 1, over batches of several sizes. ONNX is run by ONNX Runtime.

    Raises:
        ExportError: The suffix is another one, PyTorch cannot export the model, or the file's outputs differ from the
            model's by more than 1e-4. A file that was there before is kept.
        ModuleNotFoundError: A package of the extra is missing.
        OSError: The file cannot be written.
    """
    path = Path(path)
    writers = {".onnx": _write_onnx, ".pt2": _write_torch}
    if path.suffix not in writers:
        raise ExportError(f"{path}: the suffix must be .onnx or .pt2, which names the format")
    if path.suffix == ".onnx":
        with explaining_missing("export_model"):
            for module in EXTRAS["export"]:
                import_module(module)
    network = _LastLayer(deepcopy(model).cpu().float().eval())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial.{path.name}")
    try:
        # The operations of the reference are those that all formats have.
        with use_backend(sine_position_encoding="reference"), torch.no_grad():
            program = _trace(network)
            error = _largest_difference(writers[path.suffix](program, _metadata(model), partial), network)
        if not error <= TOLERANCE:
            raise ExportError(f"{path}: the outputs differ from those of the model by {error:.1e} of their magnitude")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return error


class _LastLayer(nn.Module):
    """A DETR with the outputs of its last decoder layer."""

    def __init__(self, model: DETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images, mask)
        return output.pred_logits, output.pred_boxes


def _trace(network: _LastLayer) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {"images": {0: dynamic, 2: dynamic, 3: dynamic}, "mask": {0: dynamic, 1: dynamic, 2: dynamic}}
    try:
        return torch.export.export(network, _inputs(2, 96, 128), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises exceptions of many types
        raise ExportError(f"PyTorch cannot export this model: {error}") from error


def _inputs(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return a batch of noise, of which all images but the first are padded."""
    generator = torch.Generator().manual_seed(height)
    images = torch.randn(batch, 3, height, width, generator=generator)
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[1:, height * 2 // 3 :] = True
    mask[1:, :, width * 3 // 4 :] = True
    return images.masked_fill(mask[:, None], 0), mask


def _largest_difference(run: Run, network: _LastLayer) -> float:
    """Return the largest difference of the outputs on batches of other sizes than the one that was traced."""
    differences = []
    for size in ((1, 128, 128), (3, 130, 97)):
        inputs = _inputs(*size)
        for found, expected in zip(run(*inputs), network(*inputs), strict=True):
            differences.append(float((found - expected).abs().max() / expected.abs().max().clamp(min=1)))
    return float(np.max(differences))  # NaN if one is


def _metadata(model: DETR) -> dict[str, Any]:
    return {
        "mean": MEAN,
        "std": STD,
        "image_size": model.image_size,
        "max_image_size": model.max_image_size,
        "categories": model.categories,
        "version": detr_fast.__version__,
    }


def _write_torch(program: torch.export.ExportedProgram, metadata: dict[str, Any], path: Path) -> Run:
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any], path: Path) -> Run:
    import onnx
    import onnxruntime

    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["images", "mask"], output_names=[*_OUTPUTS]
    )
    if exported is None:
        raise ExportError("PyTorch did not return an ONNX program")
    exported.save(str(path))
    content = onnx.load(str(path))
    _name_axes(content)
    onnx.helper.set_model_props(content, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(content)
    onnx.save(content, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = session.run([*_OUTPUTS], {"images": images.numpy(), "mask": mask.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    return run


def _name_axes(content: Any) -> None:
    """Rename the symbols of the dynamic sizes, such as s31, to batch, height and width, wherever they occur."""
    mask = next(value for value in content.graph.input if value.name == "mask")
    symbols = [dimension.dim_param for dimension in mask.type.tensor_type.shape.dim]
    names = dict(zip(symbols, _AXES, strict=True))
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
    for dimension in _dimensions(content.graph):
        dimension.dim_param = pattern.sub(lambda match: names[match[0]], dimension.dim_param)


def _dimensions(graph: Any) -> Iterator[Any]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                yield dimension
