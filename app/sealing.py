"""Keys at rest: what leaves the gateway's memory is sealed with SESSION_SECRET."""

import base64
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

_KEY_BYTES = 32
_PURPOSE = b"simple-chat-gateway: vLLM keys of sessions"


class CannotUnseal(Exception):
    """It was sealed with another secret, or has been tampered with."""


class Seal:
    """Seals with the first of some secrets, and opens what was sealed with any of them.

    Fernet (https://github.com/fernet/spec) under keys that HKDF-SHA256 derives from the secrets (RFC 5869).
    """

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        """The newest secret comes first."""
        ciphers = [Fernet(_derived(secret)) for secret in secrets]
        self._newest = ciphers[0]
        self._all = MultiFernet(ciphers)

    def sealed(self, secret: SecretStr) -> bytes:
        """What can be kept anywhere: printable ASCII, another at every call."""
        return self._newest.encrypt(secret.get_secret_value().encode())

    def opened(self, sealed: bytes) -> SecretStr:
        """What was sealed. Raises CannotUnseal."""
        try:
            return SecretStr(self._all.decrypt(sealed).decode())
        except InvalidToken:
            raise CannotUnseal from None

    def is_newest(self, sealed: bytes) -> bool:
        """Whether it was sealed with the first of the secrets."""
        try:
            self._newest.decrypt(sealed)
        except InvalidToken:
            return False
        return True


def _derived(secret: SecretStr) -> bytes:
    """A Fernet key."""
    key = HKDF(SHA256(), _KEY_BYTES, salt=None, info=_PURPOSE).derive(secret.get_secret_value().encode())
    return base64.urlsafe_b64encode(key)
