"""What the sync and asyncio clients share: requests from plain Python values, batches, and the errors of items."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message as Proto
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from almost.generation.v1.generation_pb2 import CompletionToScore, GenerateItem
from almost.judge.v1.judge_pb2 import Comparison
from almost.reward.v1.reward_pb2 import ScoreItem
from almost.types.v1.content_pb2 import Input, Message, Messages, SamplingParams, TokenIds

MAX_ITEMS = 64  # of one call, as the servers have it
MAX_COMPLETIONS = 1024  # of one Generate call, n over all items
CALLS_IN_FLIGHT = 4  # of one batch that was split
RESUME_EVERY = 0.5  # seconds between attempts to go on with a stream
RESUME_FOR = 60  # seconds without a message after which a stream is given up

# One turn: a message, a (role, content) pair, or the {"role", "content"} of chat datasets.
Turn = Message | tuple[str, str] | Mapping[str, str]
# What a model reads: text as it is, token ids, or an Input.
Prompt = Input | str | Sequence[int]

P = TypeVar("P", bound=Proto)


class ItemError(Exception):
    """One item of a batch that failed; the others may have succeeded (see the response's own items)."""

    def __init__(self, index: int, status: Status):
        super().__init__(f"items[{index}]: {status.message}")
        self.index = index
        self.status = status

    @property
    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self.status.code)


class MixedModels(Exception):
    """The parts of one batch were answered by different weights. Pin them with expected_digest."""


class Damaged(Exception):
    """A file arrived with another SHA-256 than the server's."""


def results(response: Any) -> list[Any]:
    """The results of a batch (GenerateResponse, ScoreCompletionsResponse, ScoreResponse, CompareResponse) in the order
    of its items. Raises ItemError for the first one that failed."""
    for index, item in enumerate(response.items):
        if item.WhichOneof("outcome") == "error":
            raise ItemError(index, item.error)
    return [item.result for item in response.items]


def retry_delay(error: grpc.RpcError) -> float | None:
    """The seconds after which the server asks to try again, on RESOURCE_EXHAUSTED; None where it does not say."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9
    return None


def messages(turns: Iterable[Turn]) -> Messages:
    def message(turn: Turn) -> Message:
        if isinstance(turn, Message):
            return turn
        role, content = turn if isinstance(turn, tuple) else (turn["role"], turn["content"])
        return Message(role=role, content=content)

    return Messages(messages=map(message, turns))


def chat(turns: str | Iterable[Turn]) -> Input:
    """A dialogue for the assistant to answer, written out in the model's own format; a string is one user turn."""
    return Input(messages=messages([("user", turns)] if isinstance(turns, str) else turns))


def to_input(prompt: Prompt) -> Input:
    if isinstance(prompt, Input):
        return prompt
    if isinstance(prompt, bytes):
        raise TypeError("a prompt: must be text or token ids, not bytes")
    return Input(text=prompt) if isinstance(prompt, str) else Input(token_ids=TokenIds(ids=prompt))


def generate_item(prompt: Prompt | GenerateItem) -> GenerateItem:
    return prompt if isinstance(prompt, GenerateItem) else GenerateItem(input=to_input(prompt))


def completion_to_score(item: CompletionToScore | tuple[Prompt, str]) -> CompletionToScore:
    if isinstance(item, CompletionToScore):
        return item
    if isinstance(item, str):
        raise TypeError("an item: must be (prompt, completion), not one text")
    return CompletionToScore(input=to_input(item[0]), completion_text=item[1])


def score_item(item: ScoreItem | tuple[str | Iterable[Turn], str]) -> ScoreItem:
    """From (prompt, response) or (dialogue, response)."""
    if isinstance(item, ScoreItem):
        return item
    if isinstance(item, str):
        raise TypeError("an item: must be (prompt, response), not one text")
    context, response = item
    if isinstance(context, str):
        return ScoreItem(prompt=context, response=response)
    return ScoreItem(dialogue=messages(context), response=response)


def comparison(item: Comparison | tuple[str, str, str]) -> Comparison:
    if isinstance(item, Comparison):
        return item
    if isinstance(item, str):
        raise TypeError("an item: must be (prompt, answer a, answer b), not one text")
    return Comparison(prompt=item[0], a=item[1], b=item[2])


def batches(head: P, items: Iterable[Any], make: Callable[[Any], Any], *, field: str = "items",
            weight: Callable[[Any], int] = lambda item: 0) -> Iterator[P]:
    """Copies of `head` with what `make` makes of each of `items` spread over them: at most MAX_ITEMS each, at most
    MAX_COMPLETIONS by weight. Raises TypeError for one text, of which each character would be an item."""
    if isinstance(items, (str, bytes)):
        raise TypeError(f"{field}: must be a list, not one text; put it into one")
    batch, total = _copy(head), 0
    for item in map(make, items):
        filled = getattr(batch, field)
        if len(filled) == MAX_ITEMS or (filled and total + weight(item) > MAX_COMPLETIONS):
            yield batch
            batch, total = _copy(head), 0
        getattr(batch, field).append(item)
        total += weight(item)
    if getattr(batch, field):
        yield batch


def completions_of(default: SamplingParams | None) -> Callable[[GenerateItem], int]:
    """How many completions an item asks for."""
    def count(item: GenerateItem) -> int:
        sampling = item.sampling if item.HasField("sampling") else default
        return sampling.n if sampling is not None and sampling.HasField("n") else 1

    return count


def merge(whole: Any, part: Any) -> None:
    """Appends the items of one batch's answer to the whole one's. Raises MixedModels."""
    begun = bool(whole.ListFields())
    for field in ("model_digest", "numerics_id", "judge_id"):
        if begun and hasattr(whole, field) and getattr(whole, field) != getattr(part, field):
            raise MixedModels(f"{field}: {getattr(whole, field)} answered first, then {getattr(part, field)}")
    whole.MergeFrom(part)


def worth_resuming(error: grpc.RpcError, seconds_away: float) -> bool:
    return error.code() == grpc.StatusCode.UNAVAILABLE and seconds_away < RESUME_FOR


def after_event(request: Any, event: Any) -> None:
    request.after_sequence = event.sequence


def is_heartbeat(event: Any) -> bool:
    """Whether a RunEvent or JobEvent carries nothing but its sequence."""
    return all(field.name == "sequence" for field, _ in event.ListFields())


def after_chunk(request: Any, chunk: Any) -> None:
    request.offset = chunk.offset + len(chunk.data)


class FileCheck:
    """Whether the chunks of a file, in order, make the file that the server names."""

    def __init__(self) -> None:
        self._hash, self._last = hashlib.sha256(), None

    def take(self, chunk: Any) -> bytes:
        self._hash.update(chunk.data)
        self._last = chunk
        return chunk.data

    def check(self, name: str, path: str) -> None:
        if self._last is not None and self._last.sha256 not in ("", self._hash.hexdigest()):
            raise Damaged(f"{name}/{path}: SHA-256 {self._hash.hexdigest()} arrived, {self._last.sha256} was promised")


def _copy(proto: Any) -> Any:
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy
