"""Recipes: a method is a TOML file that lists passes and their options."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxquant.errors import OnnxquantError, first_invalid
from onnxquant.files import packaged_names, packaged_toml, tomllib
from onnxquant.pass_manager import Pass

ENTRY_POINT_GROUP = "onnxquant.passes"
"""Packages add passes of their own under this group: name = "module:Class"."""


class Recipe(BaseModel):
    """A recipe file.

    Attributes:
        description: one line for ``onnxquant recipes``.
        passes: the ``[[pass]]`` tables in order: a name, and options.
        rules: the ``[[rule]]`` tables: how `classify_blocks` is to see certain nodes.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    description: str = ""
    passes: list[dict[str, Any]] = Field(alias="pass")
    rules: list[dict[str, Any]] = Field(alias="rule", default=[])


def recipe_names() -> list[str]:
    """The recipes that come with onnxquant."""
    return packaged_names(__name__)


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of a TOML file of the user's own.

    Raises:
        OnnxquantError: there is none of that name, or the file is not a recipe.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OnnxquantError(
                f"--recipe {name}: can't be read ({getattr(error, 'strerror', None) or error})"
            ) from None
    elif name in recipe_names():
        return Recipe.model_validate(packaged_toml(__name__, name))
    else:
        raise OnnxquantError(
            f"--recipe {name}: unknown; choose one of {', '.join(recipe_names())}, or give the path of a .toml file"
        )
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise OnnxquantError(f"--recipe {name}: not TOML: {error}") from None
    except ValidationError as error:
        raise OnnxquantError(f"--recipe {name}: {first_invalid(error)}") from None


def option_names(recipe: Recipe) -> set[str]:
    """What overrides can set: ``option``, and ``pass.option``."""
    pairs = [(step["name"], option) for step in recipe.passes for option in find_pass(step["name"]).model_fields]
    return {option for _, option in pairs} | {f"{name}.{option}" for name, option in pairs}


def build_passes(recipe: Recipe, overrides: list[str] | None = None) -> list[Pass]:
    """The recipe's passes, their options validated.

    Args:
        recipe: names passes and options.
        overrides: ``pass.option=value`` each, or ``option=value`` for every pass that has the option and isn't named
            with it; the value is read as TOML, or as text where it isn't.

    Raises:
        OnnxquantError: an unknown pass or option, a value out of range.
    """
    changed: dict[str, dict[str, Any]] = {}
    for override in overrides or []:
        target, equals, value = override.partition("=")
        name, _, option = target.strip().rpartition(".")
        if not equals or not option:
            raise OnnxquantError(f"--set {override}: write it as pass.option=value, e.g. quantize_conv_weights.bits=6")
        changed.setdefault(name, {})[option] = _read_value(value.strip())
    names = [str(table.get("name", "")) for table in recipe.passes]
    for option, value in changed.pop("", {}).items():
        having = [name for name in names if option in find_pass(name).model_fields]
        if not having:
            raise OnnxquantError(f"--set {option}: no pass of the recipe has such an option; see `onnxquant passes`")
        for name in having:
            changed[name] = {option: value} | changed.get(name, {})
    for name in changed:
        if name not in names:
            raise OnnxquantError(f"--set {name}: the recipe has no such pass; it has {', '.join(names)}")
    passes = []
    for table, name in zip(recipe.passes, names, strict=True):
        options = {key: value for key, value in table.items() if key != "name"} | changed.get(name, {})
        if name == "classify_blocks" and recipe.rules:
            options["rules"] = recipe.rules
        try:
            passes.append(find_pass(name)(**options))
        except ValidationError as error:
            raise OnnxquantError(f"{name}: {first_invalid(error)}; see `onnxquant passes`") from None
    return passes


def pass_names() -> list[str]:
    """All passes: our own, and those that other packages add."""
    own = [module.name for module in pkgutil.iter_modules(importlib.import_module("onnxquant.passes").__path__)]
    return own + sorted(entry.name for entry in metadata.entry_points(group=ENTRY_POINT_GROUP))


def find_pass(name: str) -> type[Pass]:
    """The class of the pass called `name`.

    Raises:
        OnnxquantError: there is none.
    """
    names = pass_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else "`onnxquant passes` lists them"
        raise OnnxquantError(f"recipe: no pass is called {name!r}; {hint}")
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        loaded: type[Pass] = entry.load()
        return loaded
    module = importlib.import_module(f"onnxquant.passes.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Pass))
    return next(value for value in classes if value.pass_name() == name)


def _read_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
