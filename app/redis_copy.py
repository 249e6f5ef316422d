"""What a gateway knows of a session in Redis, and the form in which it is kept there: pure, without I/O."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from typing import Any, Self

import msgspec
from pydantic import SecretStr

from app.context import Pair, Surplus
from app.sealing import Seal
from app.sessions import Session

_ID_BYTES = 8


class _Noted(msgspec.Struct, array_like=True):
    """What gateways note of a history."""

    dropped_pairs: int
    surplus_tokens: int
    surplus_ratio: tuple[int, int]


_noted = msgspec.msgpack.Decoder(_Noted)
_pair = msgspec.msgpack.Decoder(Pair)

Unreadable = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError)
"""What reading something damaged raises."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written of a session.

    Attributes:
        oldest, newest: how many pairs go, of those that are kept.
        fields: by their names.
        pairs: new ones.
    """

    oldest: int
    newest: int
    fields: Mapping[str, bytes | int]
    pairs: Sequence[bytes]

    def written(self) -> list[str | bytes | int]:
        """As the script takes what is written."""
        return [len(self.fields), *chain.from_iterable(self.fields.items()), *self.pairs]


@dataclass(frozen=True, slots=True)
class Copy:
    """A session as it was when it was last seen.

    Attributes:
        session: not to be changed.
        fence: another one whenever a turn begins or ends and whenever something changes.
        sealed_key: the session's key as it is kept.
        prompt_id: of its system prompt.
        last_pair_id: of its last pair; of none where there is none.
    """

    session: Session
    fence: bytes
    sealed_key: bytes
    prompt_id: bytes
    last_pair_id: bytes

    def place(self) -> tuple[int, bytes, bytes]:
        """As `look` of the script takes what is known."""
        return self.session.forgotten_pairs + len(self.session.pairs), self.last_pair_id, self.prompt_id

    @classmethod
    def seen(cls, session_id: str, known: Self | None, reply: Sequence[Any], seal: Seal) -> Self:
        """What is known after a `look`.

        Args:
            session_id: the secret.
            known: what was known when it was asked for.
            reply: of the script.
            seal: of keys.

        Raises:
            CannotUnseal: the key.
            Unreadable: the rest.
        """
        _, _, fence, sealed_key, noted, forgotten, prompt_id, prompt, known_pairs, new = reply
        if known is None:
            session = Session(SecretStr(""), "", session_id)
        elif known_pairs:
            session = known.session.copied()
        else:
            session = Session(known.session.vllm_api_key, known.session.system_prompt, session_id)
        if known is None or sealed_key != known.sealed_key:
            session.vllm_api_key = seal.opened(sealed_key)
        if prompt is not None:
            session.system_prompt = prompt.decode()
        session.catch_up(int(forgotten), [_unpacked(packed) for packed in new])
        counts = _noted.decode(noted)
        session.dropped_pairs = counts.dropped_pairs
        session.surplus = Surplus(counts.surplus_tokens, Fraction(*counts.surplus_ratio))
        last_pair_id = new[-1][:_ID_BYTES] if new else known.last_pair_id if known and known_pairs else b""
        return cls(session, fence, sealed_key, prompt_id, last_pair_id)

    def change(self, session: Session) -> Change:
        """What makes of the session that was seen the one that it is now."""
        oldest, newest, new = _difference(self.session, session)
        fields = _counts(session)
        if session.system_prompt != self.session.system_prompt:
            fields |= _prompt(session)
        return Change(oldest, newest, fields, [_packed(pair) for pair in new])

    def after(self, session: Session, change: Change, fence: bytes) -> "Copy | None":
        """What is known when that has been written under a new fence; None: too little."""
        if change.newest and not change.pairs:
            return None
        prompt_id = bytes(change.fields.get("prompt_id", self.prompt_id))
        last_pair_id = change.pairs[-1][:_ID_BYTES] if change.pairs else self.last_pair_id
        return replace(self, session=session, fence=fence, prompt_id=prompt_id, last_pair_id=last_pair_id)


NOTHING_KNOWN = (0, b"", b"")


def new_id() -> bytes:
    """One that no other has."""
    return os.urandom(_ID_BYTES)


def first_written(session: Session, seal: Seal) -> list[str | bytes | int]:
    """As the script takes what is written of a new session."""
    fields = {"fence": new_id(), "key": seal.sealed(session.vllm_api_key), **_prompt(session), **_counts(session)}
    return Change(0, 0, fields, [_packed(pair) for pair in session.pairs]).written()


def _difference(before: Session, after: Session) -> tuple[int, int, Sequence[Pair]]:
    """How many of the oldest and of the newest pairs have gone, and which came then."""
    count = len(before.pairs)
    if not after.pairs:
        return count, 0, []
    oldest = min(count, after.forgotten_pairs - before.forgotten_pairs)
    stayed = min(count - oldest, len(after.pairs))
    while stayed and before.pairs[oldest + stayed - 1] is not after.pairs[stayed - 1]:
        stayed -= 1
    return oldest, count - oldest - stayed, after.pairs[stayed:]


def _prompt(session: Session) -> dict[str, bytes | int]:
    return {"prompt": session.system_prompt.encode(), "prompt_id": new_id()}


def _counts(session: Session) -> dict[str, bytes | int]:
    surplus = session.surplus
    noted = _Noted(session.dropped_pairs, surplus.tokens, surplus.ratio.as_integer_ratio())
    return {"counts": msgspec.msgpack.encode(noted), "forgotten": session.forgotten_pairs}


def _packed(pair: Pair) -> bytes:
    """A pair with an id of its own, without what another tokenizer would not find in it."""
    return new_id() + msgspec.msgpack.encode(msgspec.structs.replace(pair, tokens=0))


def _unpacked(packed: bytes) -> Pair:
    pair = _pair.decode(packed[_ID_BYTES:])
    if pair.finish_reason is not None:
        msgspec.structs.force_setattr(pair, "finish_reason", sys.intern(pair.finish_reason))
    return pair
