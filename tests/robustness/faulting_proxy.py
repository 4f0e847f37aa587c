"""A TCP proxy in front of one service that can cut its connections and hold back what goes through."""

import contextlib
import socket
import struct
import threading
import time


class FaultingProxy:
    """Listens on a free port of loopback until close()."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        self.target = None  # (host, port) of the service
        self._lock = threading.Lock()
        self._connections = set()
        self._delay = 0.0
        self._held_until = 0.0
        self._down = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Resets every connection there is; new ones are taken."""
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def go_down(self):
        """Resets every connection, and new ones at once, until heal()."""
        self._down = True
        self.cut()

    def delay(self, seconds):
        """Holds every piece back for so long; 0 no longer does."""
        self._delay = seconds

    def hold(self, seconds):
        """Passes nothing on for so long, as a network that has parted does, and drops nothing."""
        self._held_until = time.monotonic() + seconds

    def heal(self):
        self._delay = self._held_until = 0.0
        self._down = False

    def close(self):
        self._listener.close()
        self.cut()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._down:
                client.close()
                continue
            try:
                service = socket.create_connection(self.target, timeout=5)
            except OSError:
                client.close()
                continue
            service.settimeout(None)
            for end in (client, service):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections |= {client, service}
            for source, sink in ((client, service), (service, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                wait = max(self._delay, self._held_until - time.monotonic())
                if wait > 0:
                    time.sleep(wait)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._connections.discard(end)
            end.close()
