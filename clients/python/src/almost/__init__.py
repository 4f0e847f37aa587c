"""Client of the ALMoST services. README.md shows it at work; almost.aio is the same for asyncio.

Generated stubs are where their proto packages are: almost.generation.v1.generation_pb2 and so on.
"""

from almost.channel import DEFAULT_TARGETS, SERVICE_CONFIG, Tls, Token, token_from, up
from almost.client import Almost, Generation, Judge, Orchestrator, Reward, Simulator, Trainer
from almost.recipe import read_recipe
from almost.requests import Damaged, ItemError, MixedModels, chat, results, retry_delay
from almost.types.v1.content_pb2 import SamplingParams

__all__ = [
    "Almost", "DEFAULT_TARGETS", "Damaged", "Generation", "ItemError", "Judge", "MixedModels", "Orchestrator", "Reward",
    "SERVICE_CONFIG", "SamplingParams", "Simulator", "Tls", "Token", "Trainer", "chat", "read_recipe", "results",
    "retry_delay", "token_from", "up",
]
