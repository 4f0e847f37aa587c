"""What python_client_test.py runs in the environment where the package is installed: python_client_calls.py STORE BIN."""

import asyncio
import collections
import concurrent.futures
import functools
import importlib.util
import inspect
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import urllib.error
import urllib.request

import almost
import grpc
import yaml
from almost import ItemError, SamplingParams, aio, chat, client, requests, results, rewards
from almost.generation.v1 import generation_pb2
from almost.generation.v1.generation_pb2 import CompletionToScore
from almost.orchestrator.v1 import orchestrator_pb2
from almost.reward.v1 import reward_pb2, reward_pb2_grpc
from almost.simulator.v1.simulator_pb2 import GeneratePromptsRequest, ModelRef, SimulateDialoguesRequest
from almost.trainer.v1 import trainer_pb2
from almost.types.v1.content_pb2 import TokenIds
from google.protobuf.any_pb2 import Any
from google.protobuf.json_format import ParseError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

STORE, BIN = map(pathlib.Path, sys.argv[1:])
SERVICES = ("Generation", "Reward", "Simulator", "Trainer", "Orchestrator", "Judge")
RECIPE = "deploy/recipes/world-smoke.yaml"
PROMPT = "What is 2 plus 3?"
PAIRS = [(PROMPT, f"2 plus 3 is {n}.") for n in range(70)]


async def settle(value):
    """What a method of either kind of client comes to, streams as lists."""
    if inspect.isawaitable(value):
        return await value
    if hasattr(value, "__aiter__"):
        return [item async for item in value]
    return list(value) if inspect.isgenerator(value) else value


def methods(kind):
    """{name: signature} of what a client class offers."""
    return {name: inspect.signature(method) for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name not in ("close", "metadata")}


class EveryMethod(unittest.TestCase):
    """One body for both kinds of client."""

    def test_sync(self):
        with almost.Almost(almost.up(STORE)) as suite:
            asyncio.run(self.call_all(suite, "sync"))

    def test_asyncio(self):
        async def main():
            async with aio.Almost(almost.up(STORE)) as suite:
                await self.call_all(suite, "asyncio")

        asyncio.run(main())

    def test_are_the_same(self):
        for service in SERVICES:
            same = [{name: [(p.name, p.kind, p.default, p.annotation) for p in signature.parameters.values()]
                     for name, signature in methods(getattr(module, service)).items()} for module in (client, aio)]
            self.assertEqual(*same)

    async def call_all(self, suite, name):
        called = set()

        async def do(method, *arguments, **options):
            called.add((type(method.__self__).__name__, method.__name__))
            return await settle(method(*arguments, **options))

        # Generation.
        generation, model = suite.generation, f"models/S-{name}"
        loaded = await do(generation.load_model, model, "common/world/models/S")
        self.assertEqual(loaded, await do(generation.get_model, model))
        self.assertIn(loaded, await do(generation.list_models))
        sampling = SamplingParams(seed=7, top_p=0.95, max_new_tokens=20, stop=["\n"])
        many = await do(generation.generate, model, [chat(PROMPT)] * 70, sampling, expected_digest=loaded.digest)
        self.assertEqual(len(results(many)), 70)
        self.assertEqual(many.model_digest, loaded.digest)
        text = results(many)[69].completions[0].text
        pieces = await do(generation.stream, model, chat([("user", PROMPT)]), sampling)
        self.assertEqual("".join(piece.text for piece in pieces), text)
        wide = await do(generation.generate, model, ["Hello"] * 40, SamplingParams(seed=7, max_new_tokens=1, n=32))
        self.assertEqual({len(result.completions) for result in results(wide)}, {32})
        tokens = await do(generation.tokenize, model, [text] * 70)
        ids = list(tokens.inputs[69].token_ids)
        self.assertIn(text.strip(), tokens.inputs[69].text)
        scores = await do(generation.score_completions, model,
                          [(chat([{"role": "user", "content": PROMPT}]), text)] * 69
                          + [CompletionToScore(input=chat(PROMPT), completion_ids=TokenIds(ids=ids))])
        self.assertLess(results(scores)[68].sum_logprob, 0)
        self.assertEqual(len(results(scores)), 70)

        # Simulator.
        ref, seeds = ModelRef(name=model), ["What is 1 plus 1?", "What is 2 plus 2?"]
        attempts = await do(suite.simulator.generate_prompts, GeneratePromptsRequest(
            model=ref, seeds=seeds, num_attempts=3, num_wanted=3, num_shots=2, sampling=sampling))
        self.assertEqual({attempt.attempt for attempt in attempts}, {0, 1, 2})

        # Orchestrator.
        orchestrator = suite.orchestrator
        recipe = almost.read_recipe(RECIPE, judge=suite.targets["judge"])
        checked = await do(orchestrator.create_run, f"{name}-run", recipe, validate_only=True)
        self.assertEqual(checked.recipe.display_name, recipe.display_name)
        run = await do(orchestrator.create_run, f"{name}-run", recipe)
        events = await do(orchestrator.watch_run, run.name)
        self.assertEqual([event.sequence for event in events], list(range(1, len(events) + 1)))
        later = await do(orchestrator.watch_run, run.name, after_sequence=events[-2].sequence)
        self.assertEqual(later, events[-1:])
        run = await do(orchestrator.get_run, run.name)
        self.assertEqual(run.state, orchestrator_pb2.RUN_STATE_SUCCEEDED, run.error)
        self.assertIn(run.name, [each.name for each in await do(orchestrator.list_runs)])
        artifacts = await do(orchestrator.list_artifacts, run.name)
        rm = next(artifact for artifact in artifacts if (artifact.stage, artifact.kind) == ("reward_model", "model"))
        for file in rm.files:  # their SHA-256 is checked as they come
            chunks = await do(orchestrator.read_artifact, rm.name, file.path)
            self.assertEqual(sum(map(len, chunks)), file.size_bytes)
        self.assertIn("prompts", {node.stage for node in (await do(orchestrator.get_lineage, rm.name)).nodes})
        recipe.seed = 99
        other = await do(orchestrator.create_run, f"{name}-other", recipe)
        self.assertEqual((await do(orchestrator.pause_run, other.name)).state, orchestrator_pb2.RUN_STATE_PAUSED_BY_USER)
        self.assertEqual((await do(orchestrator.resume_run, other.name)).state, orchestrator_pb2.RUN_STATE_RUNNING)
        other = await do(orchestrator.cancel_run, other.name)
        self.assertEqual(other.state, orchestrator_pb2.RUN_STATE_CANCELLED)
        self.assertEqual((await do(orchestrator.resume_run, other.name)).state, orchestrator_pb2.RUN_STATE_RUNNING)
        await do(orchestrator.cancel_run, other.name)
        await do(orchestrator.delete_run, other.name)
        self.assertNotIn(other.name, [each.name for each in await do(orchestrator.list_runs)])

        # Reward.
        loaded = await do(suite.reward.load_model, f"models/rm-{name}", rm.name)
        self.assertEqual(loaded, await do(suite.reward.get_model, loaded.name))
        self.assertIn(loaded, await do(suite.reward.list_models))
        scored = results(await do(suite.reward.score, loaded.name, PAIRS))
        dialogue = [("user", PROMPT)], PAIRS[69][1]
        alone = results(await do(suite.reward.score, loaded.name, [dialogue]))
        self.assertEqual(scored[69].raw_score, alone[0].raw_score)
        too_long = await do(suite.reward.score, loaded.name, PAIRS[:66] + [(PROMPT, "much " * 2000)])
        with self.assertRaises(ItemError) as caught:
            results(too_long)
        self.assertEqual((caught.exception.index, caught.exception.code), (66, grpc.StatusCode.OUT_OF_RANGE))
        with self.assertRaises(grpc.RpcError) as refused:
            await do(suite.reward.score, loaded.name, PAIRS, expected_digest="0" * 64)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)

        # Simulator again, now that there is a reward model.
        dialogues = await do(suite.simulator.simulate_dialogues, SimulateDialoguesRequest(
            assistant=ref, user=ref, reward_model=ModelRef(name=loaded.name), sampling=sampling, max_turns=1, shots=1,
            demonstrations=[{"text": pathlib.Path("common/world/data/good-0.txt").read_text()}],
            seeds=[{"prompt_id": i, "prompt": seed} for i, seed in enumerate(seeds)], num_candidates=2,
            response_filter="world", prompt_format="world"))
        self.assertEqual([dialogue.prompt_id for dialogue in dialogues], [0, 1])

        # Trainer.
        spec = trainer_pb2.JobSpec(
            base_model="common/world/models/S", seed=1, optimizer={"learning_rate": 1e-4},
            pretrain={"world_seed": 1, "num_tokens": 1024, "sequence_tokens": 64, "batch_sequences": 4})
        await do(suite.trainer.create_job, f"{name}-job", spec, validate_only=True)
        job = await do(suite.trainer.create_job, f"{name}-job", spec)
        self.assertEqual((await do(suite.trainer.watch_job, job.name))[-1].state, trainer_pb2.JOB_STATE_SUCCEEDED)
        job = await do(suite.trainer.get_job, job.name)
        for end in (suite.trainer.cancel_job, suite.trainer.pause_job, suite.trainer.resume_job):
            self.assertEqual(job, await do(end, job.name))  # harmless when it has ended
        self.assertIn(job.name, [each.name for each in await do(suite.trainer.list_jobs)])

        # Judge.
        verdicts = await do(suite.judge.compare, [(PROMPT, "2 plus 3 is 5.", answer) for _, answer in PAIRS])
        self.assertGreater(results(verdicts)[1].score_a, results(verdicts)[1].score_b)

        # The end.
        await do(suite.reward.unload_model, loaded.name)
        await do(generation.unload_model, model)
        with self.assertRaises(grpc.RpcError) as gone:
            await do(generation.get_model, model)
        self.assertEqual(gone.exception.code(), grpc.StatusCode.NOT_FOUND)
        self.assertEqual(called, {(kind, method) for kind in SERVICES for method in methods(getattr(client, kind))})


class Faults(unittest.TestCase):
    def test_watching_survives_the_service(self):
        with almost.Almost(almost.up(STORE)) as suite:
            recipe = almost.read_recipe(RECIPE, judge=suite.targets["judge"])
            recipe.seed = 5
            events = []
            for event in suite.orchestrator.watch_run(suite.orchestrator.create_run("killed", recipe).name):
                events.append(event)
                if len(events) == 8:
                    os.kill(json.loads((STORE / "up.json").read_text())["services"]["orchestrator"]["pid"], signal.SIGKILL)
        self.assertEqual([event.sequence for event in events], list(range(1, len(events) + 1)))
        self.assertEqual(events[-1].state, orchestrator_pb2.RUN_STATE_SUCCEEDED)

    def test_two_replicas_of_which_one_is_stopped_under_load(self):
        sampling = SamplingParams(max_new_tokens=20)
        for client, load, call in (
                (almost.Reward, f"rm={reward_model()}", lambda reward: reward.score("models/rm", PAIRS[:4])),
                (almost.Generation, "S=common/world/models/S", lambda generation: generation.generate("models/S", [PROMPT], sampling))):
            with (self.subTest(client.__name__), Replica(client, "--load", load) as first, Replica(client, "--load", load) as second,
                  client(f"ipv4:{first.address},{second.address}") as service):
                stop = threading.Event()

                def work():
                    calls = 0
                    while not stop.is_set():
                        results(call(service))
                        calls += 1
                    return calls

                with concurrent.futures.ThreadPoolExecutor(8) as pool:
                    loads = [pool.submit(work) for _ in range(8)]
                    wait_for(lambda: min(first.handled(), second.handled()) > 0)  # both are connected
                    before = first.handled(), second.handled()
                    wait_for(lambda: second.handled() > before[1] + 100)
                    ratio = (first.handled() - before[0]) / (second.handled() - before[1])
                    first.stop()
                    before = second.handled()
                    wait_for(lambda: second.handled() > before + 50)
                    stop.set()
                    self.assertGreater(sum(load.result() for load in loads), 150)  # none raised
                self.assertAlmostEqual(ratio, 1, delta=0.5)

    def test_mutual_tls(self):
        with tempfile.TemporaryDirectory(prefix="almost-test-") as folder:
            def openssl(*arguments):
                subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

            openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
            for name in ("server", "client"):
                openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-addext",
                        "subjectAltName=DNS:reward.test", "-keyout", f"{name}.key", "-out", f"{name}.csr")
                openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                        "-copy_extensions", "copy", "-out", f"{name}.pem")
            with Replica(almost.Reward, "--tls_cert", f"{folder}/server.pem", "--tls_key", f"{folder}/server.key",
                         "--tls_client_ca", f"{folder}/ca.pem") as replica:
                trusted = almost.Tls(f"{folder}/ca.pem", f"{folder}/client.pem", f"{folder}/client.key", "reward.test")

                def models(tls):
                    with almost.Reward(replica.address, tls=tls, timeout=5) as reward:
                        return list(reward.list_models())

                async def aio_models():
                    async with aio.Reward(replica.address, tls=trusted) as reward:
                        return [model async for model in reward.list_models()]

                self.assertEqual(models(trusted), [])
                self.assertEqual(asyncio.run(aio_models()), [])
                for strangers in (None, trusted._replace(cert=None, key=None), trusted._replace(server_name="other.test")):
                    with self.assertRaises(grpc.RpcError) as refused:
                        models(strangers)
                    self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAVAILABLE)


    def test_token_is_sent_and_read_again(self):
        with tempfile.TemporaryDirectory(prefix="almost-test-") as folder:
            theirs, ours = pathlib.Path(folder) / "theirs", pathlib.Path(folder) / "ours"
            theirs.write_text("a-token-of-16-characters\n")

            async def with_asyncio():
                async with aio.Reward(replica.address, token=almost.token_from(ours)) as reward:
                    return [model async for model in reward.list_models()]

            with Replica(almost.Reward, "--token_file", theirs) as replica:
                with almost.Reward(replica.address, token=almost.token_from(ours)) as reward:
                    ours.write_text("another-token-of-16-characters")
                    with self.assertRaises(grpc.RpcError) as refused:
                        list(reward.list_models())
                    self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
                    ours.write_text(theirs.read_text())
                    self.assertEqual(list(reward.list_models()), [])
                self.assertEqual(asyncio.run(with_asyncio()), [])


class Picky(reward_pb2_grpc.RewardServiceServicer):
    """A reward service that refuses as it is told."""

    def __init__(self):
        self.calls, self.refusals = collections.Counter(), []

    def _called(self, method, context):
        self.calls[method] += 1
        if self.refusals:
            code, details = self.refusals.pop(0)
            context.set_trailing_metadata([("grpc-status-details-bin", details.SerializeToString())])
            context.abort(code, "as told")

    def Score(self, request, context):
        self._called("Score", context)
        return reward_pb2.ScoreResponse(items=[{"result": {"score": 1}}] * len(request.items), model_digest="d")

    def UnloadModel(self, request, context):
        self._called("UnloadModel", context)


class Retries(unittest.TestCase):
    """What is tried again, seen from the server."""

    def setUp(self):
        self.service = Picky()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self.service, server)
        self.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        self.addCleanup(lambda: server.stop(None).wait())

    def test_unavailable_is_tried_again(self):
        self.service.refusals = [(grpc.StatusCode.UNAVAILABLE, Status())] * 3
        with almost.Reward(self.target) as reward:
            self.assertEqual(results(reward.score("models/rm", PAIRS[:1]))[0].score, 1)
        self.assertEqual(self.service.calls["Score"], 4)

    def test_other_codes_and_unloading_are_not_tried_again(self):
        details, info = Status(code=8), Any()
        info.Pack(RetryInfo(retry_delay={"seconds": 1, "nanos": 500_000_000}))
        details.details.append(info)
        self.service.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, details), (grpc.StatusCode.UNAVAILABLE, Status())]
        with almost.Reward(self.target) as reward:
            with self.assertRaises(grpc.RpcError) as full:
                reward.score("models/rm", PAIRS[:1])
            with self.assertRaises(grpc.RpcError) as away:
                reward.unload_model("models/rm")
        self.assertEqual(full.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(almost.retry_delay(full.exception), 1.5)
        self.assertEqual(away.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIsNone(almost.retry_delay(away.exception))
        self.assertEqual(self.service.calls, {"Score": 1, "UnloadModel": 1})

    def test_a_proxy_is_not_asked_for_a_service_of_this_machine(self):
        with unittest.mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:1"}):
            with almost.Reward(self.target, timeout=5) as reward:
                self.assertEqual(results(reward.score("models/rm", PAIRS[:1]))[0].score, 1)

    def test_one_text_is_not_taken_for_a_list(self):
        generation, judge = almost.Generation(self.target), almost.Judge(self.target)
        self.addCleanup(generation.close)
        self.addCleanup(judge.close)
        with almost.Reward(self.target) as reward:
            for call in (lambda: generation.generate("models/L", PROMPT), lambda: generation.tokenize("models/L", PROMPT),
                         lambda: generation.generate("models/L", [PROMPT.encode()]),
                         lambda: generation.score_completions("models/L", ("ab", "cd")),
                         lambda: reward.score("models/rm", ("ab", "cd")), lambda: judge.compare(["abc"])):
                with self.assertRaises(TypeError):
                    call()
        self.assertEqual(self.service.calls, {})


class WithoutAService(unittest.TestCase):
    def test_a_service_that_there_is_not_is_named(self):
        for kind in (almost.Almost, aio.Almost):
            with self.assertRaisesRegex(ValueError, "rewards"):
                kind({"rewards": "127.0.0.1:1"})

    def test_the_bridge_wants_a_host_to_listen_on(self):
        for listen in ("8500", "127.0.0.1"):
            bridge = subprocess.run([sys.executable, "-m", "almost.bridge", "--model", "m", "--listen", listen],
                                    stderr=subprocess.PIPE, text=True, timeout=60)
            self.assertEqual(bridge.returncode, 2)
            self.assertIn("host:port", bridge.stderr)

    def test_the_services_of_a_later_suite_are_left_out(self):
        with tempfile.TemporaryDirectory(prefix="almost-test-") as store:
            services = {"reward": {"address": "a:1"}, "another": {"address": "b:2"}}
            (pathlib.Path(store) / "up.json").write_text(json.dumps({"pid": 1, "services": services}))
            self.assertEqual(almost.up(store), {"reward": "a:1"})

    def test_large_batches_are_put_together_in_time_that_grows_with_them_alone(self):
        items = [{"result": {"completions": [{"text": "x" * 1000, "token_ids": range(250), "logprobs": [1.0] * 250}]}}] * 64
        part = generation_pb2.GenerateResponse(items=items, model_digest="d" * 64, numerics_id="n")
        whole, began = generation_pb2.GenerateResponse(), time.process_time()
        for _ in range(300):
            requests.merge(whole, part)
        self.assertEqual(len(whole.items), 300 * 64)
        self.assertLess(time.process_time() - began, 10)  # about 0.5; it was 80 when each part was measured with all before
        with self.assertRaises(almost.MixedModels):
            requests.merge(whole, generation_pb2.GenerateResponse(model_digest="e" * 64, numerics_id="n"))

    def test_recipes_are_read_as_almost_run_reads_them(self):
        with tempfile.TemporaryDirectory(prefix="almost-test-") as folder:
            file = pathlib.Path(folder) / "recipe.yaml"
            for text, display_name in (
                    ("display_name: 007", "007"), ("display_name: no", "no"), ("display_name: 2024-01-01", "2024-01-01"),
                    ("display_name: 'true'", "true"), ("display_name: a\nseed: 010", "a"),
                    ("\ufeffdisplay_name: a\nprompts: {draw_from_pool: true}", "a"),
                    ("display_name: a\nprompts: {sampling: {temperature: 1e-1}}", "a"), ("seed: 1\nseed: 2", None), ("rl:", None),
                    ("", None), ("- a", None), ("seed: 1\n---\nseed: 2", None), ("prompts: {draw_from_pool: yes}", None),
                    ("prompts: {num_prompts: 1:30}", None), ("prompts: {num_prompts: 0x10}", None), ("<<: {seed: 3}", None),
                    ("? [a]\n: 1", None), ("models: [{id: ~}]", None)):
                with self.subTest(text=text):
                    file.write_text(text, encoding="utf-8")
                    try:
                        recipe = almost.read_recipe(file)
                    except (ValueError, ParseError, yaml.YAMLError):
                        recipe = None
                    self.assertEqual(recipe and recipe.display_name, display_name)
                    if recipe is not None:
                        self.assertEqual(recipe.seed, 10 if "010" in text else 0)
                    run = subprocess.run([BIN / "almost", "run", file, "--store", folder, "--orchestrator", "127.0.0.1:1"],
                                         capture_output=True, text=True)
                    self.assertEqual("recipe.yaml:" in run.stderr, recipe is None, run.stderr)


class Frameworks(unittest.TestCase):
    """Each framework's own shapes, answered by a real reward model."""

    @classmethod
    def setUpClass(cls):
        cls.target = almost.up(STORE)["reward"]
        cls.reward = cls.enterClassContext(almost.Reward(cls.target))
        cls.reward.load_model("models/frameworks", reward_model())
        cls.scores = [result.score for result in results(cls.reward.score("models/frameworks", PAIRS))]
        command = [sys.executable, "-m", "almost.bridge", "--reward", cls.target, "--model", "models/frameworks", "--listen",
                   "127.0.0.1:0", "--input_template", r"User: {}\nAssistant: "]
        cls.bridge = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        cls.url = re.fullmatch(r"listening on (\S+)\n", cls.bridge.stderr.readline())[1]

    @classmethod
    def tearDownClass(cls):
        cls.bridge.terminate()
        cls.bridge.stderr.close()
        assert cls.bridge.wait(30) == 0

    def post(self, path, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]

    def test_openrlhf(self):
        prompts = [f"User: {prompt}\nAssistant: " for prompt, _ in PAIRS]
        queries = [f"<s> {prompt}{response}</s></s>" for prompt, (_, response) in zip(prompts, PAIRS)]
        expected = {"rewards": self.scores, "scores": self.scores, "extra_logs": {}}
        body = {"query": queries, "prompts": prompts, "labels": [""] * 70}
        self.assertEqual(self.post("/get_reward", body), (200, expected))

        def one(index):  # as its agents do: a connection and a call for each sample
            body = {"query": [queries[index]], "prompts": [prompts[index]], "labels": [None]}
            return self.post("/get_reward", body)[1]["rewards"]

        with concurrent.futures.ThreadPoolExecutor(70) as pool:
            self.assertEqual(sum(pool.map(one, range(70)), []), self.scores)

    def test_trl(self):
        reward = rewards.trl_reward(self.reward, "models/frameworks")
        prompts, completions = map(list, zip(*PAIRS))
        columns = {"completion_ids": [[1]] * 70, "trainer_state": None, "log_metric": print}
        self.assertEqual(reward(prompts=prompts, completions=completions, **columns), self.scores)
        chats = {"prompts": [[{"role": "user", "content": prompt}] for prompt in prompts],
                 "completions": [[{"role": "assistant", "content": completion}] for completion in completions]}
        self.assertEqual(reward(**chats), self.scores)
        self.assertEqual(self.post("/trl", chats), (200, {"rewards": self.scores}))
        self.assertEqual(reward.__name__, "almost_reward")  # under which TRL logs it

    def test_verl(self):
        # As verl loads a custom reward function from a file, and binds reward_kwargs.
        spec = importlib.util.spec_from_file_location("custom_module", rewards.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        bound = {"target": self.target, "model": "models/frameworks"}
        extras = [{"index": 1, "prompt": [{"role": "user", "content": prompt}]} for prompt, _ in PAIRS]
        solutions = [f" {response}<|im_end|>" for _, response in PAIRS]
        one = {"data_source": "world", "solution_str": solutions[3], "ground_truth": "", "extra_info": extras[3]}
        many = {"data_sources": ["world"] * 70, "solution_strs": solutions, "ground_truths": [""] * 70, "extra_infos": extras}
        self.assertEqual(functools.partial(module.compute_score, **bound)(**one), self.scores[3])
        self.assertEqual(functools.partial(module.compute_scores, **bound)(**many), self.scores)
        self.assertEqual(self.post("/verl", one), (200, {"score": self.scores[3]}))
        self.assertEqual(self.post("/verl", many), (200, {"scores": self.scores}))
        with self.assertRaisesRegex(ValueError, "^extra_info.prompt: "):
            module.compute_score("world", "5", "", {"index": 1}, **bound)

    def test_errors_say_what_is_wrong(self):
        for path, body, status, error in (
                ("/nowhere", {}, 404, "POST /nowhere: there is /get_reward"),
                ("/get_reward", b"{", 400, "body: must be JSON"),
                ("/get_reward", [], 400, "body: must be a JSON object"),
                ("/get_reward", {"query": ["a"]}, 400, "prompts: must be a list"),
                ("/get_reward", {"query": ["a"], "prompts": []}, 400, "prompts: as many as query"),
                ("/get_reward", {"query": ["a"], "prompts": ["b"]}, 400, "query[0]: must contain prompts[0]"),
                ("/get_reward", {"query": ["ab"], "prompts": ["a"]}, 400, "prompts[0]: must have the form"),
                ("/get_reward", {"query": [1], "prompts": [2]}, 400, "query[0]: must be a string"),
                ("/trl", {"prompts": ["a"], "completions": ["much " * 2000]}, 400, "items[0]: prompt and response make"),
                ("/trl", {"prompts": ["a"], "completions": [{"role": 3}]}, 400, "completions: must be strings, or messages"),
                ("/trl", {"prompts": [[3]], "completions": ["a"]}, 400, "prompts: must be strings, or messages"),
                ("/verl", {"solution_str": "a", "extra_info": "prompt"}, 400, "extra_info.prompt: the dataset"),
                ("/verl", {}, 400, "solution_str: missing")):
            with self.subTest(path=path, body=body):
                answer = self.post(path, body)
                self.assertEqual(answer[0], status, answer)
                self.assertIn(error, answer[1])


class Replica:
    """A reward or generation service of its own."""

    def __init__(self, client, *flags):
        self._binary = BIN / f"almost-{client.__name__.lower()}"
        self._flags = flags

    def __enter__(self):
        self._process = subprocess.Popen(
            [self._binary, "--listen", "127.0.0.1:0", "--metrics_listen", "127.0.0.1:0", "--store", STORE,
             *self._flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self._process.stdout:
            if line.startswith("{") and (event := json.loads(line))["event"] == "ready":
                self.address, self._metrics = f"127.0.0.1:{event['port']}", event["metrics_port"]
                threading.Thread(target=collections.deque, args=(self._process.stdout, 0), daemon=True).start()
                return self
        raise AssertionError(f"{self._binary.name} ended")

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()

    def handled(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics") as page:
            return sum(float(line.split()[-1]) for line in page.read().decode().splitlines()
                       if line.startswith("grpc_server_handled_total") and re.search('"(Score|Generate)"', line))

    def stop(self):
        self._process.terminate()
        if self._process.wait(60) != 0:
            raise AssertionError(f"{self._binary.name} ended with {self._process.returncode}")


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} seconds")
        time.sleep(0.05)


@functools.cache
def reward_model():
    """`artifacts/{digest}` of a reward model in the suite's store."""
    with almost.Almost(almost.up(STORE)) as suite:
        recipe = almost.read_recipe(RECIPE, judge=suite.targets["judge"])
        run = suite.orchestrator.create_run("frameworks", recipe)
        for _ in suite.orchestrator.watch_run(run.name):
            pass
        return next(artifact.name for artifact in suite.orchestrator.list_artifacts(run.name)
                    if (artifact.stage, artifact.kind) == ("reward_model", "model"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
