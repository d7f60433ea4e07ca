"""Weights by short names and URLs, downloaded from a server in the test."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from detr_fast import DETR, cli
from detr_fast.checkpoints.published import PUBLISHED, Published, download
from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.models import BACKBONES, build_detr, convert_checkpoint, read_state_dict

SHAPE = {"hidden_dim": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8, "num_queries": 3}


class Server:
    """Answers requests from a dictionary of contents by paths; the value of "cut" is that number of bytes of them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                if self.path not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: outer.cut])
                self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def add(self, path: str, content: bytes) -> str:
        """Serve the content, under the path with its checksum; returns the URL."""
        path = path.format(hashlib.sha256(content).hexdigest())
        self.files[path] = content
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "home/hub/checkpoints"


@pytest.fixture(scope="module")
def model() -> DETR:
    return DETR(91, backbone="resnet18", **SHAPE).eval()


@pytest.fixture(scope="module")
def content(model, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path.read_bytes()


@pytest.fixture
def url(server, content) -> str:
    return server.add("/detr/detr-r18-{:.8}.pth", content)


def assert_same(found: DETR, expected: DETR) -> None:
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_a_url_is_loaded_and_cached(url, server, model, cache):
    assert_same(DETR.from_pretrained(url), model)
    assert [file.name for file in cache.iterdir()] == [url.rpartition("/")[2]]
    server.stop()
    assert_same(DETR.from_pretrained(url), model)
    assert len(server.requests) == 1
    assert_same(build_detr("resnet18", weights=url), model)
    assert build_detr("resnet18", 7, weights=url).num_classes == 7


@pytest.fixture
def short_name(url, monkeypatch) -> str:
    monkeypatch.setitem(PUBLISHED, "detr_resnet18", Published(url, "someone/detr", "resnet18", 1.0))
    return "detr_resnet18"


def test_a_short_name_is_loaded(short_name, url, model):
    assert_same(DETR.from_pretrained(short_name), model)
    for source in (short_name, url):
        with pytest.raises(CheckpointError, match="trained with backbone='resnet18', but 'resnet34' is given"):
            DETR.from_pretrained(source, backbone="resnet34")


def test_a_published_file_is_recognized_where_it_lies(short_name, url, content, model, tmp_path):
    """The stride and the names of the classes are not in the file."""
    path = tmp_path / url.rpartition("/")[2]
    path.write_bytes(content)
    found = DETR.from_pretrained(path)
    assert_same(found, model)
    assert found.categories
    assert found.categories == DETR.from_pretrained(short_name).categories
    torch.save({"model": model.state_dict(), "epoch": 1}, path)
    assert not DETR.from_pretrained(path).categories  # a file of the same name, and no more


def test_the_commands_take_short_names_and_urls(short_name, url, model, tmp_path):
    from PIL import Image

    from detr_fast.training import DataConfig, ModelConfig
    from detr_fast.training.model import build_model

    image = tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(image)
    for number, source in enumerate((short_name, url)):
        target = tmp_path / f"converted{number}.safetensors"
        for command in (
            ["convert", source, str(target)],
            ["predict", str(image), "--model", source, "--output", str(tmp_path / "drawn")],
        ):
            with pytest.raises(SystemExit) as stopped:
                cli.main(command)
            assert not stopped.value.code, stopped.value.code
        assert_same(DETR.from_pretrained(target), model)
        config = ModelConfig(weights=source, backbone="resnet18", **SHAPE)
        assert_same(
            build_model(config, DataConfig("a", "a.json", "a", "a.json"), [_category(n) for n in range(91)]), model
        )


def _category(number: int):
    from detr_fast.data import Category

    return Category(number, str(number))


def test_the_configuration_of_another_run_is_no_hint(short_name, tmp_path, monkeypatch):
    from detr_fast.training import DataConfig, ModelConfig
    from detr_fast.training.model import build_model

    (tmp_path / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(weights=short_name, backbone="resnet34", **SHAPE)
    with pytest.raises(CheckpointError) as refused:
        build_model(config, DataConfig("a", "a.json", "a", "a.json"), [_category(0)])
    assert "config.yaml" not in str(refused.value)


def test_a_url_without_a_checksum_in_its_name_needs_one(server, content, model, cache):
    url = server.add("/other/model.pth", content)
    with pytest.raises(CheckpointError, match=r"model\.pth: there is no checksum .* append #sha256= and the SHA-256"):
        DETR.from_pretrained(url)
    assert not server.requests
    digest = hashlib.sha256(content).hexdigest()
    for given in (digest, digest[:10].upper()):
        assert_same(DETR.from_pretrained(f"{url}#sha256={given}"), model)
    assert [file.name for file in cache.iterdir()] == [f"model-{digest[:8]}.pth"]
    assert len(server.requests) == 1
    for fragment in ("sha256=0123", "md5=0123456789abcdef", "sha256=" + "g" * 64):
        with pytest.raises(CheckpointError, match="no checksum"):
            download(f"{url}#{fragment}")


@pytest.mark.parametrize("known", ["name", "fragment"])
def test_a_wrong_checksum_is_an_error_that_leaves_nothing(server, content, cache, known):
    url = server.add("/model-01234567.pth" if known == "name" else "/model.pth", content)
    with pytest.raises(CheckpointError, match=r"does not have the SHA-256 01234567\.\.\., and was deleted"):
        DETR.from_pretrained(url if known == "name" else f"{url}#sha256=01234567")
    assert not list(cache.iterdir())


def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(url, server, content, model, cache):
    server.cut = len(content) // 2
    with pytest.raises((CheckpointError, FileNotFoundError)):
        DETR.from_pretrained(url)
    assert not list(cache.iterdir())
    server.cut = None
    assert_same(DETR.from_pretrained(url), model)


def test_a_damaged_file_in_the_cache_is_replaced(url, server, model, cache):
    path = download(url)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert_same(DETR.from_pretrained(url), model)
    assert len(server.requests) == 2


def test_what_cannot_be_reached_is_named(server, url, cache):
    with pytest.raises(FileNotFoundError, match=r"/gone-01234567\.pth cannot be downloaded: .*404"):
        download(url.rpartition("/")[0] + "/gone-01234567.pth")
    server.stop()
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded: .*; on a machine without access"):
        download(url)
    assert not list(cache.iterdir())
    with pytest.raises(FileNotFoundError, match=r"detr-resnet50: there is no .*; did you mean detr_resnet50\?"):
        DETR.from_pretrained("detr-resnet50")


@pytest.mark.parametrize("url", ["ftp://host/a-01234567.pth", "file:///etc/a-01234567.pth", "s3://host/a-01234567.pth"])
def test_other_protocols_are_refused(url):
    with pytest.raises(CheckpointError, match="begin with https:// or http://"):
        DETR.from_pretrained(url)


@pytest.mark.parametrize("path", ["", "/", "/..", "/weights", "/a%2F..", "/a-01234567.zip", "/.pth"])
def test_an_address_of_no_file_of_weights_is_refused(path):
    with pytest.raises(CheckpointError, match="ends with the name of a"):
        download(f"https://host{path}#sha256=0123456789")


@pytest.mark.parametrize(
    "source",
    [
        "https://[host/a-01234567.pth",
        "http://127.0.0.1:1/\xe9-01234567.pth",
        "http://a..b/a-01234567.pth",
        f"http://127.0.0.1:1/{'a' * 300}-01234567.pth",
        "a" * 300,
    ],
)
def test_a_malformed_or_long_name_ends_a_command_with_one_line(source, cache, tmp_path):
    cache.mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", source, str(tmp_path / "converted.pth")])
    assert stopped.value.code.startswith(f"detr-fast: {source}")
    assert "\n" not in stopped.value.code


def test_pickle_in_a_download_is_not_executed(server, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.mkdir, (tmp_path / "executed",))

    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="only pickle can restore"):
        DETR.from_pretrained(server.add("/evil-{:.8}.pth", (tmp_path / "evil.pth").read_bytes()))
    assert not (tmp_path / "executed").exists()


def test_the_classes_of_published_weights_have_names(server, tmp_path, monkeypatch):
    def load(size: int, publisher: str, **options: object) -> list[dict[str, object]]:
        torch.save(DETR(size, backbone="resnet18", **SHAPE).state_dict(), tmp_path / "model.pth")
        url = server.add("/model-{:.8}.pth", (tmp_path / "model.pth").read_bytes())
        monkeypatch.setitem(PUBLISHED, "some_name", Published(url, publisher, "resnet18", 1.0))
        return DETR.from_pretrained("some_name", **options).categories

    raw, contiguous = load(91, "facebookresearch/detr"), load(80, "open-mmlab/mmdetection")
    assert [raw[label]["name"] for label in (0, 1, 12, 13, 17, 90)] == [
        "N/A",
        "person",
        "N/A",
        "stop sign",
        "cat",
        "toothbrush",
    ]
    assert [category["id"] for category in raw] == list(range(91))
    assert contiguous == [category for category in raw if category["name"] != "N/A"]
    assert len(contiguous) == len({category["name"] for category in contiguous}) == 80
    assert load(250, "facebookresearch/detr") == raw  # of panoptic segmentation
    assert load(91, "facebookresearch/detr", num_classes=3) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights_are_described(name):
    entry = PUBLISHED[name]
    assert entry.url.startswith("https://")
    assert entry.checksum in entry.url.rpartition("/")[2]
    assert len(entry.checksum) == 8
    assert entry.backbone in BACKBONES
    assert ("dc5" in entry.url) == entry.backbone.endswith("_dc5") == ("dc5" in name)
    assert ("panoptic" in entry.url) == ("panoptic" in name)


def test_a_directory_is_converted_with_its_configuration(tmp_path):
    from detr_fast.checkpoints.build import read_config

    options = {"num_heads": 2, "activation": "gelu", "norm_between_layers": True, "pre_norm": True}
    categories = [{"id": 3, "name": "cat"}]
    saved = DETR(4, backbone="resnet18", categories=categories, **options, **SHAPE).eval()
    saved.save_pretrained(tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "converted", "huggingface")
    config = read_config(tmp_path / "converted/config.json")
    assert (config["model_type"], config["encoder_attention_heads"], config["id2label"]["0"]) == (
        "table-transformer",
        2,
        "cat",
    )
    loaded = DETR.from_pretrained(tmp_path / "converted")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(images).logits, saved(images).logits)
    assert read_state_dict(tmp_path / "converted/model.safetensors")
    with pytest.raises(CheckpointError, match="trained with num_heads=2, but 8 is given"):
        convert_checkpoint(tmp_path / "saved", tmp_path / "other", "huggingface", num_heads=8)
    DETR(4, backbone="resnet18", position_temperature=20, **SHAPE).save_pretrained(tmp_path / "hot")
    with pytest.raises(CheckpointError, match=r"has position_temperature=10000\.0; this one has .*=20"):
        convert_checkpoint(tmp_path / "hot", tmp_path / "other", "huggingface")


def test_a_number_of_heads_that_does_not_fit_is_not_written(tmp_path):
    DETR(4, backbone="resnet18", num_heads=2, **SHAPE).save_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved/model.safetensors"
    with pytest.raises(CheckpointError, match=r"divisible by num_heads.* num_heads=7"):
        convert_checkpoint(weights, tmp_path / "converted", "huggingface", num_heads=7)
    assert not (tmp_path / "converted").exists()
    convert_checkpoint(weights, tmp_path / "converted.pth", "original", num_heads=7)


def test_a_class_head_for_coco_is_converted_with_the_names(tmp_path):
    names = [{"id": label, "name": f"class {label}"} for label in range(80)]
    DETR(80, backbone="resnet18", categories=names, **SHAPE).save_pretrained(tmp_path / "80")
    convert_checkpoint(tmp_path / "80", tmp_path / "91", "huggingface", num_classes=91)
    convert_checkpoint(tmp_path / "91", tmp_path / "back", "huggingface", num_classes=80)
    raw, contiguous = (DETR.from_pretrained(tmp_path / name).categories for name in ("91", "back"))
    assert [raw[label]["name"] for label in (0, 1, 90)] == ["N/A", "person", "toothbrush"]
    assert [contiguous[label]["name"] for label in (0, 1, 79)] == ["person", "bicycle", "toothbrush"]


@pytest.mark.parametrize("target", ["absent/a.pth", "absent/a.safetensors", "file/a.pth", "directory.pth", "file/a"])
def test_what_cannot_be_written_ends_a_conversion_with_one_line(target, tmp_path):
    DETR(4, backbone="resnet18", **SHAPE).save_pretrained(tmp_path / "saved")
    (tmp_path / "file").touch()
    (tmp_path / "directory.pth").mkdir()
    to = "original" if "." in target else "huggingface"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", str(tmp_path / "saved"), str(tmp_path / target), "--to", to])
    assert stopped.value.code.startswith(f"detr-fast: {tmp_path / target} cannot be written: ")
    assert "\n" not in stopped.value.code


def test_a_conversion_tells_which_settings_are_lost(tmp_path, caplog):
    options = {"num_heads": 2, "activation": "gelu", "image_size": 64, "backbone": "resnet18"}
    saved = DETR(4, **options, **SHAPE).eval()
    saved.save_pretrained(tmp_path / "saved")
    target = tmp_path / "converted.safetensors"
    convert_checkpoint(tmp_path / "saved", target, "original")
    stated = "num_heads=2, activation='gelu', image_size=64"
    assert f"load it with DETR.from_pretrained({str(target)!r}, {stated})" in caplog.text
    loaded = DETR.from_pretrained(target, num_heads=2, activation="gelu", image_size=64)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(images).logits, saved(images).logits)
    caplog.clear()
    convert_checkpoint(tmp_path / "saved", tmp_path / "directory", "huggingface")
    assert f"load it with DETR.from_pretrained({str(tmp_path / 'directory')!r}, image_size=64)" in caplog.text
    caplog.clear()
    DETR(4, backbone="resnet18", **SHAPE).save_pretrained(tmp_path / "default")
    convert_checkpoint(tmp_path / "default", target, "original")
    assert not caplog.records


def test_a_conversion_tells_that_the_stride_is_lost(tmp_path, caplog):
    DETR(4, backbone="resnet50_dc5", **SHAPE).save_pretrained(tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "converted.pth", "original")
    assert "backbone='resnet50_dc5')" in caplog.text


def test_a_stride_that_no_backbone_has_is_refused(tmp_path):
    DETR(4, backbone="resnet18", **SHAPE).save_pretrained(tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "converted", "huggingface_timm")
    config = json.loads((tmp_path / "converted/config.json").read_text())
    config["backbone_config"]["output_stride"] = 8
    (tmp_path / "converted/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="output_stride=8; only 16 and 32"):
        DETR.from_pretrained(tmp_path / "converted")
