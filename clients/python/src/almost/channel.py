"""How a service is reached: address, TLS, bearer token, and the service config that balances and retries."""

from __future__ import annotations

import importlib.resources
import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import grpc
import grpc.aio

# Where a suite on this machine listens.
DEFAULT_TARGETS = {
    "generation": "127.0.0.1:50051",
    "reward": "127.0.0.1:50052",
    "simulator": "127.0.0.1:50053",
    "trainer": "127.0.0.1:50054",
    "orchestrator": "127.0.0.1:50055",
}

SERVICES = (*DEFAULT_TARGETS, "judge")  # a suite may have
# clients/service_config.json of the repository; clients/README.md says what it does.
SERVICE_CONFIG = importlib.resources.files("almost").joinpath("service_config.json").read_text()

_CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.max_receive_message_length", -1),  # the servers bound what they send
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The name is looked up whenever a server closes a connection that has grown old; gRPC's 30 s keep new replicas idle.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
]


class Tls(NamedTuple):
    """Encrypts, and with `cert` and `key` proves who calls. All are paths of PEM files."""

    ca: str | os.PathLike[str] | None = None  # whom to trust; None: the system's roots
    cert: str | os.PathLike[str] | None = None  # our own certificate, with its key
    key: str | os.PathLike[str] | None = None
    server_name: str = ""  # the name in the server's certificate, where it is not the target's

    def credentials(self) -> grpc.ChannelCredentials:
        def read(path: str | os.PathLike[str] | None) -> bytes | None:
            return None if path is None else pathlib.Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.cert))


# A bearer token, or what gives it: asked before every call, so that a token may be renewed.
Token = str | Callable[[], str]


def token_from(path: str | os.PathLike[str]) -> Token:
    """A token kept in a file, which may be replaced while we run."""
    return lambda: pathlib.Path(path).read_text().strip()


def metadata(token: Token | None) -> list[tuple[str, str]]:
    """What goes with every call."""
    if token is None:
        return []
    return [("authorization", f"Bearer {token if isinstance(token, str) else token()}")]


def open_channel(target: str, tls: Tls | None) -> grpc.Channel:
    """A channel to `target` ("host:port", or "dns:///name:port" for every address of that name); it connects when
    it is first used."""
    if tls is None:
        return grpc.insecure_channel(target, _options(target))
    return grpc.secure_channel(target, tls.credentials(), _options(target, tls))


def open_aio_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    """The same for asyncio."""
    if tls is None:
        return grpc.aio.insecure_channel(target, _options(target))
    return grpc.aio.secure_channel(target, tls.credentials(), _options(target, tls))


def _options(target: str, tls: Tls | None = None) -> list[tuple[str, str | int]]:
    options = list(_CHANNEL_OPTIONS)
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    # No proxy that the environment names (http_proxy) reaches a service of this machine.
    if any(name in target for name in ("127.0.0.1:", "localhost:", "[::1]:")):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def up(store: str | os.PathLike[str]) -> dict[str, str]:
    """The addresses of a running `almost up --store STORE`, the judge's among them where it has one."""
    services = json.loads((pathlib.Path(store) / "up.json").read_text())["services"]
    return {name: services[name]["address"] for name in SERVICES if name in services}
