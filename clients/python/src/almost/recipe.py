"""Recipes: the YAML a person writes, as the message the orchestrator takes."""

from __future__ import annotations

import os
import pathlib
import re

import yaml
from google.protobuf.json_format import ParseDict

from almost.orchestrator.v1.recipe_pb2 import Recipe


class _Loader(yaml.BaseLoader):
    """Reads YAML as `almost run` does: what a scalar is, its field says; no key twice, no key without a value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, object]:
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name}: is set twice", key.start_mark)
            if value.tag == _NULL:
                raise yaml.constructor.ConstructorError(None, None, f"{name}: has no value", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


_BOOL, _NULL = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"
_Loader.add_implicit_resolver(_BOOL, re.compile("^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver(_NULL, re.compile("^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor(_BOOL, lambda loader, node: node.value == "true")


def read_recipe(path: str | os.PathLike[str], *, judge: str = "") -> Recipe:
    """The recipe in `path`, ready for create_run: files that it names, relative to its own folder, are replaced by
    their contents, and the judge "up:judge" by the address `judge`.

    Raises OSError for a file that cannot be read, yaml.YAMLError for what is no YAML or is said twice,
    google.protobuf.json_format.ParseError for a field that is no recipe's, ValueError for text that is not UTF-8, and
    when a judge is wanted and not given.
    """
    path = pathlib.Path(path)
    fields = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must be a map of Recipe's fields")
    recipe = ParseDict(fields, Recipe())

    def text(name: str) -> str:
        return (path.parent / name).read_bytes().decode("utf-8-sig")

    def lines(name: str) -> list[str]:
        return [line.removesuffix("\r") for line in text(name).split("\n") if line.strip()]

    for demonstrations in recipe.demonstrations:
        demonstrations.texts.extend(map(text, demonstrations.paths))
        demonstrations.ClearField("paths")
    if recipe.prompts.prompts_path:
        recipe.prompts.given_prompts.extend(lines(recipe.prompts.prompts_path))
        recipe.prompts.ClearField("prompts_path")
    if recipe.prompts.seed_path:
        recipe.prompts.seed_text = text(recipe.prompts.seed_path)
        recipe.prompts.ClearField("seed_path")
    if recipe.evaluation.prompts_path:
        recipe.evaluation.prompts.extend(lines(recipe.evaluation.prompts_path))
        recipe.evaluation.ClearField("prompts_path")
    if recipe.evaluation.judge_target == "up:judge":
        if not judge:
            raise ValueError("evaluation.judge_target: up:judge needs the address of a judge")
        recipe.evaluation.judge_target = judge
    return recipe
