"""The reward service as the reward function of other RL frameworks.

TRL: reward_funcs=[trl_reward(Reward("host:50052"), "models/rm")].

verl: custom_reward_function.path=pkg://almost.rewards, .name=compute_score (compute_scores for the batch manager), and
.reward_kwargs={target: "host:50052", model: models/rm}. verl hands reward functions no prompt, so the dataset must carry
it: a string or messages under extra_info["prompt"].

OpenRLHF asks over HTTP: see almost.bridge.

Rewards are normalised scores, or the reward head's own output with raw=True. A score that could not be had raises
(ItemError, grpc.RpcError): a default in its place would teach the policy something untrue.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from almost.channel import token_from
from almost.client import Reward
from almost.requests import results
from almost.reward.v1.reward_pb2 import ScoreResponse
from almost.types.v1.content_pb2 import Message

# Ends of text of common tokenizers, taken off the responses of frameworks that leave them in.
END_TOKENS = ("</s>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<eos>", "<pad>", "<|pad|>")

# What a framework calls a prompt or a completion: a string, or the messages of a conversational dataset.
Turn = Message | Mapping[str, str]
Text = str | Iterable[Turn]
# The same as Reward.score takes it.
Context = str | list[tuple[str, str]]


def rewards_of(response: ScoreResponse, raw: bool) -> list[float]:
    return [result.raw_score if raw else result.score for result in results(response)]


def trl_reward(reward: Reward, model: str, *, expected_digest: str = "", raw: bool = False) -> Callable[..., list[float]]:
    """A reward function for TRL's trainers. `reward` stays the caller's to close."""

    def almost_reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        items = map(trl_item, prompts, completions)
        return rewards_of(reward.score(model, items, expected_digest=expected_digest), raw)

    return almost_reward


def trl_item(prompt: Text, completion: Text) -> tuple[Context, str]:
    """Of a completion in several messages the last is scored, and the others are part of the dialogue."""
    if isinstance(completion, str):
        return _context("prompts", prompt), completion
    *before, last = _turns("completions", completion)
    turns = [("user", prompt)] if isinstance(prompt, str) else _turns("prompts", prompt)
    return turns + before, last[1]


def compute_score(data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, Any] | None = None,
                  *, target: str, model: str, prompt_key: str = "prompt", raw: bool = False, expected_digest: str = "",
                  token_file: str = "", **others: Any) -> float:
    """verl's reward of one sample."""
    items = [verl_item(solution_str, extra_info, prompt_key)]
    return rewards_of(_reward(target, token_file).score(model, items, expected_digest=expected_digest), raw)[0]


def compute_scores(data_sources: Sequence[str], solution_strs: Sequence[str], ground_truths: Sequence[object],
                   extra_infos: Sequence[Mapping[str, Any] | None], *, target: str, model: str, prompt_key: str = "prompt",
                   raw: bool = False, expected_digest: str = "", token_file: str = "", **others: Any) -> list[float]:
    """verl's rewards of a batch."""
    items = [verl_item(solution, extra, prompt_key) for solution, extra in zip(solution_strs, extra_infos, strict=True)]
    return rewards_of(_reward(target, token_file).score(model, items, expected_digest=expected_digest), raw)


def verl_item(solution: str, extra_info: Mapping[str, Any] | None, prompt_key: str) -> tuple[Context, str]:
    if not isinstance(extra_info, Mapping) or prompt_key not in extra_info:
        raise ValueError(f"extra_info.{prompt_key}: the dataset must carry the prompt here; verl hands over no other")
    if not isinstance(solution, str):
        raise ValueError(f"solution_str: must be a string, not {type(solution).__name__}")
    return _context(f"extra_info.{prompt_key}", extra_info[prompt_key]), without_end(solution)


@functools.cache
def _reward(target: str, token_file: str) -> Reward:
    """One channel a process, kept to its end."""
    return Reward(target, token=token_from(token_file) if token_file else None)


def openrlhf_items(queries: Sequence[str], prompts: Sequence[str], template: str) -> list[tuple[str, str]]:
    """(prompt, response) of OpenRLHF's texts: a query is its prompt and the response behind it, and a prompt is the
    user's turn in the run's `template` ("{}" stands for the turn). Raises ValueError naming what does not fit."""
    if len(queries) != len(prompts):
        raise ValueError(f"prompts: as many as query, that is {len(queries)}, not {len(prompts)}")
    before, _, after = template.partition("{}")
    items = []
    for index, (query, prompt) in enumerate(zip(queries, prompts)):
        for field, text in (("query", query), ("prompts", prompt)):
            if not isinstance(text, str):
                raise ValueError(f"{field}[{index}]: must be a string, not {type(text).__name__}")
        start = query.find(prompt.strip())  # a tokenizer may put its first token, or lose a blank, around the prompt
        if start < 0:
            raise ValueError(f"query[{index}]: must contain prompts[{index}]")
        if not (prompt.startswith(before) and prompt.endswith(after)):
            raise ValueError(f"prompts[{index}]: must have the form of --input_template {template!r}")
        turn = prompt[len(before):len(prompt) - len(after)]
        items.append((turn, without_end(query[start + len(prompt.strip()):])))
    return items


def without_end(response: str) -> str:
    """Without the white space around it and the end-of-text tokens behind it."""
    response = response.strip()
    while end := next((token for token in END_TOKENS if response.endswith(token)), None):
        response = response.removesuffix(end).rstrip()
    return response


def _context(field: str, prompt: Text) -> Context:
    return prompt if isinstance(prompt, str) else _turns(field, prompt)


def _turns(field: str, messages: Iterable[Turn]) -> list[tuple[str, str]]:
    """(role, content) of messages; a dataset may also bring them as a numpy array."""
    try:
        turns = [(turn["role"], turn["content"]) if isinstance(turn, Mapping) else (turn.role, turn.content)
                 for turn in messages]
    except (AttributeError, KeyError, TypeError):
        turns = []
    if not turns or not all(isinstance(text, str) for turn in turns for text in turn):
        raise ValueError(f"{field}: must be strings, or messages of role and content")
    return turns
