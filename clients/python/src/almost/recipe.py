"""Recipes: the YAML a person writes, as the message the orchestrator takes."""

from __future__ import annotations

import os
import pathlib

import yaml
from google.protobuf.json_format import ParseDict

from almost.orchestrator.v1.recipe_pb2 import Recipe


def read_recipe(path: str | os.PathLike[str], *, judge: str = "") -> Recipe:
    """The recipe in `path`, ready for create_run: files that it names, relative to its own folder, are replaced by
    their contents, and the judge "up:judge" by the address `judge`.

    Raises OSError for a file that cannot be read, google.protobuf.json_format.ParseError for a field that is no
    recipe's, ValueError when a judge is wanted and not given.
    """
    path = pathlib.Path(path)
    recipe = ParseDict(yaml.safe_load(path.read_text(encoding="utf-8")), Recipe())

    def text(name: str) -> str:
        return (path.parent / name).read_bytes().decode("utf-8")

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
