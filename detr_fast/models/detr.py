"""DETR: a backbone, a transformer, and two heads that predict a set of boxes (https://arxiv.org/abs/2005.12872)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from detr_fast.checkpoints.architecture import build_from_weights, from_huggingface_config
from detr_fast.checkpoints.state_dict import CheckpointError, load_weights, read_state_dict
from detr_fast.models.inference import ImageInput, predict
from detr_fast.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from detr_fast.models.resnet import build_backbone
from detr_fast.models.transformer import Transformer

_HUB_ARGUMENTS = (
    "revision",
    "cache_dir",
    "force_download",
    "proxies",
    "resume_download",
    "local_files_only",
    "token",
)  # what the various versions of huggingface_hub hand to _from_pretrained


class DETROutput(NamedTuple):
    """Predictions of all L decoder layers, the last one's being the model's."""

    logits: Tensor  # [L,B,Q,C+1], no-object last
    boxes: Tensor  # [L,B,Q,4], cxcywh, as fractions of each image without its padding

    @property
    def pred_logits(self) -> Tensor:
        """The last layer's logits, [B,Q,C+1]."""
        return self.logits[-1]

    @property
    def pred_boxes(self) -> Tensor:
        """The last layer's boxes, [B,Q,4]."""
        return self.boxes[-1]


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:  # [...,widths[0]] -> [...,widths[-1]]
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DETR(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="detr_fast",
    license="apache-2.0",
    pipeline_tag="object-detection",
):
    """The whole detector, with random weights; its state dict has the keys of the original's checkpoints.

    Args:
        num_classes: C, without no-object. The original's checkpoints have 91, COCO's raw category ids.
        backbone: a name of ``models.BACKBONES``, or a module images [B,3,H,W] -> features [B,num_channels,h,w] with an
            attribute ``num_channels``. Such a module is not saved in the configuration: hand it to
            ``from_pretrained`` again.
        hidden_dim: width d of the transformer.
        num_heads: heads of every attention.
        num_encoder_layers: may be 0.
        num_decoder_layers: L; each predicts boxes.
        dim_feedforward: width of the feed-forward networks.
        dropout: probability, in the transformer only.
        num_queries: Q, the number of predictions per image.
        position_encoding: ``"sine"`` or ``"learned"``.
        pre_norm: normalise before each sublayer instead of after it.
        categories: what the labels 0, 1, ... stand for: mappings with the data set's ``id`` and ``name``. Kept in the
            configuration.
        image_size: pixels to which ``predict`` resizes the shorter side.
        max_image_size: pixels the longer side may have then; None for no limit.

    Raises:
        ValueError: an argument is out of its range, or there is no such backbone.
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
        pre_norm: bool = False,
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
            image_size=(image_size, 1),
            max_image_size=(image_size if max_image_size is None else max_image_size, 1),
        )
        if hidden_dim % num_heads or hidden_dim % 4:
            raise ValueError(
                f"hidden_dim must be divisible by num_heads, and by 4 for the position encoding; "
                f"got hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability below 1, got {dropout!r}")

        self.num_classes = num_classes
        self.categories = _check_categories(categories, num_classes)
        self.image_size = image_size
        self.max_image_size = max_image_size

        body = _check_backbone(backbone)
        self.backbone = nn.ModuleList(
            [nn.ModuleDict({"body": body}), _position_encoding(position_encoding, hidden_dim)]
        )
        self.input_proj = nn.Conv2d(int(body.num_channels), hidden_dim, 1)
        self.transformer = Transformer(
            hidden_dim, num_heads, num_encoder_layers, num_decoder_layers, dim_feedforward, dropout, pre_norm
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP([hidden_dim, hidden_dim, hidden_dim, 4])

        # The mixin records what JSON can hold, and the default in place of what it cannot.
        assert isinstance(self._hub_mixin_config, dict)
        self._hub_mixin_config["backbone"] = backbone if isinstance(backbone, str) else None
        self._hub_mixin_config["categories"] = self.categories

    @property
    def body(self) -> nn.Module:
        """The backbone's network, without the position encoding."""
        return self.get_submodule("backbone.0.body")

    def forward(
        self,
        images: Tensor,  # [B,3,H,W], normalised as by images.to_tensor
        mask: Tensor | None = None,  # bool [B,H,W], True = padding; None: nothing is
    ) -> DETROutput:
        """Predict for a batch of padded images.

        Raises:
            ValueError: images or mask have another shape or dtype.
        """
        _check_batch(images, mask)
        features = self.body(images)  # [B,C,h,w]
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
    ) -> list[dict[str, Tensor]]:
        """Detect objects in pictures of any sizes; see :func:`detr_fast.models.inference.predict`."""
        return predict(self, images, threshold=threshold, batch_size=batch_size)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> DETR:
        """Load what ``save_pretrained`` wrote, ours or transformers', strictly; the model is in evaluation mode then.

        Args:
            pretrained_model_name_or_path: a directory, a repository on the Hugging Face hub, or a file of weights as
                for :func:`detr_resnet50`, which is taken for a DETR of 8 heads unless ``num_heads`` says otherwise.
            **kwargs: arguments of :class:`DETR` in place of the saved ones, and huggingface_hub's own (``revision``,
                ``cache_dir``, ...). With another ``num_classes`` everything but the class head is loaded, a warning
                says so, and the categories saved with the old head are dropped.

        Raises:
            FileNotFoundError: there is no such directory, and no such repository can be reached.
            CheckpointError: the files cannot be read, or do not fit.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            return build_from_weights(cls, path, kwargs)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise _nowhere(pretrained_model_name_or_path) from error
        except JSONDecodeError as error:
            raise CheckpointError(f"{pretrained_model_name_or_path}: config.json is damaged: {error}") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **kwargs: Any) -> DETR:
        hub_arguments = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        if config is None and not Path(model_id).is_dir():
            raise _nowhere(model_id)
        if config is None:
            raise CheckpointError(f"{model_id}: there is no config.json, which says how the model is built")
        if config.get("model_type") == "detr":  # transformers'
            given = {name: value for name, value in kwargs.items() if value != config.get(name)}
            return build_from_weights(cls, _weights_of(model_id, hub_arguments), given, from_huggingface_config(config))
        unknown = sorted(config.keys() - cls._hub_mixin_init_parameters.keys())
        if unknown:
            raise CheckpointError(f"{model_id}: config.json is not a DETR's, it has the unknown keys {unknown}")
        renumbered = kwargs.get("num_classes") != config.get("num_classes")
        if renumbered and kwargs.get("categories") == config.get("categories"):
            kwargs["categories"] = None  # they name the old classes
        model = cls(**kwargs)
        load_weights(model, read_state_dict(_weights_of(model_id, hub_arguments)))
        return model.eval()


def _weights_of(model_id: str, hub_arguments: dict[str, Any]) -> Path:
    if Path(model_id).is_dir():
        return Path(model_id) / "model.safetensors"
    return Path(hf_hub_download(model_id, "model.safetensors", **hub_arguments))


def _nowhere(name: str | Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}: there is no such file or directory, and no repository of that name with a config.json can be reached "
        "on the Hugging Face hub"
    )


def _check_integers(**arguments: tuple[Any, int]) -> None:
    """Raise where an argument, given as (value, least value), is no integer or too small."""
    for name, (value, least) in arguments.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_categories(categories: Sequence[Mapping[str, Any]] | None, num_classes: int) -> list[dict[str, Any]] | None:
    """The categories as plain dictionaries of ``id`` and ``name``; raise where there are more than classes."""
    if categories is None:
        return None
    if len(categories) > num_classes:
        raise ValueError(f"{len(categories)} categories do not fit into {num_classes} classes; raise num_classes")
    for label, category in enumerate(categories):
        if not {"id", "name"} <= category.keys():
            raise ValueError(f"category {label} needs an id and a name, got {dict(category)}")
    return [{"id": int(category["id"]), "name": str(category["name"])} for category in categories]


def _check_batch(images: Tensor, mask: Tensor | None) -> None:
    """Raise where images are not floating point [B,3,H,W], or the mask is not bool [B,H,W]."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point [B,3,H,W], got {images.dtype} {list(images.shape)}; "
            "predict takes pictures as they are"
        )
    expected = [images.shape[0], *images.shape[2:]]
    if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != expected):
        raise ValueError(f"mask must be bool {expected}, True = padding; got {mask.dtype} {list(mask.shape)}")


def _check_backbone(backbone: str | nn.Module) -> Any:
    if isinstance(backbone, str):
        return build_backbone(backbone)
    if backbone is None:
        raise ValueError("this model was saved with a backbone of its own; pass it as backbone= once more")
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "num_channels"):
        raise ValueError("backbone must be a name, or an nn.Module with the attribute num_channels")
    return backbone


def _position_encoding(kind: str, hidden_dim: int) -> nn.Module:
    if kind == "sine":
        return SinePositionEncoding(hidden_dim // 2)
    if kind == "learned":
        return LearnedPositionEncoding(hidden_dim // 2)
    raise ValueError(f"position_encoding must be 'sine' or 'learned', got {kind!r}")
