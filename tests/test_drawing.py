"""Drawings: captions that can be read, in any script, and attention that lies where the weights are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image

from detr_fast import drawing, fonts
from detr_fast.drawing import draw_attention, draw_boxes
from detr_fast.fonts import load_font


@pytest.fixture
def rectangles(monkeypatch):
    """The captions that are placed."""
    placed = []
    place = drawing._place
    monkeypatch.setattr(drawing, "_place", lambda *args: placed.append(place(*args)) or placed[-1])
    return placed


def test_captions_of_the_same_box_do_not_cover_each_other(rectangles):
    image = Image.new("RGB", (640, 480), "gray")
    boxes = torch.tensor([[100.0, 100, 500, 400]]).repeat(8, 1)
    scores = torch.linspace(0.1, 0.9, 8)
    draw_boxes(image, boxes, torch.arange(8), [f"class {k}" for k in range(8)], scores)
    assert len(rectangles) == 8
    assert not any(a.overlaps(b) for k, a in enumerate(rectangles) for b in rectangles[:k])


@pytest.mark.parametrize(
    "box", [[-30.0, -20, 50, 40], [600.0, 460, 700, 520], [0.0, 0, 640, 480], [300, 200, 301, 201]]
)
def test_captions_are_within_the_image(rectangles, box):
    draw_boxes(Image.new("RGB", (640, 480)), torch.tensor([box]), torch.tensor([0]), ["a long name of a class"])
    (caption,) = rectangles
    assert caption.left >= 0
    assert caption.top >= 0
    assert caption.right <= 640
    assert caption.bottom <= 480


def test_an_image_without_room_is_drawn():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(30, 1)
    drawn = draw_boxes(Image.new("RGB", (1, 400)), boxes, torch.arange(30), [], torch.rand(30))
    assert drawn.size == (1, 400)


def test_classes_have_colors_of_their_own():
    colors = {drawing._color(label) for label in range(91)}
    assert len(colors) == 91


@pytest.mark.parametrize("text", ["Käse", "Ёлка", "Ψυχή", "Łódź 0.97"])
def test_letters_of_europe_are_drawn(text):
    drawn, font = load_font(text, 20)
    assert drawn == text
    assert set(map(ord, text)) <= set(FT2Font(font.path).get_charmap())


def test_an_installed_font_is_found_for_other_scripts(monkeypatch):
    """The only installed font with this mathematical letter among those of matplotlib is not the default one."""
    text = "\U0001d49e"
    candidates = {entry.fname for entry in font_manager.fontManager.ttflist}
    having = [path for path in candidates if ord(text) in FT2Font(path).get_charmap()]
    drawn, font = load_font(text, 20)
    assert drawn == text
    assert font.path in having


def test_a_text_without_a_font_is_escaped(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_find_font", lambda characters: None)
    fonts._warn_once.cache_clear()
    for _ in range(2):
        assert load_font("a 猫", 20)[0] == r"a \u732b"
    (record,) = caplog.records
    assert "install a font" in record.message


def test_attention_is_drawn_where_the_weights_are():
    weights = torch.zeros(6, 8)
    weights[4, 6] = 1.0
    drawn = np.asarray(draw_attention(Image.new("RGB", (640, 480), "gray"), weights), dtype=int)
    yellow = drawn[..., 0] - drawn[..., 2]
    row, column = np.unravel_index(yellow.argmax(), yellow.shape)
    assert (row // 80, column // 80) == (4, 6)
    assert yellow[40, 40] < 0 < yellow[360, 520]


def test_the_box_of_the_query_is_drawn():
    box = torch.tensor([10.0, 20, 60, 70])
    drawn = draw_attention(Image.new("RGB", (640, 480), "gray"), torch.ones(3, 4), box)
    assert drawn.getpixel((10, 40)) == (255, 255, 255)
    assert drawn.getpixel((100, 40)) != (255, 255, 255)


def test_small_images_are_enlarged():
    drawn = draw_attention(Image.new("L", (64, 32)), torch.ones(1, 2), torch.tensor([10.0, 5, 20, 15]))
    assert drawn.size == (320, 160)
    assert drawn.getpixel((50, 50)) == (255, 255, 255)
