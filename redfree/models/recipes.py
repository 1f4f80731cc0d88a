"""Recipes of the shipped models: YAML files in `benchmarks/pretrain`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from redfree.data.procedural.scenes import DOMAINS
from redfree.errors import UserError, unknown
from redfree.models.catalogue import DINO_NANO_ARCHITECTURES, NANO_ARCHITECTURES, SAM2_NANO_ARCHITECTURES
from redfree.models.pretrain import Recipe, pretrain
from redfree.models.pretrain_tokens import TokenRecipe, pretrain_tokens

AnyRecipe = TypeVar("AnyRecipe", Recipe, TokenRecipe)


def read_recipe(path: Path) -> Recipe | TokenRecipe:
    """Reads and checks a recipe.

    Raises:
        UserError: there is no such file, it is not YAML, or a field, model or domain is unknown or not valid.
    """
    data = _read(path)
    models = [*NANO_ARCHITECTURES, *SAM2_NANO_ARCHITECTURES, *DINO_NANO_ARCHITECTURES]
    for field, known in (("model", models), ("domain", list(DOMAINS))):
        if field in data and data[field] not in known:
            raise UserError(f"{path}: {unknown(field, str(data[field]), known)}")
    if data.get("model") in DINO_NANO_ARCHITECTURES:
        return _checked(TokenRecipe, data, path)
    return _checked(Recipe, data, path)


def follow_recipe(recipe: Recipe | TokenRecipe, out: Path) -> Path:
    """Trains a model, continuing from `out` where an earlier call stopped; returns the path of its weights."""
    return pretrain(recipe, out) if isinstance(recipe, Recipe) else pretrain_tokens(recipe, out)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such recipe")
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a recipe; it needs at least a line `model: NAME`")
    return data


def _checked(kind: type[AnyRecipe], data: dict[str, Any], path: Path) -> AnyRecipe:
    # Pydantic lets a dataclass have fields that it does not know: a misspelt one would be silently unused.
    known = [field.name for field in fields(kind)]
    for name in data:
        if name not in known:
            raise UserError(f"{path}: {unknown('field', str(name), known)}")
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: field {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
