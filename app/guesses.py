"""Guessing keys: how many wrong ones a client may show."""

import ipaddress
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from app.errors import InvalidKey, TooManyRequests

log = logging.getLogger(__name__)

_WINDOW_SECONDS = 60.0
# An attacker with more addresses than that is not stopped by a limit for each of them.
_MAX_ADDRESSES = 10_000
_IPV6_NETWORK = 64
_SHOWN_LETTERS = 64


class KeyGuesses:
    """The wrong keys of the last minute, by the client's address; of IPv6, by its /64, which one client has whole.

    Not the library `limits`: its moving window in memory starts a task for every hit, which goes through all addresses
    and sends each through a thread, and it goes by a clock that can be set. That would be an attack of its own.
    """

    def __init__(self, max_failures: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_failures` a minute, 0 for no limit; `clock` tells seconds and never goes back."""
        self._max_failures = max_failures
        self._clock = clock
        # By the last failure, the oldest first.
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    async def prove(self, address: str, proof: Callable[[], Awaitable[None]]) -> None:
        """Have a key proved, if the client may still guess.

        Guesses that were on their way when the last one was used up tell nothing: even a right key is refused then.

        Args:
            address: the client's.
            proof: raises InvalidKey for a wrong key.

        Raises:
            TooManyRequests: it may not.
        """
        if not self._max_failures:
            await proof()
            return
        client = _client(address)
        self._require_left(client)
        try:
            await proof()
        except InvalidKey:
            self._require_left(client)
            self._remember(client)
            raise
        self._require_left(client)

    def _require_left(self, client: str) -> None:
        failures = self._failures.get(client)
        if failures is None or len(failures) < self._max_failures:
            return
        seconds_left = failures[0] + _WINDOW_SECONDS - self._clock()
        if seconds_left > 0:
            retry_after = math.ceil(seconds_left)
            raise TooManyRequests(
                f"С вашего адреса за минуту пришло неверных ключей: {self._max_failures}, это предел "
                f"(MAX_KEY_FAILURES_PER_MINUTE). Проверьте ключ и повторите через {retry_after} с.",
                retry_after=retry_after,
            )

    def _remember(self, client: str) -> None:
        """One more failure. Of a client only as many are kept as count, and no client longer than it matters."""
        now = self._clock()
        failures = self._failures.setdefault(client, deque(maxlen=self._max_failures))
        while failures and failures[0] + _WINDOW_SECONDS <= now:
            failures.popleft()
        failures.append(now)
        if len(failures) == self._max_failures:
            log.warning("С адреса %s за минуту неверных ключей: %d, это предел.", client, len(failures))
        self._failures.move_to_end(client)
        while True:
            oldest = next(iter(self._failures))
            if len(self._failures) <= _MAX_ADDRESSES and self._failures[oldest][-1] + _WINDOW_SECONDS > now:
                return
            del self._failures[oldest]


def _client(address: str) -> str:
    """What counts as one client. What is no address counts as it is: a proxy's word for one, or a Unix socket."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:_SHOWN_LETTERS]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip), _IPV6_NETWORK), strict=False))
