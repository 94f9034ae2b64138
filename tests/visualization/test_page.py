"""The page: what is put in comes out, and nothing in it is taken for HTML."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from voxelpool.visualization import Picture, Section, Table, page

NASTY = '<script>alert("1 & 2")</script>'


def test_texts_are_shown_as_they_are() -> None:
    section = Section(NASTY, NASTY, [Table(NASTY, [NASTY], [[NASTY]])])
    text = page(NASTY, [(NASTY, NASTY)], [section])
    tags, words = [], []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

        def handle_data(self, data: str) -> None:
            words.append(data)

    Parser().feed(text)
    assert "script" not in tags
    assert words.count(NASTY) == 10  # title and heading, fact, link, section, text, table's three


def test_pictures_are_inlined_to_the_pixel() -> None:
    rng = np.random.default_rng(0)
    light, dark = (Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)) for _ in range(2))
    picture = Picture("p", light, 'a "picture"', "caption", dark)
    text = page("t", [], [Section("s", "", [picture])])
    stored = [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'"data:image/png;base64,([^"]*)"', text)
    ]
    assert [image.tobytes() for image in stored] == [dark.tobytes(), light.tobytes()]
    assert 'alt="a &quot;picture&quot;"' in text and 'width="5" height="4"' in text
    assert text.count("prefers-color-scheme: dark") == 2  # the style's and the picture's
