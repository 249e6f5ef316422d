"""A /chat whose answer is not waited for."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit


class Flight:
    """On a connection of its own, so that leaving it is the client's going away.

    Attributes:
        message: what it says.
        key: its Idempotency-Key.
        replaces_last: whether its reply is to take the place of the session's last one.
        text: what of the reply has come.
    """

    def __init__(self, url: str, session_id: str, message: str, *, stream: bool, key: str | None = None) -> None:
        self.message = message
        self.key = key
        self.replaces_last = False
        self.text = ""
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        body = {"session_id": session_id, "message": message, "stream": stream}
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        self._connection.request("POST", "/chat", json.dumps(body).encode(), headers)
        self._response: http.client.HTTPResponse | None = None
        self._events = self._read_events()

    @property
    def response(self) -> http.client.HTTPResponse:
        """Its status and headers; waits for them."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    def read_deltas(self, number: int) -> None:
        """Wait for so many deltas."""
        for _ in range(number):
            name, data = next(self._events)
            assert name == "delta", data
            self.text += data["text"]

    def last_event(self) -> tuple[str, Any]:
        """The one that follows; nothing may come after it."""
        [last] = self._events
        self.leave()
        return last

    def answer(self) -> Any:
        """The answer that is no stream."""
        body = json.loads(self.response.read())
        self.leave()
        return body

    def leave(self) -> None:
        """Close the connection, whatever has come."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _read_events(self) -> Iterator[tuple[str, Any]]:
        assert self.response.status == 200
        name = ""
        for raw in self.response:
            field, _, value = raw.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)
