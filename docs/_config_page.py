"""Writes docs/configuration.md from the types and docstrings of voxelpool/config.py.

Usage: python docs/_config_page.py
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from voxelpool import config
from voxelpool.files import atomic_write

PAGE = Path(__file__).with_name("configuration.md")
ROOTS = {
    "Detectors": (config.Config, "`tools/train.py`, `evaluate.py`, `detect.py` and `export.py`"),
    "Classifiers": (config.ClassifierConfig, "`tools/train.py` and `tools/evaluate.py`"),
    "Comparisons": (config.ExperimentConfig, "`tools/compare_pooling.py`"),
}
HEAD = """# Configuration

<!-- Written by docs/_config_page.py from voxelpool/config.py: change it there. -->

A configuration is a YAML file of the keys below; a key that is not here, or a value of another
type, is an error that names it. On the command line `KEY=VALUE` replaces a key, `train.lr=0.001`,
also in a list, by the number of its item: `anchors.0.size=[4.2,1.7,1.6]`. `configs/` holds those
that come along; a tool finds them by name too (`demo` for `configs/demo.yaml`). From Python,
`voxelpool.config.load_config` reads one, `save_config` writes one.
"""


def page() -> str:
    """The page, as Markdown."""
    parts = [HEAD]
    for title, (root, tools) in ROOTS.items():
        parts.append(f"\n## {title}\n\n{doc(root)} For {tools}.\n")
        parts += [section(path, block, tag) for path, block, tag in blocks(root)]
    return "\n".join(parts)


def blocks(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel], str | None]]:
    """(path, block, tag) of a root and all that lies in it; the tag tells members of a union."""
    waiting: list[tuple[str, type[BaseModel], str | None]] = [("", root, None)]
    while waiting:
        path, block, _ = found = waiting.pop(0)
        yield found
        inner = []
        for name, field in block.model_fields.items():
            members = blocks_in(field.annotation)
            place = f"{path}.{name}" if path else name
            if is_list(field.annotation):
                place += "[]"
            inner += [
                (place, member, tag_of(member) if members[1:] else None) for member in members
            ]
        waiting = inner + waiting


def section(path: str, block: type[BaseModel], tag: str | None) -> str:
    """The heading and the table of a block."""
    rows = []
    texts = docstrings(block)
    for name, field in block.model_fields.items():
        kind = "block" if blocks_in(field.annotation) else type_text(field)
        if tag is not None and name == "name":
            continue
        rows.append(f"| `{name}` | {kind} | {default_text(field)} | {texts.get(name, '')} |")
    heading = f"### `{path}`" + (f", `name: {tag}`" if tag else "") + "\n" if path else ""
    about = f"{doc(block)}\n" if path else ""
    table = "| key | type | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    return "\n".join(part for part in (heading, about, table if rows else "") if part)


def blocks_in(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for inner in get_args(annotation) for block in blocks_in(inner)]


def is_list(annotation: Any) -> bool:
    """Whether an annotation is of a list of things."""
    return get_origin(annotation) is tuple


def tag_of(block: type[BaseModel]) -> str:
    """What ``name`` is of a member of a union."""
    (tag,) = get_args(block.model_fields["name"].annotation)
    return str(tag)


def doc(block: type[BaseModel]) -> str:
    """A block's docstring in one line."""
    return one_line(block.__doc__ or "")


def docstrings(block: type[BaseModel]) -> dict[str, str]:
    """The strings below the fields of a block and of those that it is made of."""
    found: dict[str, str] = {}
    for kind in reversed(block.__mro__):
        if not (isinstance(kind, type) and kind.__module__ == config.__name__):
            continue
        (tree,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[field.target.id] = one_line(str(after.value.value))
    return found


def one_line(text: str) -> str:
    """Text of several lines for a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def type_text(field: FieldInfo) -> str:
    """A field's type for people."""
    return text_of(field.annotation, field.metadata)


def text_of(annotation: Any, metadata: list[Any] | None = None) -> str:
    """An annotation for people."""
    if annotation is config.ObjectCounts or get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return text_of(inner, more)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        return " or ".join([text_of(one, metadata) for one in inner] + ["null"])
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if any("dict" in str(one) for one in metadata or ()):
            return "mapping of classes to numbers"
        if inner[-1] is Ellipsis:
            return f"list of {text_of(inner[0])}"
        return f"{len(inner)} of {text_of(inner[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "true, false"}
    bounds = [
        f"{sign} {getattr(one, name):g}"
        for one in flat(metadata or [])
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(one, name, None) is not None
    ]
    return ", ".join([names.get(annotation, str(annotation)), *bounds])


def flat(metadata: list[Any]) -> list[Any]:
    """Constraints, also those inside of a FieldInfo."""
    return [one for part in metadata for one in getattr(part, "metadata", [part])]


def default_text(field: FieldInfo) -> str:
    """A field's default as YAML."""
    if field.is_required():
        return "**needed**" if not blocks_in(field.annotation) else ""
    value = field.default
    if isinstance(value, BaseModel) or (blocks_in(field.annotation) and value != ()):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    if value == "":
        return '`""`'
    if isinstance(value, float) and value != round(value, 6):
        return f"{value:.6g}"
    text = (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )
    if isinstance(value, list) and any(isinstance(one, float) for one in value):
        text = "[" + ", ".join(f"{one:.6g}" for one in value) + "]"
    return f"`{text}`"


if __name__ == "__main__":
    with atomic_write(PAGE) as file:
        file.write(page())
