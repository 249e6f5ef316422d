"""The headers of security on every answer, and what a page of another origin may do."""

import re

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem

EXPECTED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
ORIGIN = {"Origin": "https://a.example"}


def check_headers(response: httpx2.Response) -> None:
    assert {name: response.headers.get_list(name) for name in EXPECTED} == {
        name: [value] for name, value in EXPECTED.items()
    }, response.url


@pytest.mark.parametrize("way", [{}, ORIGIN])
def test_every_answer_bears_them_once(session: SessionOf, way: dict[str, str]) -> None:
    http = session.gateway.http
    named = {"session_id": session.id}
    for path, body, status in [
        ("/chat", {**named, "message": "?"}, 200),
        ("/chat", {**named, "message": "?", "stream": True}, 200),
        ("/chat", {**named, "message": ""}, 422),
        ("/chat", {"session_id": "x", "message": "?"}, 404),
        ("/chat", {**named, "message": "?" * 2**20}, 413),
        ("/history", named, 200),
        ("/init_session", {"vllm_api_key": "wrong"}, 401),
        ("/nowhere", {}, 404),
    ]:
        response = http.post(path, json=body, headers=way)
        assert response.status_code == status
        check_headers(response)
    for path in ("/health", "/ready", "/openapi.json", "/chat", "/static-offline-docs/swagger-ui.css", "/nowhere"):
        check_headers(http.get(path, headers=way))
    check_headers(http.options("/chat", headers={**ORIGIN, "Access-Control-Request-Method": "POST"}))


def test_the_page_of_the_description_may_do_what_it_needs_and_no_more(gateway: Gateway) -> None:
    for path in ("/docs", "/docs/oauth2-redirect"):
        page = gateway.http.get(path)
        assert "<script>" in page.text, "inline, and a policy without 'unsafe-inline' would stop it"
        [policy] = page.headers.get_list("content-security-policy")
        rules = {name: sources for name, *sources in (rule.split() for rule in policy.split("; "))}
        assert rules["default-src"] == rules["frame-ancestors"] == ["'none'"]
        assert rules["script-src"] == rules["style-src"] == ["'self'", "'unsafe-inline'"]
        assert rules["connect-src"] == ["'self'"], "for /openapi.json and «Execute»"
        allowed = {source for sources in rules.values() for source in sources}
        assert allowed <= {"'none'", "'self'", "'unsafe-inline'", "data:"}, "nothing from outside"
        others = {name: value for name, value in EXPECTED.items() if name != "content-security-policy"}
        assert {name: page.headers.get_list(name) for name in others} == {name: [others[name]] for name in others}


DESCRIPTION = "/docs /openapi.json /docs/oauth2-redirect /redoc /static-offline-docs/swagger-ui.css".split()


def test_without_a_description_there_is_nothing_of_it(start_gateway: StartGateway) -> None:
    with start_gateway(docs_enabled=False) as gateway:
        for path in DESCRIPTION:
            assert "/docs" not in problem(gateway.http.get(path), 404, "not_found")["detail"]
        assert "/docs" not in problem(gateway.http.get("/chat"), 405, "method_not_allowed")["detail"]
        assert gateway.open().ok("/chat", message="?")["reply"] == "Ответ 1."
        assert gateway.http.get("/health").status_code == 200


# --- CORS ---


@pytest.mark.parametrize(
    "origins", ["*", "https://a.example", "https://b.example,*", "https://a.example,https://b.example"]
)
def test_credentials_are_never_allowed(start_gateway: StartGateway, origins: str) -> None:
    with start_gateway(cors_allow_origins=origins) as gateway:
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}
        for response in (
            gateway.http.post("/history", json={"session_id": "x"}, headers={**ORIGIN, "Cookie": "a=b"}),
            gateway.http.options("/chat", headers={**ORIGIN, **ask}),
        ):
            anyone = "*" in origins
            assert response.headers["access-control-allow-origin"] == ("*" if anyone else "https://a.example")
            assert "access-control-allow-credentials" not in response.headers
            assert ("Origin" in response.headers.get("vary", "")) or anyone


def test_a_star_among_others_is_for_all(start_gateway: StartGateway) -> None:
    with start_gateway(cors_allow_origins="https://b.example, *") as gateway:
        assert gateway.http.get("/health", headers=ORIGIN).headers["access-control-allow-origin"] == "*"


def test_nobody_is_allowed_by_an_empty_list(start_gateway: StartGateway) -> None:
    with start_gateway(cors_allow_origins="") as gateway:
        assert "access-control-allow-origin" not in gateway.http.get("/health", headers=ORIGIN).headers
        ask = {**ORIGIN, "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in gateway.http.options("/chat", headers=ask).headers


@pytest.mark.parametrize("wanted", ["content-type", "Idempotency-Key, content-type", "X-Request-Id"])
def test_a_page_may_send_the_headers_that_the_api_knows(gateway: Gateway, wanted: str) -> None:
    ask = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    response = gateway.http.options("/chat", headers=ask)
    assert response.status_code == 200
    allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
    assert {name.strip().lower() for name in wanted.split(",")} <= allowed
    assert re.split(r", ?", response.headers["access-control-allow-methods"]) == ["GET", "POST"]
