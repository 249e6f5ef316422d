"""Server-sent events: bytes in, data out, and back; pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Iterator
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode

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
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Take what one read gave; yield the data of every event that it completes.

        Raises:
            EventTooLarge: an event is over `max_event_bytes`, complete or not.
        """
        text = (self._rest + received).replace(b"\r\n", b"\n")  # of one that is cut in two, the end comes next time
        *events, self._rest = text.split(b"\n\n")
        for event in events:
            if len(event) > self._max_event_bytes:
                raise EventTooLarge
            data = event[6:] if event.startswith(b"data: ") and b"\n" not in event else _data(event)
            if data is not None:
                yield data
        if len(self._rest) > self._max_event_bytes:
            raise EventTooLarge


def _data(event: bytes) -> bytes | None:
    """The data of an event of whatever lines; None where it has none."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def encode(event: str, data: Any) -> bytes:
    """One event with JSON data."""
    return b"".join((b"event: ", event.encode(), b"\ndata: ", _encode(data), b"\n\n"))
