"""`Idempotency-Key`: who did not get an answer may ask for it again, and gets the same one instead of a second turn.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import re
from hashlib import sha256

import msgspec
from starlette.types import Scope

from app.errors import InvalidRequest

HEADER = "Idempotency-Key"
PATTERN = "^[!-~]{1,255}$"
_NAME = HEADER.lower().encode()
_KEY = re.compile(PATTERN)


class KeptAnswer(msgspec.Struct, frozen=True, gc=False):
    """What a pair whose question came with a key is answered from when that question comes again.

    Attributes:
        key: the client's.
        question: a digest of all that was asked.
        answer: JSON of all that was answered, but for the text that the pair holds itself.
    """

    key: str
    question: bytes
    answer: bytes

    @property
    def size_bytes(self) -> int:
        """What it takes in a session."""
        return len(self.key) + len(self.question) + len(self.answer)


def idempotency_key(scope: Scope) -> str | None:
    """A request's key; None where it has none.

    Raises:
        InvalidRequest: it is none.
    """
    given = next((value for name, value in scope["headers"] if name == _NAME), None)
    if given is None:
        return None
    key = str(given, "latin-1")
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"Заголовок {HEADER}: нужны от 1 до 255 латинских букв, цифр и знаков ASCII без пробелов.", field=HEADER
        )
    return key


def digest(*asked: object) -> bytes:
    """A digest of what is asked: of values of JSON, in whatever order their members come."""
    return sha256(msgspec.json.encode(asked, order="sorted")).digest()
