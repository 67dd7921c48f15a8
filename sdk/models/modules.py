"""The modules of a sentence-transformers folder, and its prompts, as its files list them: read without that library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from reperio.errors import ConfigurationError
from reperio.models.architectures import read_json
from reperio.models.inputs import ROLES, Role, prompt_for

__all__ = ["COMMON", "MODULES", "Module", "read_modules", "read_prompts", "read_routes"]

MODULES, COMMON = "modules.json", "config_sentence_transformers.json"
_AGAIN = "Fetch the checkpoint again."


@dataclass(frozen=True, slots=True)
class Module:
    """One of them.

    Attributes
    ----------
    type
        Where its class is.
    path
        Its folder, inside that of the model.
    """

    type: str
    path: Path

    @property
    def name(self) -> str:
        """Of its class."""
        return self.type.rpartition(".")[2]


def read_modules(folder: Path) -> list[Module]:
    """What ``modules.json`` lists, first to last.

    Raises
    ------
    ConfigurationError
        If it lists none, or a place outside the folder.
    """
    file = folder / MODULES
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error}", _AGAIN) from error
    except ValueError as error:
        raise ConfigurationError(f"{file} is no JSON: {error}", _AGAIN) from error
    entries = cast("list[object]", found) if isinstance(found, list) else []
    if not entries:
        raise ConfigurationError(f"{file} lists no modules.", "Each has a type and a path.")
    return [_module(folder, file, place, entry) for place, entry in enumerate(entries)]


def read_routes(folder: Path) -> dict[str, list[Module]]:
    """The modules of each route of a ``Router``.

    Raises
    ------
    ConfigurationError
        If its file tells none.
    """
    file = folder / "router_config.json"
    told = read_json(file)
    types, structure = told.get("types"), told.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict):
        raise ConfigurationError(f"{file} has no routes.", 'It has "types" and "structure".')
    kinds, out = cast("dict[str, Any]", types), dict[str, list[Module]]()
    for route, names in cast("dict[str, Any]", structure).items():
        if not isinstance(names, list):
            raise ConfigurationError(f"{file} leads {route!r} to {names!r}.", "A route is a list of modules.")
        paths = cast("list[object]", names)
        entries = [{"type": kinds.get(path) if isinstance(path, str) else None, "path": path} for path in paths]
        out[route] = [_module(folder, file, place, entry) for place, entry in enumerate(entries)]
    return out


def _module(folder: Path, file: Path, place: int, entry: object) -> Module:
    told = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    kind, path = told.get("type"), told.get("path")
    if not isinstance(kind, str) or not isinstance(path, str):
        raise ConfigurationError(f"{file} has {entry!r} at place {place}.", "A module has a type and a path, as text.")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigurationError(f"{file.name} names the path {path!r}.", "It must lie in the folder.")
    return Module(kind, folder / path)


def read_prompts(folder: Path) -> dict[Role, str]:
    """The prompts that sentence-transformers puts before queries and documents of this model.

    Raises
    ------
    ConfigurationError
        If they are no texts by name.
    """
    told = read_json(folder / COMMON)
    found: object = told.get("prompts") or {}
    texts = cast("dict[str, Any]", found) if isinstance(found, dict) else {"": found}
    if not all(text is None or isinstance(text, str) for text in texts.values()):
        raise ConfigurationError(f"{folder / COMMON} has the prompts {found!r}.", "They are texts by name.")
    # It has a prompt for both roles at once, an empty one where none was saved: other names are for those who ask.
    prompts: dict[str, Any] = {"query": "", "document": "", **texts}
    model = SimpleNamespace(prompts=prompts, default_prompt_name=told.get("default_prompt_name"))
    return {role: prompt_for(model, role) for role in ROLES}
