"""The services as Python calls them. almost.aio has the same for asyncio, name for name.

Methods take plain values where they do, answer with the protos of proto/almost, and raise grpc.RpcError. `timeout` is
in seconds and bounds a call with all its retries; watching and reading end by themselves and have none. Thread-safe.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import grpc

from almost import requests
from almost.channel import DEFAULT_TARGETS, SERVICES, Tls, Token, metadata, open_channel
from almost.generation.v1 import generation_pb2 as generation
from almost.generation.v1.generation_pb2_grpc import GenerationServiceStub
from almost.judge.v1 import judge_pb2 as judge
from almost.judge.v1.judge_pb2_grpc import JudgeServiceStub
from almost.orchestrator.v1 import orchestrator_pb2 as orchestrator
from almost.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from almost.orchestrator.v1.recipe_pb2 import Recipe
from almost.requests import Prompt, Turn
from almost.reward.v1 import reward_pb2 as reward
from almost.reward.v1.reward_pb2_grpc import RewardServiceStub
from almost.simulator.v1 import simulator_pb2 as simulator
from almost.simulator.v1.simulator_pb2_grpc import SimulatorServiceStub
from almost.trainer.v1 import trainer_pb2 as trainer
from almost.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from almost.types.v1 import model_pb2 as model_types
from almost.types.v1.content_pb2 import SamplingParams

T = TypeVar("T")


class Client:
    """One service. `stub` is gRPC's own, for what the methods leave out; it needs `metadata()` when there is a token."""

    _stub_class: ClassVar[type[Any]]

    def __init__(self, target: str, *, token: Token | None = None, tls: Tls | None = None, timeout: float = 60):
        self.channel = open_channel(target, tls)
        self.stub = self._stub_class(self.channel)
        self._token, self._timeout = token, timeout

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def metadata(self) -> list[tuple[str, str]]:
        return metadata(self._token)

    def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        return method(request, timeout=timeout or self._timeout, metadata=self.metadata())

    def _batched(self, method: Any, whole: T, parts: Iterable[Any], timeout: float | None) -> T:
        calls: deque[Any] = deque()
        try:
            for part in parts:
                if len(calls) == requests.CALLS_IN_FLIGHT:
                    requests.merge(whole, calls.popleft().result())
                calls.append(method.future(part, timeout=timeout or self._timeout, metadata=self.metadata()))
            while calls:
                requests.merge(whole, calls.popleft().result())
        finally:
            for call in calls:
                call.cancel()
        return whole

    def _pages(self, method: Any, request: Any, field: str) -> Iterator[Any]:
        while True:
            page = self._call(method, request)
            yield from getattr(page, field)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def _stream(self, method: Any, request: Any, timeout: float | None = None) -> Iterator[Any]:
        call = method(request, timeout=timeout, metadata=self.metadata())
        try:
            yield from call
        finally:
            call.cancel()  # harmless at the end; before it, it tells the server that nobody listens

    def _resumed(self, method: Any, request: Any, advance: Callable[[Any, Any], None]) -> Iterator[Any]:
        """A stream that goes on where it was when the server comes back: `advance` moves the request past a message."""
        away_since = None
        while True:
            try:
                for message in self._stream(method, request):
                    away_since = None
                    advance(request, message)
                    yield message
                return
            except grpc.RpcError as error:
                away_since = away_since or time.monotonic()
                if not requests.worth_resuming(error, time.monotonic() - away_since):
                    raise
                time.sleep(requests.RESUME_EVERY)


class _Models(Client):
    """The models that a service holds in memory."""

    def list_models(self) -> Iterator[model_types.Model]:
        return self._pages(self.stub.ListModels, model_types.ListModelsRequest(), "models")

    def get_model(self, name: str) -> model_types.Model:
        return self._call(self.stub.GetModel, model_types.GetModelRequest(name=name))

    def load_model(self, name: str, source: str, *, device: str = "",
                   dtype: model_types.DType = model_types.DTYPE_UNSPECIFIED, expected_digest: str = "",
                   timeout: float = 600) -> model_types.Model:
        return self._call(self.stub.LoadModel, model_types.LoadModelRequest(
            name=name, source=source, device=device, dtype=dtype, expected_digest=expected_digest), timeout)

    def unload_model(self, name: str) -> None:
        self._call(self.stub.UnloadModel, model_types.UnloadModelRequest(name=name))


class Generation(_Models):
    _stub_class = GenerationServiceStub

    def generate(self, model: str, prompts: Iterable[Prompt | generation.GenerateItem],
                 sampling: SamplingParams | None = None, *, expected_digest: str = "",
                 timeout: float | None = None) -> generation.GenerateResponse:
        """Completes any number of prompts; requests.results() of the answer are their GenerateItemResults."""
        head = generation.GenerateRequest(model=model, expected_digest=expected_digest, sampling=sampling)
        parts = requests.batches(head, prompts, requests.generate_item,
                                 weight=requests.completions_of(sampling))
        return self._batched(self.stub.Generate, generation.GenerateResponse(), parts, timeout)

    def stream(self, model: str, prompt: Prompt, sampling: SamplingParams | None = None, *, expected_digest: str = "",
               timeout: float | None = None) -> Iterator[generation.StreamGenerateResponse]:
        """The completion's pieces as they come."""
        item = generation.GenerateItem(input=requests.to_input(prompt), sampling=sampling)
        request = generation.StreamGenerateRequest(model=model, expected_digest=expected_digest, item=item)
        return self._stream(self.stub.StreamGenerate, request, timeout or self._timeout)

    def score_completions(self, model: str, items: Iterable[tuple[Prompt, str] | generation.CompletionToScore], *,
                          expected_digest: str = "", timeout: float | None = None) -> generation.ScoreCompletionsResponse:
        """Log-likelihoods of (prompt, completion) pairs."""
        head = generation.ScoreCompletionsRequest(model=model, expected_digest=expected_digest)
        parts = requests.batches(head, items, requests.completion_to_score)
        return self._batched(self.stub.ScoreCompletions, generation.ScoreCompletionsResponse(), parts, timeout)

    def tokenize(self, model: str, prompts: Iterable[Prompt]) -> generation.TokenizeResponse:
        """The ids the model reads and their text, of any number of prompts; token ids are decoded."""
        parts = requests.batches(generation.TokenizeRequest(model=model), prompts, requests.to_input, field="inputs")
        return self._batched(self.stub.Tokenize, generation.TokenizeResponse(), parts, None)


class Reward(_Models):
    _stub_class = RewardServiceStub

    def score(self, model: str, items: Iterable[tuple[str | Iterable[Turn], str] | reward.ScoreItem], *,
              expected_digest: str = "", timeout: float | None = None) -> reward.ScoreResponse:
        """Scores any number of (prompt, response) or (dialogue, response) pairs."""
        head = reward.ScoreRequest(model=model, expected_digest=expected_digest)
        parts = requests.batches(head, items, requests.score_item)
        return self._batched(self.stub.Score, reward.ScoreResponse(), parts, timeout)


class Judge(Client):
    _stub_class = JudgeServiceStub

    def compare(self, items: Iterable[tuple[str, str, str] | judge.Comparison], *,
                timeout: float | None = None) -> judge.CompareResponse:
        """Judges any number of (prompt, answer a, answer b)."""
        parts = requests.batches(judge.CompareRequest(), items, requests.comparison)
        return self._batched(self.stub.Compare, judge.CompareResponse(), parts, timeout)


class Simulator(Client):
    _stub_class = SimulatorServiceStub

    def generate_prompts(self, request: simulator.GeneratePromptsRequest, *,
                         timeout: float = 3600) -> Iterator[simulator.GeneratePromptsResponse]:
        return self._stream(self.stub.GeneratePrompts, request, timeout)

    def simulate_dialogues(self, request: simulator.SimulateDialoguesRequest, *,
                           timeout: float = 3600) -> Iterator[simulator.SimulateDialoguesResponse]:
        return self._stream(self.stub.SimulateDialogues, request, timeout)


class Trainer(Client):
    _stub_class = TrainerServiceStub

    def create_job(self, job_id: str, spec: trainer.JobSpec, *, validate_only: bool = False) -> trainer.Job:
        return self._call(self.stub.CreateJob,
                          trainer.CreateJobRequest(job_id=job_id, spec=spec, validate_only=validate_only))

    def get_job(self, name: str) -> trainer.Job:
        return self._call(self.stub.GetJob, trainer.GetJobRequest(name=name))

    def list_jobs(self) -> Iterator[trainer.Job]:
        return self._pages(self.stub.ListJobs, trainer.ListJobsRequest(), "jobs")

    def cancel_job(self, name: str) -> trainer.Job:
        return self._call(self.stub.CancelJob, trainer.CancelJobRequest(name=name))

    def pause_job(self, name: str) -> trainer.Job:
        return self._call(self.stub.PauseJob, trainer.PauseJobRequest(name=name))

    def resume_job(self, name: str) -> trainer.Job:
        return self._call(self.stub.ResumeJob, trainer.ResumeJobRequest(name=name))

    def watch_job(self, name: str, *, after_sequence: int = 0) -> Iterator[trainer.JobEvent]:
        """Every event from the beginning to the job's end, over restarts of the service, without heartbeats."""
        request = trainer.WatchJobRequest(name=name, after_sequence=after_sequence)
        for event in self._resumed(self.stub.WatchJob, request, requests.after_event):
            if not requests.is_heartbeat(event):
                yield event


class Orchestrator(Client):
    _stub_class = OrchestratorServiceStub

    def create_run(self, run_id: str, recipe: Recipe, *, validate_only: bool = False, recompute: bool = False,
                   priority: int = 0, timeout: float = 1800) -> orchestrator.Run:
        """Starts a run; almost.read_recipe reads a recipe from its YAML. With validate_only the answer's stages have a
        plan. Each model is loaded once to be looked at first, and a run whose client has gone by then is not begun."""
        request = orchestrator.CreateRunRequest(run_id=run_id, recipe=recipe, validate_only=validate_only,
                                                recompute=recompute, priority=priority)
        return self._call(self.stub.CreateRun, request, timeout)

    def get_run(self, name: str) -> orchestrator.Run:
        return self._call(self.stub.GetRun, orchestrator.GetRunRequest(name=name))

    def list_runs(self) -> Iterator[orchestrator.Run]:
        return self._pages(self.stub.ListRuns, orchestrator.ListRunsRequest(), "runs")

    def cancel_run(self, name: str) -> orchestrator.Run:
        return self._call(self.stub.CancelRun, orchestrator.CancelRunRequest(name=name))

    def pause_run(self, name: str) -> orchestrator.Run:
        """Stops a run for now; nothing goes on until resume_run."""
        return self._call(self.stub.PauseRun, orchestrator.PauseRunRequest(name=name))

    def delete_run(self, name: str) -> orchestrator.DeleteRunResponse:
        """Forgets a run that has ended; its artifacts go when nothing else refers to them."""
        return self._call(self.stub.DeleteRun, orchestrator.DeleteRunRequest(name=name))

    def resume_run(self, name: str) -> orchestrator.Run:
        return self._call(self.stub.ResumeRun, orchestrator.ResumeRunRequest(name=name))

    def watch_run(self, name: str, *, after_sequence: int = 0) -> Iterator[orchestrator.RunEvent]:
        """Every event from the beginning to the run's end, over restarts of the service, without heartbeats."""
        request = orchestrator.WatchRunRequest(name=name, after_sequence=after_sequence)
        for event in self._resumed(self.stub.WatchRun, request, requests.after_event):
            if not requests.is_heartbeat(event):
                yield event

    def list_artifacts(self, run: str) -> Iterator[orchestrator.Artifact]:
        return self._pages(self.stub.ListArtifacts, orchestrator.ListArtifactsRequest(run=run), "artifacts")

    def read_artifact(self, name: str, path: str) -> Iterator[bytes]:
        """A file's bytes in chunks of at most 1 MiB. Raises requests.Damaged at the end when they are not what was
        promised."""
        file = requests.FileCheck()
        request = orchestrator.ReadArtifactRequest(name=name, path=path)
        for chunk in self._resumed(self.stub.ReadArtifact, request, requests.after_chunk):
            yield file.take(chunk)
        file.check(name, path)

    def get_lineage(self, name: str, *, descendants: bool = False) -> orchestrator.GetLineageResponse:
        return self._call(self.stub.GetLineage, orchestrator.GetLineageRequest(name=name, descendants=descendants))


class Almost:
    """All services of a suite. `targets` overrides DEFAULT_TARGETS by service; "judge" is there when it is given.
    Raises ValueError for a service that there is not."""

    def __init__(self, targets: Mapping[str, str] | None = None, *, token: Token | None = None, tls: Tls | None = None,
                 timeout: float = 60):
        self.targets = {**DEFAULT_TARGETS, **(targets or {})}
        if unknown := self.targets.keys() - SERVICES:
            raise ValueError(f"targets: no service is called {', '.join(sorted(unknown))}; there are {', '.join(SERVICES)}")

        def client(kind: Callable[..., T], service: str) -> T:
            return kind(self.targets[service], token=token, tls=tls, timeout=timeout)

        self.generation = client(Generation, "generation")
        self.reward = client(Reward, "reward")
        self.simulator = client(Simulator, "simulator")
        self.trainer = client(Trainer, "trainer")
        self.orchestrator = client(Orchestrator, "orchestrator")
        if "judge" in self.targets:
            self.judge = client(Judge, "judge")

    def __enter__(self) -> Almost:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for service in self.targets:
            getattr(self, service).close()
