"""The reward service over HTTP, in the shapes of other RL frameworks.

    python -m almost.bridge --reward 127.0.0.1:50052 --model models/rm --listen 127.0.0.1:8500

POST, JSON in and out:

    /get_reward  OpenRLHF (--reward.remote_url, once --remote_rm_url): {"query": [...], "prompts": [...]} and labels, which
                 are not read; answers {"rewards": [...], "scores": [...], "extra_logs": {}}.
    /trl         the arguments of a TRL reward function: {"prompts": [...], "completions": [...]}, strings or messages;
                 answers {"rewards": [...]}.
    /verl        the arguments of a verl reward function: {"solution_str": ..., "extra_info": {"prompt": ...}}, answers
                 {"score": ...}; or of its batch form {"solution_strs": [...], "extra_infos": [...]}, answers
                 {"scores": [...]}.
    GET /healthz 200 while the bridge runs.

All scores of a request or an error: {"error": ...} with 400 for a request that is wrong, 429 (with Retry-After) for a
full queue, 502 for any other failure of the service, 503 when it cannot be reached, 504 when it was too slow. The
bridge itself asks for no token: let it listen where only the trainer reaches it.
"""

from __future__ import annotations

import argparse
import http.server
import json
import math
import re
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

import grpc

from almost.channel import Tls, token_from
from almost.client import Reward
from almost.requests import ItemError, MixedModels, retry_delay
from almost.rewards import openrlhf_items, rewards_of, trl_item, verl_item

MAX_BODY_BYTES = 64 << 20

_HTTP_OF = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class Bridge:
    """What each path answers. Thread-safe."""

    def __init__(self, reward: Reward, model: str, *, expected_digest: str = "", raw: bool = False,
                 input_template: str = "{}"):
        self._reward, self._model, self._expected_digest = reward, model, expected_digest
        self._raw, self._template = raw, input_template
        self.paths = {"/get_reward": self.openrlhf, "/trl": self.trl, "/verl": self.verl}

    def _score(self, items: list[Any]) -> list[float]:
        response = self._reward.score(self._model, items, expected_digest=self._expected_digest)
        return rewards_of(response, self._raw)

    def openrlhf(self, body: Mapping[str, Any]) -> dict[str, Any]:
        rewards = self._score(openrlhf_items(_list(body, "query"), _list(body, "prompts"), self._template))
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    def trl(self, body: Mapping[str, Any]) -> dict[str, Any]:
        prompts, completions = _list(body, "prompts"), _list(body, "completions")
        if len(prompts) != len(completions):
            raise ValueError(f"completions: as many as prompts, that is {len(prompts)}, not {len(completions)}")
        return {"rewards": self._score(list(map(trl_item, prompts, completions)))}

    def verl(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if "solution_strs" in body:
            solutions, extras = _list(body, "solution_strs"), _list(body, "extra_infos")
            if len(solutions) != len(extras):
                raise ValueError(f"extra_infos: as many as solution_strs, that is {len(solutions)}, not {len(extras)}")
            return {"scores": self._score([verl_item(*both, "prompt") for both in zip(solutions, extras)])}
        if "solution_str" not in body:
            raise ValueError("solution_str: missing, and so is solution_strs")
        return {"score": self._score([verl_item(body["solution_str"], body.get("extra_info"), "prompt")])[0]}


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise ValueError(f"body: must be JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"body: must be a JSON object, not {type(parsed).__name__}")
    return parsed


def _list(body: Mapping[str, Any], field: str) -> list[Any]:
    if not isinstance(body.get(field), list):
        raise ValueError(f"{field}: must be a list, not {type(body.get(field)).__name__}")
    return body[field]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 300  # of an idle connection, in seconds
    bridge: Bridge

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        else:
            self._answer(404, {"error": f"GET {self.path}: there is only /healthz"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # its body is still to come, and is not read
            self._answer(413, {"error": f"Content-Length: at most {MAX_BODY_BYTES}, not {length or 'missing'}"})
            return
        body = self.rfile.read(int(length))
        answer = self.bridge.paths.get(self.path)
        if answer is None:
            self._answer(404, {"error": f"POST {self.path}: there is {', '.join(self.bridge.paths)}"})
            return
        try:
            self._answer(200, answer(_object(body)))
        except ItemError as error:
            self._answer(_HTTP_OF.get(error.code, 502), {"error": str(error)})
        except grpc.RpcError as error:
            delay = retry_delay(error)
            headers = {} if delay is None else {"Retry-After": str(math.ceil(delay))}
            self._answer(_HTTP_OF.get(error.code(), 502), {"error": f"{error.code().name}: {error.details()}"}, headers)
        except MixedModels as error:
            self._answer(502, {"error": str(error)})
        except ValueError as error:
            self._answer(400, {"error": str(error)})

    def _answer(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] = {}) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # errors are in the answers; a line a sample would be noise


class Server(http.server.ThreadingHTTPServer):
    """`bridge` at host:port (port 0 takes a free one: see server_address). serve_forever() and shutdown() as ever."""

    request_queue_size = 1024  # OpenRLHF opens a connection a sample

    def __init__(self, listen: str, bridge: Bridge):
        host, _, port = listen.rpartition(":")
        super().__init__((host, int(port)), type("Handler", (_Handler,), {"bridge": bridge}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m almost.bridge", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="127.0.0.1:50052", help="the reward service, host:port or dns:///name:port")
    parser.add_argument("--model", required=True, help="models/ID there")
    parser.add_argument("--expected_digest", default="", help="refuse other weights than these")
    parser.add_argument("--listen", default="127.0.0.1:8500", help="host:port of the bridge; port 0 takes a free one")
    parser.add_argument("--raw", action="store_true", help="the reward head's output instead of the normalised score")
    parser.add_argument("--input_template", default="{}",
                        help="OpenRLHF's, or what its chat template makes of one user turn {}; \\n is a new line")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one call of the service")
    parser.add_argument("--token_file", help="file with the bearer token of the service")
    parser.add_argument("--tls", action="store_true", help="speak TLS to the service, trusting the system's roots")
    parser.add_argument("--tls_ca", help="PEM file: TLS, trusting these roots instead")
    parser.add_argument("--tls_cert", help="PEM file: our certificate, with --tls_key")
    parser.add_argument("--tls_key", help="PEM file")
    flags = parser.parse_args()
    if flags.input_template.count("{}") != 1:
        parser.error("--input_template: must contain {} once")
    if not re.fullmatch(r".*:[0-9]{1,5}", flags.listen):  # a port alone would listen to everybody
        parser.error(f"--listen: must be host:port, not {flags.listen}")

    tls = Tls(flags.tls_ca, flags.tls_cert, flags.tls_key) if flags.tls or flags.tls_ca else None
    reward = Reward(flags.reward, token=token_from(flags.token_file) if flags.token_file else None, tls=tls,
                    timeout=flags.timeout)
    bridge = Bridge(reward, flags.model, expected_digest=flags.expected_digest, raw=flags.raw,
                    input_template=flags.input_template.replace("\\n", "\n"))
    with Server(flags.listen, bridge) as server:
        stop = lambda *_: threading.Thread(target=server.shutdown).start()  # noqa: E731
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print(f"listening on http://{flags.listen.rpartition(':')[0]}:{server.server_port}", file=sys.stderr, flush=True)
        server.serve_forever()
    reward.close()


if __name__ == "__main__":
    main()
