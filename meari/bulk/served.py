"""The model of a running service that does the work, and requests to it, several at a time.

Enters: where the service is and what it says of the model. Leaves: answers in the order in which they are waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from meari.client.models import find_model
from meari.client.service import RemoteService

__all__ = ["Served"]


@dataclass(frozen=True, eq=False)
class Served:
    """A model of a service; limits are those of one request."""

    service: RemoteService
    model: str
    vocabulary_size: int
    max_texts: int
    max_text_chars: int
    pool: ThreadPoolExecutor

    @classmethod
    def open(cls, url: str, model: str, api_key: str, num_requests: int) -> Self:
        """Ask the service for the model. Raises RemoteError."""
        service = RemoteService(url, api_key)
        found = find_model(service, model)
        limits = found["limits"]
        return cls(
            service,
            found["name"],
            found["sizes"]["vocabulary"],
            limits["max_texts"],
            limits["max_text_chars"],
            ThreadPoolExecutor(num_requests, "requests"),
        )

    def ask(self, path: str, body: bytes) -> Callable[[], bytes]:
        """POST it when its turn comes; call what is returned to wait for the answer. Raises RemoteError there."""
        answer: Future[bytes] = self.pool.submit(self.service.post, path, body)
        return answer.result
