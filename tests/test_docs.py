"""/docs and /openapi.json work with no internet and tell the truth."""

import re
from typing import Any

from tests.conftest import Gateway

OUTSIDE = re.compile(r"""(?:https?:)?//(?!127\.0\.0\.1)[\w.-]+""")


def test_the_docs_page_and_what_it_loads_come_from_the_gateway(gateway: Gateway) -> None:
    page = gateway.http.get("/docs")
    assert page.status_code == 200
    assert not OUTSIDE.search(page.text), "no outside address"
    assets = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert len(assets) >= 3
    for asset in assets:
        assert asset.startswith("/"), asset
        response = gateway.http.get(asset)
        assert response.status_code == 200
        assert len(response.content) > 1000
    assert "/openapi.json" in page.text


def test_the_styles_load_nothing_from_outside(gateway: Gateway) -> None:
    page = gateway.http.get("/docs").text
    [style] = re.findall(r'href="([^"]+\.css)"', page)
    assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", gateway.http.get(style).text)


def test_every_endpoint_is_described_in_russian_with_its_errors(gateway: Gateway) -> None:
    schema = gateway.http.get("/openapi.json").json()
    assert "servers" not in schema, "the address is the one that the page came from"
    posts = "init_session set_system_prompt chat history cancel undo reset stop_session"
    assert set(schema["paths"]) == {f"/{name}" for name in posts.split()} | {"/health", "/ready", "/metrics"}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert re.search("[а-яё]", operation["description"]), path
            for status, response in operation["responses"].items():
                if status != "200":
                    assert list(response["content"]) == ["application/problem+json"], (path, status)


def test_what_may_be_wrong_with_any_body_is_declared_everywhere(gateway: Gateway) -> None:
    schema = gateway.http.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        if "post" in methods:
            assert codes(schema, path, 408) == {"request_timeout"}
            assert codes(schema, path, 413) == {"request_too_large"}
            assert codes(schema, path, 422) == {"invalid_request"}
    assert codes(schema, "/init_session", 429) == {"too_many_requests"}


def test_all_that_a_person_reads_is_russian(gateway: Gateway) -> None:
    """Docstrings are English, and must not show."""

    def walk(value: Any, name: str = "") -> None:
        if isinstance(value, dict):
            for member, inner in value.items():
                walk(inner, member)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, name)
        elif name in {"description", "summary", "tags"}:
            assert re.search("[а-яё]", value), value

    walk(gateway.http.get("/openapi.json").json())


def codes(schema: Any, path: str, status: int) -> set[str]:
    described = schema["paths"][path]["post"]["responses"][str(status)]["description"]
    return set(re.findall(r"`(\w+)`", described))


def test_the_chats_errors_are_all_declared(gateway: Gateway) -> None:
    schema = gateway.http.get("/openapi.json").json()
    assert codes(schema, "/chat", 409) == {"session_busy", "cancelled"}
    assert codes(schema, "/chat", 400) == {"context_too_long", "upstream_rejected"}
    assert codes(schema, "/chat", 404) == {"session_not_found"}
    assert codes(schema, "/chat", 503) == {"overloaded", "upstream_unavailable", "store_unavailable"}
    assert codes(schema, "/init_session", 503) == {"overloaded", "upstream_unavailable", "store_unavailable"}
    assert codes(schema, "/history", 503) == {"store_unavailable"}
    assert set(schema["paths"]["/chat"]["post"]["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }


def test_the_events_of_a_stream_are_described_with_their_data(gateway: Gateway) -> None:
    content = gateway.http.get("/openapi.json").json()["paths"]["/chat"]["post"]["responses"]["200"]["content"]
    events = [event["properties"] for event in content["text/event-stream"]["itemSchema"]["oneOf"]]
    data = {event["event"]["const"]: event["data"]["contentSchema"] for event in events}
    assert list(data) == ["delta", "reasoning", "done", "error"]
    assert (
        data["delta"]
        == data["reasoning"]
        == {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
        }
    )
    assert data["done"] == content["application/json"]["schema"], "the whole answer"
    assert {"status", "code", "detail"} <= set(data["error"]["required"])
