"""HTTP/1.1 to one server, byte by byte: what is a response, when a connection is used again, when it has failed."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from app.connection import ConnectionBroken, ConnectionPool, NotConnected, Response, ServerSilent
from tests.servers import unanswering, unused_url

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nHello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
Act = bytes | float | None


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """What it runs on as shipped, and what Python brings: their transports differ."""
    return "asyncio", {"use_uvloop": request.param}


class RawServer:
    """Answers requests with bytes.

    Attributes:
        scripts: for each request what is sent; a number is a pause in seconds, None the end of the connection.
        heads: of the requests that came.
        bodies: of them.
        connections: how many were opened.
        open: how many are.
        nobody_there: set while none is.
        sent: bytes that the connection took.
    """

    def __init__(self, *scripts: Sequence[Act]) -> None:
        self.scripts = deque(scripts)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = self.open = self.sent = 0
        self.nobody_there = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.append(writer)
        self.connections += 1
        self.open += 1
        self.nobody_there.clear()
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                for act in self.scripts.popleft():
                    if act is None:
                        return
                    if isinstance(act, float):
                        if await self._gone_within(reader, act):
                            return
                        continue
                    writer.write(act)
                    await writer.drain()
                    self.sent += len(act)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()
            if not self.open:
                self.nobody_there.set()

    def cut(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.transport.abort()

    @staticmethod
    async def _gone_within(reader: asyncio.StreamReader, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return not await reader.read(1)
        return False


def port_of(listening: asyncio.Server) -> int:
    return int(listening.sockets[0].getsockname()[1])


@asynccontextmanager
async def pool_to(server: RawServer, keep_alive_seconds: float = 3.0) -> AsyncIterator[ConnectionPool]:
    """Connections to a raw server. A test that hangs ends here: within uvloop pytest-timeout cannot see to that."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    pool = ConnectionPool(f"http://127.0.0.1:{port_of(listening)}", 5, keep_alive_seconds)
    async with listening:
        try:
            async with asyncio.timeout(10):
                yield pool
        finally:
            pool.close()
            server.cut()


async def ask(pool: ConnectionPool, idle_seconds: float = 5.0) -> tuple[Response, bytes]:
    """Ask for something and read it all."""
    response = await pool.request("GET", "/", {}, b"", idle_seconds)
    with closing(response):
        return response, await read_all(response)


async def read_all(response: Response) -> bytes:
    body = b""
    while read := await response.read():
        body += read
    assert response.at_end()
    return body


async def wait_until_closed(server: RawServer) -> None:
    async with asyncio.timeout(5):
        await server.nobody_there.wait()


@pytest.mark.parametrize(
    ("acts", "status", "body"),
    [
        ([HELLO], 200, b"Hello"),
        ([bytes([byte]) for byte in HELLO], 200, b"Hello"),
        ([CHUNKED + b"3\r\nHel\r\n", b"2;name=value\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"], 200, b"Hello"),
        ([OK + b"\r\nHel", b"lo", None], 200, b"Hello"),
        ([b"HTTP/1.0 200 OK\r\n\r\nHello", None], 200, b"Hello"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b""),
        ([b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n"], 503, b""),
        ([b"HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\n" + OK + b"\r\nHello", None], 200, b"Hello"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HELLO], 200, b"Hello"),
    ],
    ids=[
        "length",
        "byte by byte",
        "chunks",
        "until the end",
        "HTTP/1.0",
        "no content",
        "empty",
        "after another",
        "after others",
    ],
)
async def test_a_response(acts: list[Act], status: int, body: bytes) -> None:
    async with pool_to(RawServer(acts)) as pool:
        response, read = await ask(pool)
        assert (response.status, read) == (status, body)


async def test_a_request() -> None:
    server = RawServer([OK + b"X-Answer: \xe9 1\r\nContent-Length: 0\r\n\r\n"])
    async with pool_to(server) as pool:
        response = await pool.request("POST", "/v1/a%20b", {"X-Name": "value"}, "тело".encode(), 5)
        response.close()
        assert response.headers["x-answer"] == "é 1"
    [head] = server.heads
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    assert first == "POST /v1/a%20b HTTP/1.1"
    assert lines[0].startswith("Host: 127.0.0.1:")
    assert lines[1:] == ["Content-Length: 8", "X-Name: value"]
    assert server.bodies == ["тело".encode()]


async def test_a_connection_is_used_again() -> None:
    server = RawServer(*([HELLO] for _ in range(10)))
    async with pool_to(server) as pool:
        for _ in range(10):
            assert (await ask(pool))[1] == b"Hello"
        assert server.connections == 1
    await wait_until_closed(server)


async def test_two_at_once_have_two() -> None:
    server = RawServer([0.05, HELLO], [0.05, HELLO], [HELLO])
    async with pool_to(server) as pool:
        await asyncio.gather(ask(pool), ask(pool))
        await ask(pool)
        assert server.connections == 2


@pytest.mark.parametrize(
    "acts",
    [
        [OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nHello"],
        [HELLO + HELLO],
        [HELLO + b"garbage"],
        [HELLO, 0.05, HELLO],
        [OK + b"\r\nHello", None],
        [HELLO, None],
    ],
    ids=["to be closed", "twice", "garbage after", "unasked", "until the end", "closed"],
)
async def test_a_connection_is_not_used_again(acts: list[Act]) -> None:
    server = RawServer(acts, [HELLO.replace(b"Hello", b"Again")])
    async with pool_to(server) as pool:
        assert (await ask(pool))[1] == b"Hello"
        await asyncio.sleep(0.1)
        assert (await ask(pool))[1] == b"Again"
        assert server.connections == 2


async def test_what_is_unread_is_not_the_next_ones() -> None:
    server = RawServer([CHUNKED + b"5\r\nHello\r\n", 60.0], [HELLO.replace(b"Hello", b"Again")])
    async with pool_to(server) as pool:
        response = await pool.request("GET", "/", {}, b"", 5)
        assert await response.read() == b"Hello"
        response.close()
        response.close()
        assert (await ask(pool))[1] == b"Again"
        assert server.connections == 2


async def test_a_body_that_was_not_taken_delays_nobody() -> None:
    """An answer came before; the connection would first have to take the rest."""
    answered = asyncio.Event()
    answers = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        answers += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        await answered.wait()
        writer.transport.abort()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as listening, asyncio.timeout(10):
        pool = ConnectionPool(f"http://127.0.0.1:{port_of(listening)}", 5)
        for _ in range(2):
            response = await pool.request("POST", "/", {}, b"x" * 20_000_000, 5)
            assert response.status == 401
            response.close()
        assert answers == 2
        answered.set()


async def test_an_idle_connection_is_closed_in_the_end() -> None:
    server = RawServer([HELLO], [HELLO])
    async with pool_to(server, keep_alive_seconds=0.2) as pool:
        await ask(pool)
        await ask(pool)
        assert server.connections == server.open == 1
        await wait_until_closed(server)


async def test_only_an_idle_connection_is_closed() -> None:
    server = RawServer([HELLO], [0.3, HELLO])
    async with pool_to(server, keep_alive_seconds=0.1) as pool:
        await ask(pool)
        assert (await ask(pool))[1] == b"Hello"
        assert server.connections == 1


async def test_no_idle_connection_outlives_the_pool() -> None:
    server = RawServer([HELLO])
    async with pool_to(server, keep_alive_seconds=60) as pool:
        await ask(pool)
        pool.close()
        await wait_until_closed(server)


async def test_a_whole_body_that_nobody_has_read_delays_nobody() -> None:
    """It is longer than what is read ahead, so the connection does not read."""
    server = RawServer([OK + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000], [HELLO])
    async with pool_to(server) as pool:
        response = await pool.request("GET", "/", {}, b"", 5)
        await asyncio.sleep(0.1)
        response.close()
        assert (await ask(pool, idle_seconds=2))[1] == b"Hello"


@pytest.mark.parametrize(
    "acts",
    [
        [None],
        [b"HTTP/1.1 2", None],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [OK + b"X: " + b"x" * 70_000],
        [OK + b"X: x\r\n" * 20_000],
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"],
        [OK + b"Content-Length: 5\r\n\r\nHell", None],
        [CHUNKED + b"5\r\nHello\r\n", None],
        [CHUNKED + b"5\r\nHello\r\nno size\r\n"],
        [OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
    ],
    ids=[
        "at once",
        "in the head",
        "no HTTP",
        "long line",
        "many lines",
        "another protocol",
        "in the body",
        "between chunks",
        "no chunk",
        "two lengths",
    ],
)
async def test_what_breaks(acts: list[Act]) -> None:
    server = RawServer([*acts, 60.0], [HELLO])
    async with pool_to(server) as pool:
        with pytest.raises(ConnectionBroken):
            await ask(pool)
        assert (await ask(pool))[1] == b"Hello"


async def test_what_came_before_the_break_is_read() -> None:
    async with pool_to(RawServer([CHUNKED + b"5\r\nHello\r\n", None])) as pool:
        response = await pool.request("GET", "/", {}, b"", 5)
        await asyncio.sleep(0.1)
        assert await response.read() == b"Hello"
        for _ in range(2):
            with pytest.raises(ConnectionBroken):
                await response.read()
        response.close()


@pytest.mark.parametrize(
    "acts", [[], [OK], [CHUNKED + b"5\r\nHello\r\n"]], ids=["at once", "in the head", "in the body"]
)
async def test_silence(acts: list[Act]) -> None:
    server = RawServer([*acts, 60.0])
    async with pool_to(server) as pool:
        with pytest.raises(ServerSilent):
            await ask(pool, idle_seconds=0.2)
    await wait_until_closed(server)


async def test_a_slow_server_is_not_silent() -> None:
    drops: list[Act] = [act for byte in HELLO for act in (bytes([byte]), 0.02)]
    async with pool_to(RawServer(drops)) as pool:
        assert (await ask(pool, idle_seconds=0.2))[1] == b"Hello"


async def test_a_reader_that_takes_its_time_is_not_the_servers_silence() -> None:
    async with pool_to(RawServer([CHUNKED, 0.5, b"5\r\nHello\r\n0\r\n\r\n"])) as pool:
        response = await pool.request("GET", "/", {}, b"", 0.2)
        await asyncio.sleep(0.6)
        assert await read_all(response) == b"Hello"
        response.close()


async def test_a_server_waits_for_a_reader() -> None:
    size = 40 * 1024 * 1024
    server = RawServer([OK + b"Content-Length: %d\r\n\r\n" % size, *[b"x" * 65536] * (size // 65536)])
    async with pool_to(server) as pool:
        response = await pool.request("GET", "/", {}, b"", 5)
        await asyncio.sleep(0.5)
        assert server.sent < size // 2
        received = 0
        while read := await response.read():
            received += len(read)
        assert received == size
        response.close()


async def test_cancelling_closes_the_connection() -> None:
    server = RawServer([60.0], [CHUNKED, 60.0])
    async with pool_to(server) as pool:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await ask(pool)
            await wait_until_closed(server)


async def test_a_server_that_hangs_up_at_once() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening, asyncio.timeout(10):
        pool = ConnectionPool(f"http://127.0.0.1:{port_of(listening)}", 5)
        for _ in range(200):
            with pytest.raises(ConnectionBroken):
                await ask(pool)


@pytest.mark.parametrize("url", [unused_url(), "http://no-such-host.invalid:8000", "http://[::1]:9"])
async def test_nobody_there(url: str) -> None:
    pool = ConnectionPool(url, 5)
    with pytest.raises(NotConnected):
        await ask(pool)
    await asyncio.gather(*[ask(pool) for _ in range(3)], return_exceptions=True)


async def test_a_name_with_an_address_where_nobody_listens() -> None:
    """The name is looked up once for all."""
    server = RawServer(*([HELLO] for _ in range(50)))
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        pool = ConnectionPool(f"http://LOCALHOST:{port_of(listening)}", 5)
        await asyncio.gather(*[ask(pool) for _ in range(50)])
        assert server.heads[0].splitlines()[1] == f"Host: localhost:{port_of(listening)}"
        pool.close()


class Names:
    """What the loop's resolver says.

    Attributes:
        address: of vllm.invalid.
        asked: how often that was asked.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address = "127.0.0.1"
        self.asked = 0
        loop = asyncio.get_running_loop()
        self._getaddrinfo = loop.getaddrinfo
        monkeypatch.setattr(loop, "getaddrinfo", self._look_up)

    async def _look_up(self, host: str, port: int, **more: int) -> Any:
        if host == "vllm.invalid":
            self.asked += 1
            host = self.address
        return await self._getaddrinfo(host, port, **more)


@asynccontextmanager
async def listening_at(server: RawServer, address: str, port: int = 0) -> AsyncIterator[int]:
    """A raw server at an address; yields its port, and cuts its connections on leaving."""
    async with await asyncio.start_server(server.serve, address, port) as listening, asyncio.timeout(10):
        try:
            yield port_of(listening)
        finally:
            server.cut()


async def test_a_server_that_has_moved_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a container was made anew: for ten seconds what was looked up is the old one's address."""
    names = Names(monkeypatch)
    server = RawServer([HELLO], [HELLO], [HELLO])
    async with listening_at(server, "127.0.0.1") as port:
        pool = ConnectionPool(f"http://vllm.invalid:{port}", 5)
        await ask(pool)
    await wait_until_closed(server)
    names.address = "127.0.0.2"
    async with listening_at(server, "127.0.0.2", port):
        await ask(pool)
        assert names.asked == 2
        await ask(pool)
        assert names.asked == 2, "what was found is kept"
    pool.close()


async def test_a_server_that_has_moved_is_found_even_if_nothing_answers_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)
    server = RawServer([HELLO], [HELLO])
    async with listening_at(server, "127.0.0.1") as port:
        pool = ConnectionPool(f"http://vllm.invalid:{port}", 2)
        await ask(pool)
    await wait_until_closed(server)
    names.address = "127.0.0.2"
    with unanswering(port=port):
        async with listening_at(server, "127.0.0.2", port):
            assert (await ask(pool))[1] == b"Hello"
    pool.close()


async def test_all_tries_together_take_no_longer_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    server = RawServer([HELLO])
    async with listening_at(server, "127.0.0.1") as port:
        pool = ConnectionPool(f"http://vllm.invalid:{port}", 1)
        await ask(pool)
    await wait_until_closed(server)
    with unanswering(port=port):
        for asked in (2, 3):
            started = time.monotonic()
            with pytest.raises(NotConnected):
                await ask(pool)
            assert 0.9 < time.monotonic() - started < 5
            assert names.asked == asked, "addresses that were looked up just now are not looked up again"


@pytest.mark.parametrize("is_used_again", [False, True], ids=["a new connection", "one that was used before"])
@pytest.mark.parametrize("acts", [[None], [b"HTTP/1.1 2", None]], ids=["at once", "in the head"])
async def test_what_was_sent_is_not_sent_again(acts: list[Act], *, is_used_again: bool) -> None:
    server = RawServer(*[[HELLO]] * is_used_again, acts, [HELLO])
    async with pool_to(server) as pool:
        if is_used_again:
            await ask(pool)
        sent_before = len(server.heads)
        with pytest.raises(ConnectionBroken):
            await ask(pool)
        await asyncio.sleep(0.1)
        assert len(server.heads) == sent_before + 1
        assert server.connections == 1


async def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = RawServer([HELLO], [HELLO])
    async with await asyncio.start_server(server.serve, "localhost", 0, ssl=context) as listening:
        url = f"https://localhost:{port_of(listening)}"
        with pytest.raises(NotConnected):
            await ask(ConnectionPool(url, 5))
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        pool = ConnectionPool(url, 5)
        for _ in range(2):
            assert (await ask(pool))[1] == b"Hello"
        assert server.connections == 1
        pool.close()
