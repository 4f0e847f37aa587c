"""A port for a server that a test starts, and may start again."""

import collections
import random
import socket

# Beneath the ports that the kernel gives to outgoing connections (ip_local_port_range, from 32768 on): one of those could be
# taken by anybody's connection while the server is being restarted.
_PORTS = range(20000, 32768)
_given = collections.deque(maxlen=1000)  # one that nothing listens on yet may be somebody's


def free_port():
    """A TCP port of 127.0.0.1 that nothing listens on now, and that this process has not been given lately."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.append(port)
            return port
