"""Pydantic's complaints as one line that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from redfree.errors import UserError, unknown

Validated = TypeVar("Validated", bound=BaseModel)


class Strict(BaseModel):
    """Frozen, and without fields that the schema does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def without_defaults(model: BaseModel, data: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Serialised data less some fields that are at their defaults, so that hashes from before they existed hold."""
    kinds = type(model).model_fields
    unset = {name for name in fields if getattr(model, name) == kinds[name].get_default(call_default_factory=True)}
    return {name: value for name, value in data.items() if name not in unset}


def validate(kind: type[Validated], data: object, where: str) -> Validated:
    """Builds a model from plain data.

    Args:
        kind: the model.
        data: plain data of a file.
        where: the file, and the part of it, for the message.

    Raises:
        UserError: a field is unknown (the nearest is named), missing or not valid.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # A misspelt field is also a missing one: the spelling is what the user can mend.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: {unknown('field', field, _fields_at(kind, first['loc'][:-1]))}") from None
        # What several fields together violate has no field of its own.
        part = f"field {field}: " if field else ""
        raise UserError(f"{where}: {part}{first['msg'].removeprefix('Value error, ')}") from None


def read_registry(kind: type[Validated], path: Path, section: str) -> Mapping[str, Validated]:
    """Builds a named model from each entry of a section of a YAML file; the entry's key is the field `name`.

    Raises:
        UserError: as `validate`.
    """
    entries = yaml.safe_load(path.read_text("utf-8"))[section]
    known = {name: validate(kind, {"name": name, **entry}, f"{path.name}: {name}") for name, entry in entries.items()}
    return MappingProxyType(known)


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, int) or part not in kind.model_fields:
            continue
        annotation = kind.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        kind = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), kind)
    return [".".join([*(str(p) for p in path), name]) for name in kind.model_fields]
