"""Fonts for the scripts of captions, of those that matplotlib ships and that are installed."""

from __future__ import annotations

import logging
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

logger = logging.getLogger(__name__)

_PLACEHOLDERS = ("Last Resort High-Efficiency", "Last Resort")  # show the block of a character in place of its shape


def load_font(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Load the font of a text; see :func:`find_font`.

    Args:
        text: The text.
        size: Size of the font in pixels.

    Returns:
        The text to draw, and the font.
    """
    drawable, path = find_font(text)
    return drawable, _open_font(path, size)


def find_font(text: str) -> tuple[str, str]:
    """Find a font that has a glyph for each character of a text.

    That of matplotlib is preferred, which has Latin, Greek, Cyrillic and Arabic letters; then any installed font.

    Args:
        text: The text.

    Returns:
        The text to draw, and the file of the font. In a text for which there is no font, the characters that
        matplotlib's font does not have are replaced by backslash escapes, and a warning is logged once.
    """
    default = font_manager.findfont("DejaVu Sans")
    characters = frozenset(map(ord, text))
    missing = characters - _characters(default)
    path = _find_font(characters) if missing else default
    if path is None:
        _warn_once()
        text = "".join(c.encode("unicode_escape").decode() if ord(c) in missing else c for c in text)
    return text, path or default


@cache
def _find_font(characters: frozenset[int]) -> str | None:
    """Return the file of an installed font with all characters."""
    paths = {entry.fname for entry in font_manager.fontManager.ttflist if entry.name not in _PLACEHOLDERS}
    return next((path for path in sorted(paths) if characters <= _characters(path)), None)


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points for which a font has glyphs; none if it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _open_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _warn_once() -> None:
    logger.warning(
        "no installed font has all characters of the names of the classes, so that some are drawn as escapes; install "
        "a font with these characters, such as Noto Sans CJK"
    )
