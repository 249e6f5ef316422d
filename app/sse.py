"""Server-sent events: bytes in, data out, and back; pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

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

    def feed(self, received: bytes) -> list[bytes]:
        """Take what one read gave; return the data of every event that it completes.

        Raises:
            EventTooLarge: the event under way has outgrown `max_event_bytes`.
        """
        lines = received.split(b"\n")
        events = []
        for end in lines[:-1]:
            self._line += end
            line = bytes(self._line).removesuffix(b"\r")
            self._line.clear()
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data.clear()
                    self._data_bytes = 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._data_bytes += len(line)
        self._line += lines[-1]
        if self._data_bytes + len(self._line) > self._max_event_bytes:
            raise EventTooLarge
        return events


def encode(event: str, data: Any) -> bytes:
    """One event with JSON data."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(data))
