"""Run hostile clients against a service: python -m tests.drills.slow_clients PORT IDLE HEADS BODIES READERS.

Input: the port and numbers of clients: idle ones, ones that stop in the middle of a head, ones that send a byte of a
body a second, ones that never read a long answer. Output: a line "open" once all of them are connected and every long
answer has begun; then a line with the numbers of clients that came again after they were closed, at the end of standard
input.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

PER_ADDRESS: Final = 800  # clients of one address of loopback, below the service's bound
HEAD: Final = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LONG: Final = json.dumps({"texts": ["abc" * 400], "tokens": True, "top": 20}).encode()
FIRST: Final = {
    "idle": b"",
    "heads": HEAD + b"X-Half: ",
    "bodies": HEAD + b"Content-Length: 50000\r\n\r\n{",
    "readers": HEAD + b"Content-Length: %d\r\n\r\n" % len(LONG) + LONG,
}


@dataclass
class Crowd:
    """Clients that stay connected, and come again when they are closed."""

    port: int
    kinds: dict[int, str] = field(default_factory=dict)  # by descriptor, as the next
    sockets: dict[int, socket.socket] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)
    poller: select.epoll = field(default_factory=select.epoll)

    def come(self, kind: str) -> None:
        address = f"127.0.1.{1 + len(self.sockets) // PER_ADDRESS}"
        client = socket.socket()
        if kind == "readers":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind((address, 0))
        client.connect(("127.0.0.1", self.port))
        client.sendall(FIRST[kind])
        self.kinds[client.fileno()], self.sockets[client.fileno()] = kind, client
        self.poller.register(client, select.EPOLLRDHUP if kind == "readers" else select.EPOLLIN | select.EPOLLRDHUP)

    def drip(self) -> None:
        """Send another byte of every body."""
        for descriptor, kind in list(self.kinds.items()):
            if kind == "bodies":
                try:
                    self.sockets[descriptor].send(b" ", socket.MSG_DONTWAIT)
                except OSError:
                    continue

    def replace_closed(self) -> None:
        for descriptor, _ in self.poller.poll(0.0):
            kind = self.kinds.pop(descriptor)
            self.poller.unregister(descriptor)
            self.sockets.pop(descriptor).close()
            self.again[kind] += 1
            self.come(kind)


def main() -> None:
    port, *counts = map(int, sys.argv[1:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(port)
    for kind, count in zip(FIRST, counts, strict=True):
        for _ in range(count):
            crowd.come(kind)
    for descriptor, kind in crowd.kinds.items():
        if kind == "readers":
            crowd.sockets[descriptor].recv(1)  # until its answer has begun
    print("open", flush=True)  # noqa: T201
    while not select.select([sys.stdin], [], [], 0.0)[0]:
        crowd.drip()
        crowd.replace_closed()
        time.sleep(1.0)
    print(json.dumps(crowd.again), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
