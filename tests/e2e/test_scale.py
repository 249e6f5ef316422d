"""Several gateways and several vLLMs, as `deploy/docker-compose.scale.yaml` joins them, as processes of this machine.

The real HAProxy runs with the shipped files, before gateways started as their image starts them and a real Redis. What
Docker would be asked for, a small name server answers.
"""

import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from demo.stand import Server, free_port
from tests.conftest import Gateway, SessionOf, problem
from tests.raw import connected
from tests.readme import ROOT
from tests.redis_process import RedisProcess, program, redis_process
from tests.scripted_vllm import KEY, ScriptedVLLM, Seen, delta, hanging, streamed
from tests.servers import serve, wait_until
from tests.test_deploy import SCALE, service
from tests.test_shutdown import command_of_the_image

CONFIGURATION = ROOT / "deploy" / "haproxy"
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
GATEWAYS = ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
# Words of HAProxy about a gateway.
DRAINING = "is DOWN, reason: Layer7 wrong status, code: 503"
VLLMS = {"vllm": "127.0.2.1", "vllm-2": "127.0.2.2"}


class NameServer(threading.Thread):
    """Answers as Docker's own does: with the addresses of a service's containers.

    Attributes:
        address: where it is to be asked.
        known: addresses by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())

    def run(self) -> None:
        """Answer until it is stopped."""
        while True:
            question, client = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(self._answer(question), client)

    def stop(self) -> None:
        """Answer no more."""
        self._socket.sendto(b"", self._socket.getsockname())
        self.join()
        self._socket.close()

    def _answer(self, question: bytes) -> bytes:
        labels, end = [], 12
        while length := question[end]:
            labels.append(question[end + 1 : end + 1 + length].decode())
            end += 1 + length
        end += 5
        addresses = self.known.get(".".join(labels))
        is_for_ipv4 = question[end - 4 : end - 2] == b"\0\1"
        found = addresses if addresses is not None and is_for_ipv4 else []
        flags = 0x8180 if addresses is not None else 0x8183
        head = question[:2] + struct.pack("!5H", flags, 1, len(found), 0, 0)
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) for address in found)
        return head + question[12:end] + records


def haproxy(name: str, names: NameServer, target_port: int) -> Server:
    """An HAProxy of the stand, that is not asked anything yet."""
    assert HAPROXY is not None
    port = free_port()
    command = [HAPROXY, "-db", "-f", str(CONFIGURATION / "haproxy.cfg"), "-f", str(CONFIGURATION / f"{name}.cfg")]
    environ = {"LISTEN": f"127.0.0.1:{port}", "DNS": names.address, "TARGET_PORT": str(target_port)}
    return Server(f"haproxy-{name}", command, environ, port, "/health")


def listens(server: Server) -> bool:
    """Whether it takes connections already."""
    try:
        connected(server.url).close()
    except OSError:
        return False
    return True


@dataclass
class Stand:
    """All that runs.

    Attributes:
        names: what Docker's name server would know.
        proxy: the gateway, as clients see it.
        front: the HAProxy before the gateways.
        balancer: the HAProxy before the vLLMs.
        vllms: by name.
        gateways: those that run, by address.
    """

    names: NameServer
    proxy: Gateway
    front: Server
    balancer: Server
    redis: RedisProcess
    model: Path
    gateway_port: int
    vllm_port: int
    vllms: dict[str, ScriptedVLLM] = field(default_factory=lambda: {name: ScriptedVLLM() for name in VLLMS})
    gateways: dict[str, Server] = field(default_factory=dict)
    _serving: dict[str, ExitStack] = field(default_factory=dict)

    def start_vllm(self, name: str) -> None:
        """Have a vLLM serve at its address."""
        self._serving[name] = ExitStack()
        self._serving[name].enter_context(serve(self.vllms[name].app, self.vllm_port, VLLMS[name]))

    def stop_vllm(self, name: str) -> None:
        """Nobody listens at its address any more."""
        self._serving.pop(name).close()

    def start_gateway(self, address: str) -> None:
        """Start a gateway with the settings that the stand gives it."""
        given = service("gateway", SCALE)["environment"]
        environ = {
            "FORWARDED_ALLOW_IPS": given["FORWARDED_ALLOW_IPS"],
            "VLLM_BASE_URL": f"{self.balancer.url}/v1",
            "TOKENIZER_PATH": str(self.model),
            "SESSION_STORE_URL": self.redis.url,
            "SESSION_SECRET": "0123456789abcdef" * 2,
        }
        command = command_of_the_image(self.gateway_port)
        command[command.index("127.0.0.1")] = address
        self.gateways[address] = Server(f"gateway-{address}", command, environ, self.gateway_port, "/ready")
        self.names.known["gateway"] = list(self.gateways)

    def url(self, address: str) -> str:
        """A gateway's own, past the proxy."""
        return f"http://{address}:{self.gateway_port}"

    def log(self, address: str) -> str:
        """What a gateway has written."""
        return said_by(self.gateways[address])

    def vllms_of(self, session: str) -> Counter[str]:
        """Which vLLMs have answered a session's turns, by what the gateways call it."""
        return Counter(
            name for name, vllm in self.vllms.items() for seen in vllm.seen if seen.headers["x-session-id"] == session
        )

    def all_seen(self) -> list[Seen]:
        """The turns of all vLLMs."""
        return [seen for vllm in self.vllms.values() for seen in vllm.seen]

    def name_of(self, session: SessionOf) -> str:
        """What the gateways call a session before vLLM; takes a turn."""
        message = f"кто я? {time.monotonic_ns()}"
        session.ok("/chat", message=message)
        [name] = [
            seen.headers["x-session-id"] for seen in self.all_seen() if seen.body["messages"][-1]["content"] == message
        ]
        return name

    def vllm_of(self, session: SessionOf) -> str:
        """Where a session's turns go; takes a turn."""
        [vllm] = self.vllms_of(self.name_of(session))
        return vllm

    def stop(self) -> None:
        """End everything that this has started."""
        for name in list(self._serving):
            self.stop_vllm(name)
        for gateway in self.gateways.values():
            gateway.kill()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Stand]:
    """Two gateways and two vLLMs, ready."""
    if HAPROXY is None or program() is None:
        pytest.skip("haproxy or redis-server is not installed")
    with ExitStack() as stack:
        names = NameServer()
        names.known = {name: [address] for name, address in VLLMS.items()}
        names.start()
        stack.callback(names.stop)
        redis = stack.enter_context(redis_process(tmp_path_factory.mktemp("redis")))
        gateway_port, vllm_port = free_port(), free_port()
        proxy = stack.enter_context(haproxy("gateways", names, gateway_port))
        balancer = stack.enter_context(haproxy("vllm", names, vllm_port))
        wait_until(lambda: listens(proxy) and listens(balancer))
        http = stack.enter_context(httpx2.Client(base_url=proxy.url, timeout=30))
        started = Stand(names, Gateway(proxy.url, http), proxy, balancer, redis, model_folder, gateway_port, vllm_port)
        stack.callback(started.stop)
        for vllm in VLLMS:
            started.start_vllm(vllm)
        for address in GATEWAYS[:2]:
            started.start_gateway(address)
        wait_until(lambda: ready_gateways(started) == set(GATEWAYS[:2]), 60)
        yield started


def said_by(server: Server) -> str:
    """What a program has written."""
    return server.log.read_text(encoding="utf-8")


def requests_of(gateway: Server) -> list[str]:
    """What a gateway has written about turns and other requests, but for HAProxy's checks."""
    return [line for line in said_by(gateway).splitlines() if "/ready" not in line]


@contextmanager
def noticed(server: Server, words: str) -> Iterator[None]:
    """Wait, at the end of the block, until a HAProxy says this once more than before."""
    before = said_by(server).count(words)
    yield
    wait_until(lambda: said_by(server).count(words) > before)


def ready_gateways(stand: Stand) -> set[str]:
    """Through which gateways requests go now."""
    before = {address: stand.log(address).count("GET /whoami") for address in stand.gateways}
    for _ in range(2 * len(stand.gateways)):
        with httpx2.Client(base_url=stand.proxy.url) as http:
            http.get("/whoami")
    return {address for address in stand.gateways if stand.log(address).count("GET /whoami") > before[address]}


@contextmanager
def client_at(stand: Stand, address: str) -> Iterator[Gateway]:
    """A client with an address of its own."""
    transport = httpx2.HTTPTransport(local_address=address)
    with httpx2.Client(base_url=stand.proxy.url, transport=transport, timeout=30) as http:
        yield Gateway(stand.proxy.url, http)


@contextmanager
def clients_of_gateways(stand: Stand) -> Iterator[list[Gateway]]:
    """Clients that go past the proxy, one for each gateway."""
    with ExitStack() as stack:
        yield [
            Gateway(url, stack.enter_context(httpx2.Client(base_url=url, timeout=30)))
            for url in map(stand.url, stand.gateways)
        ]


def test_a_session_stays_with_one_vllm_whichever_gateway_it_comes_through(stand: Stand) -> None:
    with clients_of_gateways(stand) as gateways:
        names = []
        for number in range(24):
            session = stand.proxy.open()
            names.append(stand.name_of(session))
            for gateway in gateways:
                SessionOf(gateway, session.id).ok("/chat", message=f"ещё {number}")
            assert len(session.contents()) == 6
    turns = [stand.vllms_of(name) for name in names]
    assert [sorted(turn.values()) for turn in turns] == [[3]] * 24
    by_vllm = Counter(vllm for turn in turns for vllm in turn)
    assert set(by_vllm) == set(VLLMS)
    assert min(by_vllm.values()) >= 5


def test_sessions_of_a_vllm_that_has_died_go_to_another_and_return(stand: Stand) -> None:
    session = stand.proxy.open()
    own, name = stand.vllm_of(session), stand.name_of(session)
    [other] = set(VLLMS) - {own}
    staying = next(s for s in iter(stand.proxy.open, None) if stand.vllm_of(s) == other)
    before = stand.vllms_of(name)
    with noticed(stand.balancer, f"Server vllm/{own} is DOWN"):
        stand.stop_vllm(own)
        # Nobody has noticed yet: it is the refused connection that sends the turn elsewhere.
        session.ok("/chat", message="без него")
    session.ok("/chat", message="и снова")
    assert stand.vllms_of(name) - before == Counter({other: 2})
    assert stand.vllm_of(staying) == other
    with noticed(stand.balancer, f"Server vllm/{own} is UP"):
        stand.start_vllm(own)
    session.ok("/chat", message="вернулся")
    assert stand.vllms_of(name)[own] == before[own] + 1
    assert stand.vllm_of(staying) == other


def test_a_turn_that_a_vllm_has_got_is_never_sent_to_another(stand: Stand) -> None:
    session = stand.proxy.open()
    own = stand.vllm_of(session)
    stand.stop_vllm(own)
    heard: list[bytes] = []
    with breaking_off(VLLMS[own], stand.vllm_port, heard):
        before = len(stand.all_seen())
        session.refused(502, "upstream_error", "/chat", message="раз")
    stand.start_vllm(own)
    wait_until(lambda: stand.vllm_of(session) == own)
    assert len([request for request in heard if "раз".encode() in request]) == 1
    assert not [seen for seen in stand.all_seen()[before:] if seen.body["messages"][-1]["content"] == "раз"]
    assert "раз" not in session.contents()


@contextmanager
def breaking_off(address: str, port: int, heard: list[bytes]) -> Iterator[None]:
    """A server that is healthy, and closes without a word when it is asked for more."""
    listener = socket.create_server((address, port))

    def listen() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(65536)
                if not request:
                    return
                if request.startswith(b"GET /health"):
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                else:
                    heard.append(request)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        with socket.create_connection((address, port)):
            pass
        thread.join()
        listener.close()


def test_a_stream_comes_event_by_event_and_ends_with_its_client(stand: Stand) -> None:
    session = stand.proxy.open()
    vllm = stand.vllms[stand.vllm_of(session)]
    vllm.scripts.append(hanging("Раз", "два"))
    with session.stream("?") as source:
        events = iter(source)
        assert [next(events).json() for _ in range(2)] == [{"text": "Раз"}, {"text": "два"}]
        assert vllm.running == 1
    assert wait_until(lambda: vllm.running == 0) < 1
    assert wait_until(lambda: session.contents()[-1] == "Раздва") < 1


def test_a_client_that_leaves_before_the_answer_stops_it(stand: Stand) -> None:
    session = stand.proxy.open()
    vllm = stand.vllms[stand.vllm_of(session)]
    slow = hanging()
    slow.delay = 60.0
    vllm.scripts.append(slow)
    with pytest.raises(httpx2.ReadTimeout):
        stand.proxy.http.post("/chat", json={"session_id": session.id, "message": "?"}, timeout=0.3)
    assert wait_until(lambda: vllm.running == 0) < 1


def test_the_gateway_learns_who_the_client_is_and_cannot_be_lied_to(stand: Stand) -> None:
    with client_at(stand, "127.0.3.7") as client:
        for lie in ("203.0.113.1", "203.0.113.2, 127.0.0.1", "::1"):
            response = client.http.get("/lie", headers=[("X-Forwarded-For", lie), ("X-Forwarded-For", "203.0.113.9")])
            problem(response, 404, "not_found")
    written = [line for address in stand.gateways for line in stand.log(address).splitlines() if "GET /lie" in line]
    assert len(written) == 3
    assert all("127.0.3.7:0 " in line for line in written), written


def test_guesses_are_counted_by_client(stand: Stand) -> None:
    with client_at(stand, "127.0.3.8") as guesser, client_at(stand, "127.0.3.9") as other:
        statuses = Counter(
            guesser.post("/init_session", vllm_api_key=f"wrong-{number}").status_code for number in range(70)
        )
        assert statuses == {401: 60, 429: 10}, "each of two gateways bears 30"
        guesser.refused(429, "too_many_requests", "/init_session", vllm_api_key=KEY)
        other.open()


def test_a_stopping_gateway_loses_nothing_and_gets_nothing_new_and_another_takes_its_place(stand: Stand) -> None:
    session, other = stand.proxy.open(), stand.proxy.open()
    vllm = stand.vllms[stand.vllm_of(session)]
    vllm.scripts.append(streamed([delta(content="До"), 2.0, delta(content="говорил"), delta("stop", content="")]))
    with session.stream("?") as source, clients_of_gateways(stand) as gateways:
        events = iter(source)
        next(events)
        [address] = [
            address
            for address, gateway in zip(stand.gateways, gateways, strict=True)
            if gateway.metrics()("turns_in_flight") == 1
        ]
        stopped = stand.gateways[address]
        with noticed(stand.front, DRAINING):
            stopped.process.terminate()
        stand.start_gateway(GATEWAYS[2])
        asked = requests_of(stopped)
        for number in range(10):
            other.ok("/chat", message=f"без него {number}")
        assert ready_gateways(stand) == set(GATEWAYS[:2]) - {address}
        assert requests_of(stopped) == asked
        assert stopped.process.poll() is None, "it has not ended yet"
        *_, last = events
    answer: Any = last.json()
    assert (last.event, answer["reply"]) == ("done", "Договорил")
    assert stopped.process.wait(10) in {0, -signal.SIGTERM}
    del stand.gateways[address]
    wait_until(lambda: GATEWAYS[2] in ready_gateways(stand), 30)
    assert session.contents()[-1] == "Договорил"


def test_without_any_vllm_the_gateways_themselves_say_so(stand: Stand) -> None:
    session = stand.proxy.open()
    session.ok("/chat", message="было")
    with noticed(stand.front, "backend 'ready' has no server available"):
        for name in VLLMS:
            stand.stop_vllm(name)
    refusal = session.refused(502, "upstream_error", "/chat", message="?")
    assert "vLLM" in refusal["detail"]
    assert session.contents()[0] == "было"
    problem(stand.proxy.http.get("/ready"), 503, "upstream_unavailable")
    for name in VLLMS:
        stand.start_vllm(name)
    wait_until(lambda: stand.proxy.http.get("/ready").status_code == 200)
    session.ok("/chat", message="и снова")


def test_without_any_gateway_the_proxy_says_so_in_russian(stand: Stand) -> None:
    question = {"session_id": "?", "message": "?"}
    with noticed(stand.front, "backend 'alive' has no server available"):
        for gateway in stand.gateways.values():
            gateway.kill()
        at_once = stand.proxy.http.post("/chat", json=question)
    for response in (at_once, stand.proxy.http.post("/chat", json=question)):
        refusal = problem(response, 503, "overloaded")
        assert refusal["retry_after"] == int(response.headers["retry-after"])
        assert "docker compose logs gateway" in refusal["detail"]
        assert response.headers["x-content-type-options"] == "nosniff"
