"""The page of the configuration is whole and up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from voxelpool.config import ClassifierConfig, Config, ExperimentConfig

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("config_page", DOCS / "_config_page.py")
assert spec is not None and spec.loader is not None
config_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(config_page)


def test_page_is_up_to_date() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert text == config_page.page(), "run `python docs/_config_page.py`"


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def fields_below(model: type[BaseModel], path: str) -> list[tuple[str, str, str]]:
    """(block, key, docstring of the block) of all that lies in a model."""
    found = []
    for key, field in model.model_fields.items():
        found.append((path, key, " ".join((model.__doc__ or "").split())))
        for inner in models_in(field.annotation):
            found += fields_below(inner, f"{path}.{key}".lstrip("."))
    return found


@pytest.mark.parametrize("root", [Config, ClassifierConfig, ExperimentConfig])
def test_every_key_has_a_row(root: type[BaseModel]) -> None:
    sections: dict[str, str] = {}
    for part in config_page.page().split("\n## ")[1:]:
        for block in part.split("\n### "):
            heading = block.partition("\n")[0].split("`")
            name = heading[1].removesuffix("[]") if len(heading) > 1 else ""
            sections[name] = sections.get(name, "") + block
    for path, key, about in fields_below(root, ""):
        text = sections[path]
        assert f"\n| `{key}` |" in text or (key == "name" and "`name: " in text), (path, key)
        assert about in text, path


def test_types_and_defaults_are_for_people() -> None:
    text = config_page.page()
    assert "| `lr` | number, > 0 | `0.01` |" in text
    assert "| `range` | 6 of number | **needed** | (x0, y0, z0, x1, y1, z1) |" in text
    assert "| `optimizer` | `sgd`, `adamw` | `sgd` |" in text
    for sign in ("typing.", "Annotated", "PydanticUndefined", "<class"):
        assert sign not in text
