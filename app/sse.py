"""Server-sent events: bytes in, data out, and back; pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Iterator
from typing import Any

import msgspec

KEEP_ALIVE = b": keep-alive\n\n"


class EventTooLarge(Exception):
    """An event is over the bound."""


class Decoder:
    """Cuts a byte stream into the data of its events, however the bytes are split into reads.

    Bytes, not text: an event is passed on as it came, and JSON decoding rejects what is not UTF-8. Event names, ids and
    comments are passed over, because vLLM sends none that matter.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Take what one read gave; yield the data of every event that it completes.

        Raises:
            EventTooLarge: an event is over `max_event_bytes`, complete or not.
        """
        *ends, rest = received.split(b"\n")
        for end in ends:
            self._extend(end)
            line = bytes(self._line).removesuffix(b"\r")
            self._line.clear()
            if not line:
                if self._data:
                    yield b"\n".join(self._data)
                    self._data.clear()
                    self._data_bytes = 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._data_bytes += len(line)
        self._extend(rest)

    def _extend(self, piece: bytes) -> None:
        self._line += piece
        if self._data_bytes + len(self._line) > self._max_event_bytes:
            raise EventTooLarge


def encode(event: str, data: Any) -> bytes:
    """One event with JSON data."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(data))
