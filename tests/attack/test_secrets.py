"""Keys, session ids and texts: in no log line, no error and no measurement, whatever happens."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from demo.stand import Server, free_port
from tests.attack.inputs import BAD_BODIES, BAD_FIELDS, wire
from tests.conftest import Gateway, SessionOf, Upstream, wait_until_idle
from tests.raw import connected, post, read_to_the_end
from tests.scripted_vllm import (
    DONE,
    Script,
    ScriptedVLLM,
    delta,
    event,
    hanging,
    refusal,
    stream_of,
    streamed,
    whole,
)
from tests.servers import wait_until
from tests.test_shutdown import command_of_the_image

# In every secret, so that a part of one is found too, escaped or not.
MARK = "тайна"
KEY = "sk-taina-0123456789"
WRONG_KEY = "sk-taina-wrong-9876543210"
ESCAPED = json.dumps(MARK)[1:-1]
IN_UTF_8 = repr(MARK.encode())[2:-1]
QUOTED = "%D1%82%D0%B0%D0%B9%D0%BD%D0%B0"


class Busy:
    """A gateway to which everything happens; keeps the errors that it answers, and the secrets that it is told."""

    def __init__(self, gateway: Gateway, vllm: ScriptedVLLM) -> None:
        self.gateway = gateway
        self.vllm = vllm
        self.errors: list[str] = []
        self.secrets = {MARK, ESCAPED, IN_UTF_8, QUOTED, KEY, WRONG_KEY, KEY[:-4], WRONG_KEY[:-4]}
        gateway.http.event_hooks["response"].append(self._note)

    def _note(self, response: httpx2.Response) -> None:
        if response.status_code >= 400:
            self.errors.append(response.read().decode() + str(response.headers))

    def open(self) -> SessionOf:
        session = self.gateway.open(vllm_api_key=KEY, system_prompt=f"{MARK} промпта")
        self.secrets |= {session.id, session.id[:13], session.id[-13:]}
        return session

    def all_endpoints(self) -> None:
        session = self.open()
        self.vllm.scripts += [whole(f"{MARK} ответа"), stream_of(f"{MARK} потока", " и ещё")]
        assert session.ok("/chat", message=f"{MARK} вопроса")["reply"] == f"{MARK} ответа"
        assert session.events(f"{MARK} вопроса")[-1][0] == "done"
        session.ok("/set_system_prompt", system_prompt=f"{MARK} нового промпта")
        for path in ("/history", "/cancel", "/undo", "/reset", "/init_session", "/stop_session", "/history"):
            self.gateway.post(path, session_id=session.id, **({"vllm_api_key": KEY} if "init" in path else {}))
        history = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
        self.gateway.ok("/init_session", vllm_api_key=KEY, history=history)
        for path in ("/health", "/ready", "/docs", "/openapi.json", f"/history?session_id={session.id}"):
            self.gateway.http.get(path)

    def faults(self) -> None:
        scripts = [
            *(refusal(status, f"[{{'type': 'x', 'input': '{MARK}'}}]") for status in (401, 403, 404, 429, 500, 503)),
            *(Script([act]) for act in (MARK.encode(), f'{{"choices": "{MARK}"}}'.encode(), None)),
            whole(MARK, finish_reason=None),  # type: ignore[arg-type] # as a broken vLLM may
            *(streamed(acts) for acts in ([MARK.encode()], [delta(content=MARK)], [delta(content=MARK), None])),
            streamed([delta(content=MARK), event({"error": {"message": MARK}}), DONE]),
            streamed([b"data: " + f'{{"choices": [{{"delta": {MARK}'.encode() + b"\n\n"]),
            streamed([delta(content=MARK * 300_000)]),
        ]
        for script in scripts:
            session = self.open()
            for stream in (False, True):
                self.vllm.scripts.append(script)
                with self.gateway.http.stream("POST", "/chat", json=self._question(session, stream=stream)) as response:
                    answer = response.read().decode()
                if response.status_code == 200 and "event: error" in answer:
                    self.errors.append(answer.partition("event: error")[2])
        for answer in (MARK, f'{{"data": "{MARK}"}}'):
            self.vllm.models_script = Script([answer.encode()])
            assert self.gateway.post("/init_session", vllm_api_key=KEY).status_code == 502
        self.vllm.models_script = None

    def wrong_requests(self) -> None:
        session = self.open()
        headers = {"Content-Type": "application/json"}
        named = {"session_id": json.dumps(session.id)}
        good = {"/init_session": {"vllm_api_key": f'"{WRONG_KEY}"'}, "/chat": {**named, "message": f'"{MARK}"'}}
        for path, fields in BAD_FIELDS.items():
            for name, values in fields.items():
                for value in values:
                    content = wire({**good.get(path, named), name: value})
                    self.gateway.http.post(path, content=content, headers={**headers, "X-Forwarded-For": "203.0.113.1"})
        for bad in BAD_BODIES:
            self.gateway.http.post("/chat", content=bad + MARK.encode() + session.id.encode(), headers=headers)
        for body in (
            {"message": {MARK: MARK}},
            {"message": "?", "extra": {"seed": MARK}},
            {"message": MARK * 20_000},
            {"message": "?", "temperature": MARK},
            {"message": "?", "stream": MARK},
        ):
            self.gateway.post("/chat", session_id=session.id, **body)
        self.gateway.post("/chat", session_id=session.id + MARK, message=MARK)
        self.gateway.http.post("/chat", content=MARK.encode(), headers={"Content-Type": "text/plain"})
        self.gateway.http.post("/chat", content=MARK.encode() * 200_000, headers=headers)
        wrong = {"vllm_api_key": WRONG_KEY}
        guess = partial(self.gateway.http.post, "/init_session", json=wrong, headers={"X-Forwarded-For": "203.0.113.2"})
        assert [guess().status_code for _ in range(6)] == [401] * 5 + [429]

    def stops_and_departures(self) -> None:
        for stream in (False, True):
            for way in ("/cancel", "/stop_session", "leave"):
                session = self.open()
                self.vllm.scripts.append(hanging(MARK))
                if way == "leave":
                    body = json.dumps(self._question(session, stream=stream)).encode()
                    with connected(self.gateway.url) as connection:
                        connection.sendall(post("/chat", body=body))
                        wait_until(lambda: self.vllm.running == 1)
                else:
                    self._stop(session, way, stream=stream)
                wait_until_idle(self.vllm)

    def _stop(self, session: SessionOf, way: str, *, stream: bool) -> None:
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(self.gateway.http.post, "/chat", json=self._question(session, stream=stream))
            wait_until(lambda: self.vllm.running == 1)
            self.gateway.post("/chat", session_id=session.id, message=MARK)
            session.ok(way)
            asked.result()

    def attacks(self) -> None:
        session = self.open()
        secret = f"{MARK} {KEY} {session.id}".encode()
        for attack in (
            secret + b"\r\n\r\n",
            b"GET /" + secret + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nAuthorization: " + secret * 2000,
            post("/chat", f"Authorization: Bearer {KEY}", body=secret, length=10**7),
            post("/chat", body=json.dumps({"session_id": session.id}).encode() + b"x"),
            post("/chat", body=secret, length=5000),
        ):
            with connected(self.gateway.url) as connection:
                connection.sendall(attack)
                self.errors.append(read_to_the_end(connection).decode(errors="replace"))
        for name in ("Authorization", "Cookie", "X-Request-Id", "Origin", "Idempotency-Key", "Content-Type"):
            headers = [(name.encode(), MARK.encode())]
            self.gateway.http.post("/history", json={"session_id": session.id}, headers=headers)

    def a_shutdown(self, server: Server) -> None:
        asked = []
        for stream in (False, True):
            self.vllm.scripts.append(hanging(MARK) if stream else Script([60.0]))
            body = self._question(self.open(), stream=stream)
            asked.append(threading.Thread(target=self._ask_until_the_end, args=(body,)))
            asked[-1].start()
        wait_until(lambda: self.vllm.running == len(asked))
        server.process.terminate()
        for thread in asked:
            thread.join(20)
            assert not thread.is_alive()

    def _ask_until_the_end(self, body: Any) -> None:
        with suppress(httpx2.TransportError):
            self.gateway.http.post("/chat", json=body)

    def _question(self, session: SessionOf, *, stream: bool) -> Any:
        return {"session_id": session.id, "message": f"{MARK} вопроса", "stream": stream}


@pytest.fixture
def server(upstream: Upstream, model_folder: Path) -> Iterator[Server]:
    port = free_port()
    environ = {"VLLM_BASE_URL": f"{upstream.url}/v1", "TOKENIZER_PATH": str(model_folder), "LOG_LEVEL": "DEBUG"}
    environ |= {"MAX_KEY_FAILURES_PER_MINUTE": "5", "REQUEST_TIMEOUT_SECONDS": "1", "DRAIN_SECONDS": "1"}
    with Server("gateway-secrets", command_of_the_image(port), environ, port, "/ready") as started:
        started.wait_until_ready()
        yield started


def test_no_secret_leaves_the_gateway(server: Server, upstream: Upstream) -> None:
    upstream.script.key = KEY
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        busy = Busy(Gateway(server.url, http), upstream.script)
        busy.all_endpoints()
        busy.faults()
        busy.stops_and_departures()
        busy.attacks()
        busy.wrong_requests()
        measured = http.get("/metrics")
        assert measured.status_code == 200
        busy.a_shutdown(server)
    server.stop()
    log = server.log.read_text(encoding="utf-8")
    assert log.count("turn outcome=") > 20
    assert len(busy.errors) > 200
    for secret in busy.secrets:
        for told in (log, *busy.errors, measured.text):
            assert secret not in told, told[max(0, told.find(secret) - 500) : told.find(secret) + 100]
    assert "Traceback" not in log
