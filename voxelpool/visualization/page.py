"""Tables and pictures as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ground: #f5f6f8; --card: #fff; --ink: #181b22; --faint: #626976;
  --rule: #dfe3ea; --link: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ground: #101218; --card: #161920; --ink: #e6e9f0;
  --faint: #9ca3b2; --rule: #343944; --link: #6cb8e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 108rem;
  background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0.4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 0.4rem; }
p { margin: 0.3rem 0 0.9rem; max-width: 75ch; color: var(--faint); }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.8rem 0; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.2rem; margin: 0.8rem 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.items { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 38rem), 1fr)); }
figure, .table { margin: 0; padding: 0.8rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
.table { overflow-x: auto; } .wide { grid-column: 1 / -1; justify-self: start; max-width: 100%; }
img { display: block; width: 100%; height: auto; }
.wide img { width: auto; max-width: 100%; }
figcaption { color: var(--faint); font-size: 0.9rem; padding-top: 0.5rem; }
caption { padding-bottom: 0.4rem; font-weight: 600; text-align: left; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.22rem 0.7rem; text-align: right; white-space: nowrap; }
th { color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--rule);
  white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
"""


@dataclass(frozen=True)
class Table:
    """A table of short texts.

    Attributes:
        title: above it.
        head: k headings.
        rows: of k cells each.
        texts: how many columns, from the left, hold words rather than numbers.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture.

    Attributes:
        name: of its file, without an ending.
        image: what is shown.
        alt: what it shows, in words.
        caption: below it.
        dark: what is shown instead where the reader prefers dark pages.
        natural: shown at its own size where there is room, rather than in a column.
    """

    name: str
    image: Image.Image
    alt: str
    caption: str = ""
    dark: Image.Image | None = None
    natural: bool = False

    @cached_property
    def png(self) -> bytes:
        """Its file."""
        return _encoded(self.image)


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it.

    Attributes:
        title: the heading.
        text: below it.
        items: in columns; tables have lines of their own.
        large: fewer columns, for pictures with small writing.
    """

    title: str
    text: str
    items: Sequence[Table | Picture]
    large: bool = False


def page(title: str, facts: Iterable[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Writes a page: a title, facts by name, and sections, with all pictures inside.

    It loads nothing from elsewhere, and says so to the browser; it follows the reader's choice of
    light or dark and the width of the window.
    """
    links = "\n".join(
        f'<a href="#{_anchor(row)}">{escape(section.title)}</a>'
        for row, section in enumerate(sections)
    )
    terms = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    body = "\n".join(_section(row, section) for row, section in enumerate(sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<dl>
{terms}
</dl>
<nav>
{links}
</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _anchor(row: int) -> str:
    return f"section-{row + 1}"


def _section(row: int, section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>\n" if section.text else ""
    items = "\n".join(
        _table(item) if isinstance(item, Table) else _figure(item) for item in section.items
    )
    kind = "items large" if section.large else "items"
    return f"""<section id="{_anchor(row)}">
<h2>{escape(section.title)}</h2>
{text}<div class="{kind}">
{items}
</div>
</section>"""


def _table(table: Table) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="text">{escape(text)}</{tag}>'
            if column < table.texts
            else f"<{tag}>{escape(text)}</{tag}>"
            for column, text in enumerate(texts)
        )

    rows = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return f"""<div class="table wide"><table>
<caption>{escape(table.title)}</caption>
<thead><tr>{cells("th", table.head)}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>"""


def _figure(picture: Picture) -> str:
    image = picture.image
    shown = (
        f'<img src="{_inlined(picture.png)}" alt="{escape(picture.alt)}" '
        f'width="{image.width}" height="{image.height}">'
    )
    if picture.dark is not None:
        dark = _encoded(picture.dark)
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{_inlined(dark)}">'
        shown = f"<picture>{source}{shown}</picture>"
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    wide = ' class="wide"' if picture.natural else ""
    return f"<figure{wide}>{shown}{caption}</figure>"


def _inlined(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
