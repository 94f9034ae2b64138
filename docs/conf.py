"""Sphinx builds the manual of these pages: `make docs`."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

import voxelpool

HERE = Path(__file__).parent

project = "voxelpool"
release = version = voxelpool.__version__
copyright = "the authors of voxelpool, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"voxelpool {release}"
html_show_sphinx = False
html_copy_source = False


def read_data_page(app: Sphinx, page: str, text: list[str]) -> None:
    """Shows data/README.md, which lies outside of this folder, as the page ``data``."""
    if page == "data":
        text[0] = (HERE.parent / "data" / "README.md").read_text(encoding="utf-8")
    text[0] = text[0].replace("(../data/README.md)", "(data.md)").replace("(../docs/", "(")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_data_page)
