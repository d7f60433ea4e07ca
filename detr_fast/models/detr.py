"""DETR: a backbone, a transformer, and two heads that predict a set of boxes (https://arxiv.org/abs/2005.12872)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from detr_fast.checkpoints.build import build_from_weights
from detr_fast.checkpoints.state_dict import CheckpointError, save_state_dict
from detr_fast.images import MAX_SIDE, is_side
from detr_fast.models.attention import attention_maps
from detr_fast.models.inference import ImageInput, predict
from detr_fast.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from detr_fast.models.resnet import ResNet, build_backbone
from detr_fast.models.saved_files import HUB_ARGUMENTS, WEIGHTS, describe_run, find_weights
from detr_fast.models.transformer import Transformer
from detr_fast.nn.feed_forward import ACTIVATIONS, MLP, Activation

MAX_LAYERS = 1000  # more take minutes to build, and no DETR has them

# The README.md that save_pretrained writes, which states nothing that only the owner of the model knows.
MODEL_CARD = """---
{{ card_data }}
---

# DETR

A [DETR](https://arxiv.org/abs/2005.12872) object detector, saved by the Python package `detr_fast`:

```python
from detr_fast import DETR

model = DETR.from_pretrained("this directory, or the id of this repository")
detections = model.predict("image.jpg", threshold=0.5)
```

The following sections are for the owner of the model to fill in.

## Training data

Which images and annotations the model was trained on, and which classes it detects.

## Evaluation

Average precision, and the data set on which it was measured.

## License

The terms under which others may use the model; none are assumed.
"""


class DETROutput(NamedTuple):
    """The predictions of all L decoder layers; those of the last layer are the output of the model.

    Attributes:
        logits: Class logits [L,B,Q,C+1], no-object last.
        boxes: Boxes [L,B,Q,4], cxcywh, as fractions of each image without its padding.
    """

    logits: Tensor
    boxes: Tensor

    @property
    def pred_logits(self) -> Tensor:
        """The logits of the last layer, [B,Q,C+1]."""
        return self.logits[-1]

    @property
    def pred_boxes(self) -> Tensor:
        """The boxes of the last layer, [B,Q,4]."""
        return self.boxes[-1]


class DETR(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="detr_fast",
    pipeline_tag="object-detection",
    model_card_template=MODEL_CARD,
):
    """The DETR object detector, initialized with random weights.

    Its state dict has the keys of the checkpoints of facebookresearch/detr.

    Args:
        num_classes: Number of classes C, without no-object. The checkpoints of facebookresearch/detr have 91 classes,
            which are COCO's raw category ids.
        backbone: A name in :data:`detr_fast.models.BACKBONES`, or a module with an attribute ``num_channels`` that maps
            images [B,3,H,W] to features [B,num_channels,h,w]. A module is not saved in the configuration and has to be
            passed to :meth:`from_pretrained` again.
        hidden_dim: Number of features d of the transformer.
        num_heads: Number of attention heads.
        num_encoder_layers: Number of encoder layers; may be 0.
        num_decoder_layers: Number of decoder layers L. Each layer predicts boxes.
        dim_feedforward: Number of hidden features of the feed-forward networks.
        dropout: Dropout probability in the transformer.
        num_queries: Number of queries Q, which is the number of predictions per image.
        position_encoding: ``"sine"`` or ``"learned"``. The five arguments that follow are those of the sine encoding;
            see :func:`detr_fast.ops.sine_position_encoding`.
        position_temperature: Base of the geometric sequence of wavelengths, above 0.
        position_normalize: Whether each axis of the unpadded part of the feature map is mapped to
            ``[0, position_scale]``.
        position_scale: Length of a normalized axis, in radians.
        position_eps: Added to the divisor of the normalization, at least 0.
        position_offset: Added to positions before they are normalized.
        pre_norm: Whether each sublayer normalizes its input instead of its output.
        norm_between_layers: Whether the decoder also normalizes the input of each layer after the first, as the DETR of
            transformers does with ``auxiliary_loss=True``.
        activation: Activation function of the feed-forward networks of the transformer: ``"relu"``, ``"leaky_relu"``,
            ``"elu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``.
        num_ffn_layers: Number of linear layers of each feed-forward network, at least 2. Those after the second have
            the parameters ``linear3``, ``linear4`` and so on, which the checkpoints of facebookresearch/detr lack.
        box_activation: Activation function of the box head.
        num_box_layers: Number of linear layers of the box head, at least 1.
        categories: For each label 0, 1, ... a mapping with the ``id`` and the ``name`` of the category in the data set.
            They are saved in the configuration.
        image_size: Length in pixels to which :meth:`predict` resizes the shorter side of an image.
        max_image_size: Maximum length of the longer side after resizing; None for no limit.

    Raises:
        ValueError: An argument is out of range, or there is no backbone of that name.
    """

    def __init__(
        self,
        num_classes: int = 91,
        *,
        backbone: str | nn.Module = "resnet50",
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        num_queries: int = 100,
        position_encoding: Literal["sine", "learned"] = "sine",
        position_temperature: float = 10000.0,
        position_normalize: bool = True,
        position_scale: float = 2 * math.pi,
        position_eps: float = 1e-6,
        position_offset: float = 0.0,
        pre_norm: bool = False,
        norm_between_layers: bool = False,
        activation: Activation = "relu",
        num_ffn_layers: int = 2,
        box_activation: Activation = "relu",
        num_box_layers: int = 3,
        categories: Sequence[Mapping[str, Any]] | None = None,
        image_size: int = 800,
        max_image_size: int | None = 1333,
    ) -> None:
        super().__init__()
        _check_integers(
            num_classes=(num_classes, 1),
            hidden_dim=(hidden_dim, 4),
            num_heads=(num_heads, 1),
            num_encoder_layers=(num_encoder_layers, 0),
            num_decoder_layers=(num_decoder_layers, 1),
            dim_feedforward=(dim_feedforward, 1),
            num_queries=(num_queries, 1),
            num_ffn_layers=(num_ffn_layers, 2),
            num_box_layers=(num_box_layers, 1),
        )
        for name, number in {
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
            "num_ffn_layers": num_ffn_layers,
            "num_box_layers": num_box_layers,
        }.items():
            if number > MAX_LAYERS:
                raise ValueError(f"{name} must be at most {MAX_LAYERS}, got {number}")
        for name, side in {"image_size": image_size, "max_image_size": max_image_size}.items():
            if not (is_side(side) or (side is None and name == "max_image_size")):
                raise ValueError(f"{name} must be an integer from 1 to {MAX_SIDE}, got {side!r}")
        for name, flag in {
            "pre_norm": pre_norm,
            "norm_between_layers": norm_between_layers,
            "position_normalize": position_normalize,
        }.items():
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        for name, function in {"activation": activation, "box_activation": box_activation}.items():
            if not isinstance(function, str) or function not in ACTIVATIONS:
                raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}, got {function!r}")
        _check_numbers(
            position_temperature=position_temperature,
            position_scale=position_scale,
            position_eps=position_eps,
            position_offset=position_offset,
        )
        if position_eps < 0:
            raise ValueError(f"position_eps must be at least 0, got {position_eps}")
        if hidden_dim % num_heads or hidden_dim % 4:
            raise ValueError(
                f"hidden_dim must be divisible by num_heads, and by 4 for the position encoding; "
                f"got hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability below 1, got {dropout!r}")

        self.num_classes = num_classes
        self.categories = _check_categories(categories, num_classes)
        self.image_size = image_size
        self.max_image_size = max_image_size

        body = _check_backbone(backbone)
        self.backbone = nn.ModuleList(
            [
                nn.ModuleDict({"body": body}),
                _position_encoding(
                    position_encoding,
                    hidden_dim,
                    temperature=position_temperature,
                    normalize=position_normalize,
                    scale=position_scale,
                    eps=position_eps,
                    offset=position_offset,
                ),
            ]
        )
        self.input_proj = nn.Conv2d(int(body.num_channels), hidden_dim, 1)
        self.transformer = Transformer(
            hidden_dim,
            num_heads,
            num_encoder_layers,
            num_decoder_layers,
            dim_feedforward,
            dropout,
            pre_norm,
            norm_between_layers,
            activation,
            num_ffn_layers,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP([*[hidden_dim] * num_box_layers, 4], box_activation)

        # The mixin records arguments that JSON can represent, and the defaults of those that it cannot.
        assert isinstance(self._hub_mixin_config, dict)
        self._hub_mixin_config["backbone"] = backbone if isinstance(backbone, str) else None
        self._hub_mixin_config["categories"] = self.categories

    @property
    def body(self) -> nn.Module:
        """The convolutional network of the backbone, without the position encoding."""
        return self.get_submodule("backbone.0.body")

    def forward(self, images: Tensor, mask: Tensor | None = None) -> DETROutput:
        """Predict classes and boxes for a batch of padded images.

        Args:
            images: Floating point [B,3,H,W], normalized as :func:`detr_fast.images.to_tensor` does.
            mask: Padding mask, bool [B,H,W], True where an image is padded. None if no image is padded.

        Returns:
            Logits [L,B,Q,C+1] and boxes [L,B,Q,4].

        Raises:
            ValueError: The shape or the dtype of images or mask is wrong.
        """
        _check_batch(images, mask)
        inputs = (images, mask) if isinstance(self.body, ResNet) else (images,)
        features = self.body(*inputs)  # [B,C,h,w]
        if mask is None:
            cells = torch.zeros(1, *features.shape[-2:], dtype=torch.bool, device=features.device)
            padding = None
        else:
            cells = F.interpolate(mask[None].float(), size=features.shape[-2:])[0].to(torch.bool)  # [B,h,w]
            padding = cells.flatten(1)
        queries = self.query_embed.weight
        hidden = self.transformer(
            self.input_proj(features).flatten(2).transpose(1, 2),
            self.backbone[1](cells, queries.dtype),
            queries,
            padding,
        )  # [L,B,Q,d]
        return DETROutput(self.class_embed(hidden), self.bbox_embed(hidden).sigmoid())

    def predict(
        self, images: ImageInput | Sequence[ImageInput], *, threshold: float = 0.5, batch_size: int = 4
    ) -> list[dict[str, Any]]:
        """Detect objects in images of any size, in evaluation mode.

        Args:
            images: One image or a sequence of them. Each is a path, a PIL image, an array (uint8 [H,W,3] or [H,W]) or a
                tensor (uint8 [3,H,W], or floating point [3,H,W] in [0,1]), not normalized. The image of a path is
                turned upright by its EXIF orientation; the others are taken as they are.
            threshold: Minimum score of the detections that are returned.
            batch_size: Maximum number of images per forward pass. Only images of the same size after the resize share
                one, so that no image is padded, and none changes the detections in another.

        Returns:
            For each image a dictionary with ``scores`` float [n] in descending order, ``labels`` int64 [n], and
            ``boxes`` float [n,4], xyxy in pixels of the given (upright) image and clipped to it, and ``queries`` int64
            [n], the indices of the queries that detected the objects, all on the CPU; and ``names``, a list of the n
            names of the classes. The name of a label without a category is its number.

        Raises:
            ImageError: An image cannot be read, or its dtype, shape or range is not supported.
            ValueError: ``threshold`` or ``batch_size`` is out of range, or the outputs are not finite.
        """
        detections: list[dict[str, Any]] = predict(
            self,
            images,
            image_size=self.image_size,
            max_image_size=self.max_image_size,
            threshold=threshold,
            batch_size=batch_size,
        )
        names = {label: category["name"] for label, category in enumerate(self.categories or ())}
        for found in detections:
            found["names"] = [names.get(label, str(label)) for label in found["labels"].tolist()]
        return detections

    def attention(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        layer: int = -1,
        part: Literal["encoder", "decoder"] = "decoder",
    ) -> list[Tensor]:
        """Compute the attention weights of a layer for images of any size, in evaluation mode.

        Args:
            images: One image or a sequence of them, as for :meth:`predict`.
            layer: Index of the layer; negative indices count from the last layer.
            part: ``"decoder"`` for the attention of the queries to the image, ``"encoder"`` for that of the cells of
                the feature map to each other.

        Returns:
            For each image a tensor on the CPU, of the h times w cells of its feature map and the model's heads: of the
            decoder [heads,Q,h,w], where the queries of detections are those that :meth:`predict` returns; of the
            encoder [heads,h,w,h,w], the cell that attends first. The weights over the last two dimensions sum to 1.

        Raises:
            ImageError: An image cannot be read, or its dtype, shape or range is not supported.
            ValueError: There is no such part or layer.
        """
        return attention_maps(self, images, layer=layer, part=part)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> DETR:
        """Load a saved model in evaluation mode, from this library or from transformers.

        Args:
            pretrained_model_name_or_path: A directory written by ``save_pretrained``, the output directory of a run, a
                file or a URL of weights, a name of published weights, or the id of a repository on the Hugging Face
                Hub; see :func:`detr_resnet50`. Weights alone do not contain the number of heads; it is 8 unless
                ``num_heads`` is given.
            **kwargs: Arguments of :class:`DETR`, which take precedence over the saved ones, and arguments of
                huggingface_hub (``revision``, ``cache_dir``, ...), which concern repositories of the Hub alone:
                published weights and URLs are downloaded to the cache of ``torch.hub`` also with ``local_files_only``.
                If ``num_classes`` differs from the saved number, all weights but those of the class head are loaded, a
                warning is logged, and the saved categories are dropped. If ``num_queries`` differs, the first queries
                are loaded, as many as both have, and a warning is logged.

        Raises:
            FileNotFoundError: There is neither such a file or directory nor a reachable repository of that name, or a
                download fails.
            CheckpointError: The files cannot be read, do not have the expected checksum, or do not fit the model.
        """
        hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        source = find_weights(pretrained_model_name_or_path, hub_arguments)
        try:
            return build_from_weights(cls, source, kwargs)
        except CheckpointError as error:
            if source.config is None:
                raise CheckpointError(f"{error}{describe_run(source.weights)}") from error
            raise

    def _save_pretrained(self, save_directory: Path) -> None:
        save_state_dict(self.state_dict(), save_directory / WEIGHTS[0])


def _check_integers(**arguments: tuple[Any, int]) -> None:
    """Raise ValueError for an argument, given as (value, minimum), that is not an integer or below the minimum."""
    for name, (value, minimum) in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def _check_numbers(**arguments: Any) -> None:
    """Raise ValueError for an argument that is not a finite number."""
    for name, value in arguments.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # NaN fails the comparison
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def _check_categories(categories: Sequence[Mapping[str, Any]] | None, num_classes: int) -> list[dict[str, Any]] | None:
    """Convert the categories to dictionaries of ``id`` and ``name``; raise ValueError if there are too many."""
    if categories is None:
        return None
    if not isinstance(categories, Sequence) or isinstance(categories, str):
        raise ValueError(f"categories must be a sequence of mappings, got {type(categories).__name__}")
    if len(categories) > num_classes:
        raise ValueError(f"{len(categories)} categories do not fit into {num_classes} classes; raise num_classes")
    for label, category in enumerate(categories):
        if not isinstance(category, Mapping) or not {"id", "name"} <= category.keys():
            raise ValueError(f"category {label} needs an id and a name, got {category!r}")
        if not isinstance(category["id"], int) or not isinstance(category["name"], str):
            raise ValueError(f"the id of category {label} must be an integer and its name a string, got {category!r}")
    return [{"id": category["id"], "name": category["name"]} for category in categories]


def _check_batch(images: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless images are floating point [B,3,H,W] and the mask is bool [B,H,W]."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point [B,3,H,W], got {images.dtype} {list(images.shape)}; "
            "predict accepts images of any size and dtype"
        )
    expected = [images.shape[0], *images.shape[2:]]
    if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != expected):
        raise ValueError(f"mask must be bool {expected}, True = padding; got {mask.dtype} {list(mask.shape)}")


def _check_backbone(backbone: str | nn.Module) -> Any:
    if isinstance(backbone, str):
        return build_backbone(backbone)
    if backbone is None:
        raise ValueError("this model was saved with a custom backbone; pass that module as backbone=")
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "num_channels"):
        raise ValueError("backbone must be a name, or an nn.Module with the attribute num_channels")
    return backbone


def _position_encoding(kind: str, hidden_dim: int, **options: Any) -> nn.Module:
    if kind == "sine":
        return SinePositionEncoding(hidden_dim // 2, **options)
    if kind == "learned":
        return LearnedPositionEncoding(hidden_dim // 2)
    raise ValueError(f"position_encoding must be 'sine' or 'learned', got {kind!r}")
