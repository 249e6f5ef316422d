"""Every error code, provoked once; what vLLM's failures become; and that nothing of a failed turn is kept."""

import json
import socket
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app import errors, vllm
from app.connection import TransportError
from app.errors import GatewayError
from tests.conftest import Gateway, SessionOf, StartGateway, Upstream, gateways_before, problem
from tests.proxy import network_to
from tests.scripted_vllm import DONE, KEY, Script, ScriptedVLLM, delta, event, hanging, refusal, streamed, whole
from tests.servers import unused_url, wait_until


def all_errors() -> list[type[GatewayError]]:
    found, waiting = [], [GatewayError]
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        found.append(error)
    return found


def drawn(error: type[GatewayError], stem: str = "", branch: str = "") -> list[str]:
    """A tree of classes as the docstring has it."""
    own = vars(error)
    said = [f"{own['status']} {own['code']}"] if "code" in own else []
    if own.get("kind"):
        said.append(f"kind {own['kind']}")
    lines = [f"{stem}{branch}{error.__name__:{32 - len(stem + branch)}} {', '.join(said)}".rstrip()]
    stem += {"": "", "├── ": "│   ", "└── ": "    "}[branch]
    children = error.__subclasses__()
    for child in children:
        lines += drawn(child, stem, "└── " if child is children[-1] else "├── ")
    return lines


def test_codes_and_kinds_are_unique_and_the_docstring_draws_them_all() -> None:
    for name in ("code", "kind"):
        own = [value for error in all_errors() if (value := vars(error).get(name))]
        assert len(set(own)) == len(own) > 8
    assert textwrap.indent("\n".join(drawn(GatewayError)), "    ") in (errors.__doc__ or "")


def test_what_vllm_did_wrong_has_a_kind() -> None:
    kinds = {error.kind for error in all_errors() if issubclass(error, errors.Upstream) and not error.__subclasses__()}
    assert kinds == {"unavailable", "broken", "timeout", "http_error", "garbage", "error_event"}


# --- what the client did wrong -------------------------------------------------------------------------------------


def test_invalid_key(gateway: Gateway) -> None:
    body = gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong")
    assert "VLLM_API_KEY" in body["detail"]


@pytest.mark.parametrize("key", [" ", "ключ", "a b", "a\nb", "a\r\nX: y", "\x00", "k" + chr(0x7F), "\u0131"])
def test_a_key_that_no_header_can_hold_is_not_even_asked_about(gateway: Gateway, vllm: ScriptedVLLM, key: str) -> None:
    vllm.key = None
    assert "латинские буквы" in gateway.refused(401, "invalid_key", "/init_session", vllm_api_key=key)["detail"]


def test_an_empty_key_is_told_to_be_empty(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.key = None
    assert "Ключ пуст" in gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="")["detail"]


@pytest.mark.parametrize(
    "session_id", ["", "x", "00000000-0000-4000-8000-000000000000", "ё" * 300, "../../etc", "\x00", "%00", " "]
)
def test_any_string_that_is_no_live_session(gateway: Gateway, session_id: str) -> None:
    for path, more in (
        ("/history", {}),
        ("/chat", {"message": "а"}),
        ("/chat", {"message": "а", "stream": True}),
        ("/set_system_prompt", {"system_prompt": ""}),
        ("/init_session", {"vllm_api_key": KEY}),
    ):
        gateway.refused(404, "session_not_found", path, session_id=session_id, **more)


def test_context_too_long(session: SessionOf) -> None:
    body = session.refused(400, "context_too_long", "/chat", message="слово " * 20_000, max_tokens=1)
    assert body["limit"] == 8000
    assert "увеличьте MAX_CONTEXT_TOKENS" in body["detail"]
    body = session.refused(400, "context_too_long", "/chat", message="слово " * 20_000)
    assert body["limit"] == 7680
    assert "уменьшите max_tokens" in body["detail"]
    assert "MAX_CONTEXT_TOKENS" not in body["detail"], "it would not help"
    assert body["needed"] > 7680
    assert session.contents() == []


def test_max_tokens_too_large(session: SessionOf) -> None:
    for stream in (False, True):
        body = session.refused(400, "context_too_long", "/chat", message="а", max_tokens=8192, stream=stream)
        assert (body["limit"], body["needed"]) == (8192, 8193)


def test_not_found_and_method_not_allowed(gateway: Gateway) -> None:
    problem(gateway.http.get("/nowhere"), 404, "not_found")
    problem(gateway.post("/chat/"), 404, "not_found")
    response = gateway.http.get("/chat")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_the_body_is_bounded(start_gateway: StartGateway) -> None:
    with start_gateway(max_request_bytes=1000) as gateway:
        session = gateway.open()
        body = session.refused(413, "request_too_large", "/chat", message="а" * 1000)
        assert body["limit"] == 1000
        chunks = (b"[" + b" " * 300 for _ in range(10))
        response = gateway.http.post("/chat", content=chunks, headers={"Content-Type": "application/json"})
        problem(response, 413, "request_too_large")


def test_a_body_over_the_bound_is_not_read_to_its_end(gateway: Gateway) -> None:
    address = httpx2.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 0), 5) as connection:
        connection.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"message": ""}, "message", "пуст"),
    ({"message": 5}, "message", "нужна строка"),
    ({"message": None}, "message", "нужна строка"),
    ({}, "message", "не задано"),
    ({"message": "а", "session_id": 5}, "session_id", "нужна строка"),
    ({"message": "а", "session_id": ["x"]}, "session_id", "нужна строка"),
    ({"message": "а", "max_tokens": 0}, "max_tokens", "не меньше 1"),
    ({"message": "а", "max_tokens": "5"}, "max_tokens", "целое"),
    ({"message": "а", "max_tokens": 1.5}, "max_tokens", "целое"),
    ({"message": "а", "max_tokens": True}, "max_tokens", "целое"),
    ({"message": "а", "temperature": 2.1}, "temperature", "не больше 2"),
    ({"message": "а", "temperature": -0.1}, "temperature", "не меньше 0"),
    ({"message": "а", "temperature": "0"}, "temperature", "нужно число"),
    ({"message": "а", "stream": "yes"}, "stream", "true или false"),
    ({"message": "а", "extra": []}, "extra", "объект"),
    ({"message": "а", "top_p": 1}, "top_p", "передавайте в extra"),
    ({"message": "а", "extra": {"messages": [], "n": 2}}, "extra.messages", "Историю ведёт сам шлюз"),
    ({"message": "а", "extra": {"max_tokens": 5}}, "extra.max_tokens", "рядом с message"),
    ({"message": "а", "extra": {"top_pp": 1}}, "extra.top_pp", "top_p"),
    ({"message": "а", "extra": {"я" * 300_000: 1}}, "extra." + "я" * 64, "молча пропустил бы его."),
    ({"message": "а", "temperature": 3}, "temperature", "не больше 2."),
]


@pytest.mark.parametrize(("body", "field", "says"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_invalid_request_names_the_field(session: SessionOf, body: dict[str, Any], field: str, says: str) -> None:
    for stream in ({}, {"stream": True}):
        response = session.gateway.post("/chat", **{"session_id": session.id, **stream, **body})
        refused = problem(response, 422, "invalid_request")
        assert refused["field"] == field
        assert says in refused["detail"]
    assert session.contents() == []


RAW_BODIES = {
    "not JSON": b"{",
    "a comma too many": b'{"message": "x",}',
    "empty": b"",
    "not an object": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "not UTF-8": b'{"message": "\xff"}',
    "too deep": b'{"session_id": ' + b"[" * 100_000,
    "too long a number": b'{"max_tokens": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", RAW_BODIES.values(), ids=RAW_BODIES.keys())
def test_bodies_that_are_no_json_object(gateway: Gateway, body: bytes) -> None:
    response = gateway.http.post("/chat", content=body, headers={"Content-Type": "application/json"})
    problem(response, 422, "invalid_request")


@pytest.mark.parametrize("extra", ["NaN", "Infinity", "1e999", r'"\ud800"'])
def test_what_cannot_be_passed_on_is_refused(session: SessionOf, extra: str) -> None:
    body = f'{{"session_id": "{session.id}", "message": "а", "extra": {{"seed": {extra}}}}}'
    response = session.gateway.http.post("/chat", content=body, headers={"Content-Type": "application/json"})
    assert problem(response, 422, "invalid_request")["field"] == "extra"


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("/chat", "message", 422),
        ("/set_system_prompt", "system_prompt", 422),
        ("/init_session", "system_prompt", 422),
        ("/init_session", "vllm_api_key", 401),
        ("/history", "session_id", 404),
    ],
)
def test_lone_surrogates_are_no_text(session: SessionOf, path: str, name: str, status: int) -> None:
    body = {"vllm_api_key": KEY} if path == "/init_session" else {"session_id": session.id}
    wire = json.dumps(body | {name: "\ud800"})
    response = session.gateway.http.post(path, content=wire, headers={"Content-Type": "application/json"})
    assert response.status_code == response.json()["status"] == status
    assert session.contents() == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/vnd.api+json"},
    ],
)
def test_a_body_of_another_type_is_told_which_header_it_lacks(session: SessionOf, headers: dict[str, str]) -> None:
    body = json.dumps({"session_id": session.id}).encode()
    response = session.gateway.http.post("/history", content=body, headers=headers)
    assert "Content-Type: application/json" in problem(response, 422, "invalid_request")["detail"]


def test_rotation_does_not_take_a_prompt_along(session: SessionOf) -> None:
    body = session.refused(422, "invalid_request", "/init_session", vllm_api_key=KEY, system_prompt="а")
    assert "/set_system_prompt" in body["detail"]


def test_every_owned_field_is_refused(session: SessionOf) -> None:
    owned = (
        "model messages stream stream_options max_tokens max_completion_tokens n truncate_prompt_tokens "
        "truncation_side chat_template add_generation_prompt continue_final_message add_special_tokens echo "
        "session_id request_id kv_transfer_params ec_transfer_params"
    )
    for name in owned.split():
        body = session.refused(422, "invalid_request", "/chat", message="а", extra={name: 1})
        assert body["field"] == f"extra.{name}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tools", "Передайте tools в самом extra."),
        ("documents", "Передайте documents в самом extra."),
        ("padding", "управляет шлюз."),
        ("tokenize", "управляет шлюз."),
        ("add_generation_prompt", "управляет шлюз."),
        ("conversation", "управляет шлюз."),
    ],
)
def test_a_template_variable_that_is_none_is_refused(session: SessionOf, name: str, hint: str) -> None:
    """vLLM takes them: tools as they are, a padding that is counted as prompt tokens."""
    extra = {"chat_template_kwargs": {"enable_thinking": False, name: [1]}}
    body = session.refused(422, "invalid_request", "/chat", message="а", extra=extra)
    assert body["field"] == f"extra.chat_template_kwargs.{name}"
    assert body["detail"].endswith(hint)
    session.ok("/chat", message="а", extra={"chat_template_kwargs": {"enable_thinking": False}})


def test_without_vllms_list_of_fields_everything_passes(upstream: Upstream, start_gateway: StartGateway) -> None:
    upstream.script.openapi = b"{}"
    with start_gateway() as gateway:
        gateway.open().ok("/chat", message="а", extra={"brand_new": 1})
    assert upstream.script.seen[0].body["brand_new"] == 1


def test_overloaded(start_gateway: StartGateway) -> None:
    with start_gateway(max_sessions=1) as gateway:
        gateway.open()
        response = gateway.post("/init_session", vllm_api_key=KEY)
        body = problem(response, 503, "overloaded")
        assert response.headers["retry-after"] == str(body["retry_after"])
        assert 590 <= body["retry_after"] <= 600


# --- what vLLM did wrong -------------------------------------------------------------------------------------------

BOTH_FORMS = [
    (lambda: refusal(400, "top_p must be in (0, 1], got 7.0."), 400, "upstream_rejected", "top_p must be in"),
    (lambda: refusal(422, "no"), 400, "upstream_rejected", "no"),
    (lambda: refusal(401, "no"), 401, "invalid_key", "VLLM_API_KEY"),
    (lambda: refusal(403, "no"), 401, "invalid_key", "VLLM_API_KEY"),
    (lambda: refusal(404, "The model `x` does not exist."), 502, "upstream_error", "does not exist"),
    (lambda: refusal(500, "engine died"), 502, "upstream_error", "ошибкой 500"),
    (lambda: refusal(503, "busy"), 502, "upstream_error", "503"),
    (lambda: refusal(302, "там"), 502, "upstream_error", "302"),
    (lambda: Script([b'{"detail": "Not Found"}'], status=404), 502, "upstream_error", "VLLM_BASE_URL"),
    (lambda: Script([b'{"detail": "no"}'], status=400), 400, "upstream_rejected", "HTTP 400"),
    (lambda: Script([b"[" * 100_000], status=400), 400, "upstream_rejected", "HTTP 400"),
    (lambda: Script([b"<html>"], status=500), 502, "upstream_error", "500"),
    (lambda: Script([b"[]"], status=500), 502, "upstream_error", "500"),
    (lambda: Script([b'{"error":"Unauthorized"}'], status=401), 401, "invalid_key", ""),
]


@pytest.mark.parametrize(("script", "status", "code", "says"), BOTH_FORMS)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_vllm(
    session: SessionOf, vllm: ScriptedVLLM, script: Any, status: int, code: str, says: str, *, stream: bool
) -> None:
    session.ok("/chat", message="раз")
    vllm.scripts.append(script())
    body = session.refused(status, code, "/chat", message="секретный вопрос", stream=stream)
    assert says in body["detail"]
    assert session.contents() == ["раз", "Ответ 1."]
    session.ok("/chat", message="ещё")


@pytest.mark.parametrize(("header", "seconds"), [({"Retry-After": "7"}, 7), ({}, 1), ({"Retry-After": "soon"}, 1)])
def test_too_many_requests(session: SessionOf, vllm: ScriptedVLLM, header: dict[str, str], seconds: int) -> None:
    vllm.scripts.append(refusal(429, "slow down", **header))
    response = session.gateway.post("/chat", session_id=session.id, message="а")
    assert problem(response, 429, "too_many_requests")["retry_after"] == seconds
    assert response.headers["retry-after"] == str(seconds)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_vllms_words_come_without_the_values_that_it_echoes(
    session: SessionOf, vllm: ScriptedVLLM, status: int
) -> None:
    words = "1 validation error: not so [type=dict_type, input_value='тайна', input_type=str]"
    vllm.scripts.append(refusal(status, words))
    response = session.gateway.post("/chat", session_id=session.id, message="тайна")
    assert ("not so" in response.text) == (status < 500)
    assert "тайна" not in response.text


def test_vllms_words_come_without_the_values_that_it_echoes_elsewhere(session: SessionOf, vllm: ScriptedVLLM) -> None:
    words = (
        "1 validation error:\n  {'type': 'dict_type', 'loc': 'body', 'msg': 'not so', 'input': {'messages': 'тайна'}}"
    )
    vllm.scripts.append(refusal(400, words))
    body = session.refused(400, "upstream_rejected", "/chat", message="тайна")
    assert "not so" in body["detail"]
    assert "тайна" not in str(body)


GARBAGE_JSON = {
    "not JSON": Script([b"<html>it works</html>"]),
    "cut short": Script([b'{"choices": [{"mess', None]),
    "an array": Script([b"[]"]),
    "no choices": Script([b'{"choices": []}']),
    "no message": Script([b'{"choices": [{}]}']),
    "a number for a text": Script([b'{"choices": [{"message": {"content": 5}}]}']),
    "not UTF-8": Script([b'{"choices": [{"message": {"content": "\xff"}}]}']),
    "a lone surrogate": Script([rb'{"choices": [{"message": {"content": "\ud800"}}]}']),
    "empty": Script([]),
    "cut at once": Script([None]),
    "an error under 200": Script([b'{"error": {"message": "engine died"}}']),
    "too deep": Script([b'{"choices": [], "x": ' + b"[" * 100_000]),
    "too deep an error": Script([b'{"error": ' + b"[" * 100_000]),
    "too large": Script([b'{"choices": [{"message": {"content": "', *([b"x" * (1 << 20)] * 65)]),
}


@pytest.mark.parametrize("script", GARBAGE_JSON.values(), ids=GARBAGE_JSON.keys())
def test_garbage_for_json(session: SessionOf, vllm: ScriptedVLLM, script: Script) -> None:
    vllm.scripts.append(script)
    session.refused(502, "upstream_error", "/chat", message="а")
    assert session.contents() == []
    session.ok("/chat", message="ещё")


GARBAGE_STREAM = {
    "not JSON": [delta(content="нача"), b"data: {oops\n\n"],
    "cut off": [delta(content="нача"), 0.1, None],
    "cut off within an event": [delta(content="нача"), b'data: {"choi', 0.1, None],
    "ended without a finish reason": [delta(content="нача"), DONE],
    "ended without anything": [],
    "an error event": [delta(content="нача"), event({"error": {"message": "engine died", "code": 500}}), DONE],
    "not UTF-8": [b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'],
    "a number for a text": [delta(content=5)],
    "an endless event": [b"data: " + b"x" * 700_000, b"x" * 700_000],
    "a huge event": [delta(content="x" * 1_100_000)],
    "too deep": [b'data: {"x": ' + b"[" * 100_000 + b"\n\n"],
}


@pytest.mark.parametrize("acts", GARBAGE_STREAM.values(), ids=GARBAGE_STREAM.keys())
def test_garbage_for_a_stream_is_an_error_event(session: SessionOf, vllm: ScriptedVLLM, acts: Any) -> None:
    vllm.scripts.append(streamed(acts))
    events = session.events("а")
    assert events[-1][0] == "error"
    assert (events[-1][1]["status"], events[-1][1]["code"]) == (502, "upstream_error")
    assert [name for name, _ in events[:-1]] == ["delta"] * (len(events) - 1)
    assert session.contents() == []
    session.ok("/chat", message="ещё")


def test_what_came_before_a_failure_in_the_same_read_is_passed_on(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="раз") + delta(content="два") + event({"error": {"message": "x"}})]))
    assert [name for name, _ in session.events("а")] == ["delta", "delta", "error"]
    assert session.contents() == []


def test_an_unreachable_vllm_is_no_wrong_key(start_gateway: StartGateway) -> None:
    url = f"{unused_url()}/v1"
    with start_gateway(vllm_base_url=url) as gateway:
        body = gateway.refused(503, "upstream_unavailable", "/init_session", vllm_api_key=KEY)
        assert "docker compose logs vllm" in body["detail"]
        assert url in body["detail"]


def test_a_vllm_that_goes_away_between_turns(gateway: Gateway, upstream: Upstream) -> None:
    session = gateway.open()
    session.ok("/chat", message="раз")
    upstream.script.scripts.append(Script([None], status=200))
    session.refused(502, "upstream_error", "/chat", message="два")
    assert session.contents() == ["раз", "Ответ 1."]


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_vllm_times_out(start_gateway: StartGateway, vllm: ScriptedVLLM, *, stream: bool) -> None:
    with start_gateway(vllm_idle_timeout_seconds=0.3, vllm_total_timeout_seconds=0.6) as gateway:
        session = gateway.open()
        script = whole("поздно")
        script.delay = 5
        vllm.scripts.append(script)
        started = time.monotonic()
        session.refused(504, "upstream_timeout", "/chat", message="а", stream=stream)
        assert time.monotonic() - started < 4
        assert session.contents() == []


def test_a_stream_that_falls_silent_ends_with_an_error_event(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(vllm_idle_timeout_seconds=0.3) as gateway:
        session = gateway.open()
        vllm.scripts.append(streamed([delta(content="нача"), 5.0]))
        assert [name for name, _ in session.events("а")] == ["delta", "error"]
        assert session.contents() == []


def test_what_is_no_http_in_the_middle_of_a_stream_ends_it(upstream: Upstream, model_folder: Path) -> None:
    upstream.script.scripts.append(hanging("нача"))
    with network_to(upstream.url) as network, gateways_before(network.url, model_folder)() as gateway:
        session = gateway.open()
        with session.stream("а") as source:
            events = iter(source)
            assert next(events).event == "delta"
            network.garble()
            [(name, body)] = [(event.event, event.json()) for event in events]
        assert name == "error"
        assert isinstance(body, dict)
        assert body["code"] == "upstream_error"
        assert session.contents() == []


def test_what_is_no_http_in_the_middle_of_an_answer_ends_it(upstream: Upstream, model_folder: Path) -> None:
    upstream.script.scripts.append(Script([b'{"choices"', 60.0]))
    with network_to(upstream.url) as network, gateways_before(network.url, model_folder)() as gateway:
        session = gateway.open()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(session.refused, 502, "upstream_error", "/chat", message="а")
            wait_until(lambda: network.heard.endswith(b'{"choices"\r\n'))
            network.garble()
            asked.result()
        assert session.contents() == []


def test_a_stream_that_never_ends_is_ended(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(vllm_total_timeout_seconds=0.5) as gateway:
        session = gateway.open()
        vllm.scripts.append(streamed([delta(content="а"), 0.1] * 100))
        name, body = session.events("а")[-1]
        assert (name, body["code"]) == ("error", "upstream_timeout")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Script([b"<html>"]), "VLLM_BASE_URL"),
        (Script([b'{"data": []}']), "VLLM_MODEL_NAME"),
        (Script([b'{"data": [{"id": "other", "max_model_len": 5}]}']), "other"),
        (Script([b'{"data": [{"id": "/app/model"}]}']), "/app/model"),
        (Script([b"no"], status=500), "500"),
        (Script([b"no"], status=404), "VLLM_BASE_URL"),
    ],
)
def test_a_server_that_is_not_the_vllm_we_expect(
    gateway: Gateway, vllm: ScriptedVLLM, answer: Script, says: str
) -> None:
    vllm.models_script = answer
    assert says in gateway.refused(502, "upstream_error", "/init_session", vllm_api_key=KEY)["detail"]


def test_an_adapter_is_as_long_as_its_model(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.models_script = Script([b'{"data": [{"id": "base", "max_model_len": 600}, {"id": "/app/model"}]}'])
    assert gateway.open().ok("/chat", message="а", max_tokens=100)["context"]["limit"] == 500


def test_the_table_of_foreign_errors_is_complete() -> None:
    kinds = {*TransportError.__subclasses__(), TimeoutError}
    assert len(kinds) == 4
    assert vllm._TRANSPORT_ERRORS.keys() == kinds  # noqa: SLF001 - the table is the promise


@pytest.mark.parametrize("depth", [100, 500, *range(850, 1000, 5)])
def test_deep_extra_is_passed_on_or_refused(session: SessionOf, depth: int) -> None:
    extra = '{"seed": ' + "[" * depth + "]" * depth + "}"
    body = f'{{"session_id": "{session.id}", "message": "а", "extra": {extra}}}'
    response = session.gateway.http.post("/chat", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 422), response.text


def test_simultaneous_sessions_do_not_mix(gateway: Gateway) -> None:
    sessions = [gateway.open() for _ in range(8)]
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda s=session: answers.append(s.ok("/chat", message=s.id)["reply"]))
        for session in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    for session in sessions:
        assert session.contents()[0] == session.id
