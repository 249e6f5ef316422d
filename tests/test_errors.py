"""The tree of errors, and what a client can do wrong; what vLLM does wrong is in tests/faults."""

import json
import textwrap
import threading
from typing import Any

import pytest

from app import errors
from app.errors import GatewayError
from tests.conftest import Gateway, SessionOf, StartGateway, Upstream, problem
from tests.raw import connected
from tests.scripted_vllm import KEY, ScriptedVLLM


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
    with connected(gateway.url) as connection:
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
