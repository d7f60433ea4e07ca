"""The weights of DETR that their authors publish, by short names, and their download with a checksum."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from torch.hub import download_url_to_file, get_dir

from detr_fast.checkpoints.coco import coco_categories
from detr_fast.checkpoints.state_dict import CheckpointError

logger = logging.getLogger(__name__)

_DETR = "https://dl.fbaipublicfiles.com/detr/"
_FACEBOOK, _MMDETECTION = "facebookresearch/detr", "open-mmlab/mmdetection"
_MMDET = "https://download.openmmlab.com/mmdetection/"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_FILE_NAME = re.compile(r"\w[\w.+-]*\.(pth|pt|bin|safetensors)")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # as torch.hub names files
_HASH_IN_FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{8,64})")


class Published(NamedTuple):
    """A file of weights.

    Attributes:
        url: The address. The file name has the first digits of the SHA-256 of the file.
        publisher: The repository on GitHub that lists the file and its AP.
        backbone: A name in :data:`detr_fast.models.BACKBONES`.
        ap: Box AP on the 5000 images of COCO's val2017, as published.
        license: The license of the repository.
    """

    url: str
    publisher: str
    backbone: str
    ap: float
    license: str = "Apache-2.0"

    @property
    def checksum(self) -> str:
        """The first digits of the SHA-256 of the file."""
        found = _HASH_IN_NAME.search(self.url)
        assert found is not None
        return found[1]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of DETR that the weights do not tell: the stride of the backbone and the categories.

        Classes of stuff, which come after the others in a model of panoptic segmentation, have no names.
        """
        categories = coco_categories(contiguous=self.publisher == _MMDETECTION)
        return {"backbone": self.backbone, "categories": categories}


PUBLISHED = {
    "detr_resnet50": Published(_DETR + "detr-r50-e632da11.pth", _FACEBOOK, "resnet50", 42.0),
    "detr_resnet50_dc5": Published(_DETR + "detr-r50-dc5-f0fb7ef5.pth", _FACEBOOK, "resnet50_dc5", 43.3),
    "detr_resnet101": Published(_DETR + "detr-r101-2c7b67e5.pth", _FACEBOOK, "resnet101", 43.5),
    "detr_resnet101_dc5": Published(_DETR + "detr-r101-dc5-a2e86def.pth", _FACEBOOK, "resnet101_dc5", 44.9),
    "detr_resnet50_panoptic": Published(_DETR + "detr-r50-panoptic-00ce5173.pth", _FACEBOOK, "resnet50", 38.8),
    "detr_resnet50_dc5_panoptic": Published(
        _DETR + "detr-r50-dc5-panoptic-da08f1b1.pth", _FACEBOOK, "resnet50_dc5", 40.2
    ),
    "detr_resnet101_panoptic": Published(_DETR + "detr-r101-panoptic-40021d53.pth", _FACEBOOK, "resnet101", 40.1),
    "mmdet2_detr_resnet50": Published(
        _MMDET + "v2.0/detr/detr_r50_8x2_150e_coco/detr_r50_8x2_150e_coco_20201130_194835-2c4b8974.pth",
        _MMDETECTION,
        "resnet50",
        40.1,
    ),
    "mmdet3_detr_resnet50": Published(
        _MMDET + "v3.0/detr/detr_r50_8xb2-150e_coco/detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth",
        _MMDETECTION,
        "resnet50",
        39.9,
    ),
}


def find_published(source: str) -> Published | None:
    """Return the published weights of a short name or of a URL; None if there are none."""
    address = source.partition("#")[0]
    return PUBLISHED.get(source) or next((entry for entry in PUBLISHED.values() if entry.url == address), None)


def recognize_published(path: Path) -> Published | None:
    """Return which published weights a file is, by its name and checksum; None if it is none of them."""
    for entry in PUBLISHED.values():
        if PurePosixPath(entry.url).name == path.name and _sha256(path).startswith(entry.checksum):
            return entry
    return None


def is_url(source: str) -> bool:
    """Whether a string begins as a URL does."""
    return _URL.match(source) is not None


def download(url: str) -> Path:
    """Download a file of weights, unless it is in the cache, and verify its checksum in both cases.

    The cache is that of ``torch.hub``, the directory ``checkpoints`` in ``torch.hub.get_dir()``. A download that fails
    leaves nothing there.

    Args:
        url: An address, http:// or https://, of a .pth, .pt, .bin or .safetensors file. Its SHA-256, or at least the
            first 8 digits of it, are in the file name (``name-0123abcd.pth``) or follow the address as
            ``#sha256=0123abcd``.

    Returns:
        The file in the cache.

    Raises:
        CheckpointError: The URL is not of that form, or the file has another checksum.
        FileNotFoundError: The file cannot be downloaded.
    """
    address, _, fragment = url.partition("#")
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise CheckpointError(f"{address} is not a URL: {error}") from error
    if parts.scheme not in ("https", "http"):
        raise CheckpointError(f"{address}: weights are downloaded from addresses that begin with https:// or http://")
    name = PurePosixPath(unquote(parts.path)).name
    if _FILE_NAME.fullmatch(name) is None:
        raise CheckpointError(f"{address}: the address of weights ends with the name of a .pth or .safetensors file")
    checksum = _expected_checksum(address, name, fragment)
    if _HASH_IN_NAME.search(name) is None:  # so that files of the same name do not replace each other
        name = f"{Path(name).stem}-{checksum[:8]}{Path(name).suffix}"
    path = Path(get_dir()) / "checkpoints" / name
    if os.path.isfile(path) and _sha256(path).startswith(checksum):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s to %s", address, path)
    try:
        download_url_to_file(address, str(path), hash_prefix=checksum)
    except RuntimeError as error:  # torch's if the checksum is another one
        raise CheckpointError(
            f"{address}: the file that arrived does not have the SHA-256 {checksum}..., and was deleted: {error}; try "
            "again in case the download was cut short, and otherwise check the address and the checksum"
        ) from error
    except (OSError, HTTPException, UnicodeError) as error:  # the last if the address is not ASCII, or has no host
        raise FileNotFoundError(
            f"{address} cannot be downloaded: {error}; on a machine without access, download the file elsewhere, and "
            f"copy it to {path}"
        ) from error
    return path


def _expected_checksum(address: str, name: str, fragment: str) -> str:
    """Return the first digits of the SHA-256 that the end of a URL or its file name states."""
    found = _HASH_IN_FRAGMENT.fullmatch(fragment) if fragment else _HASH_IN_NAME.search(name)
    if found is None:
        raise CheckpointError(
            f"{address}: there is no checksum with which the download can be verified: append #sha256= and the SHA-256 "
            "of the file, 8 to 64 hexadecimal digits, which its publisher states or `sha256sum` prints"
        )
    return found[1].lower()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
