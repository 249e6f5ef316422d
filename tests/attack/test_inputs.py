"""Bad inputs to every endpoint: a documented refusal each, no defect, and nothing of the session changed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.client import HTTPConnection

import httpx2
import pytest

from tests.attack.inputs import (
    BAD_BODIES,
    BAD_CONTENT_TYPES,
    BAD_FIELDS,
    ENDPOINTS,
    LONE_SURROGATES,
    NO_SESSION,
    NO_TEXT,
    near_ids,
    wire,
)
from tests.conftest import Gateway, SessionOf, StartGateway
from tests.scripted_vllm import KEY, ScriptedVLLM, openapi

JSON = {"Content-Type": "application/json"}
# The second goes past the short way of /chat.
WAYS: list[dict[str, str]] = [{}, {"Origin": "https://a.example"}]


@pytest.fixture
def gateway(start_gateway: StartGateway) -> Iterator[Gateway]:
    with start_gateway(max_key_failures_per_minute=0) as started:
        yield started


class Attack:
    """Sends what is bad and sees that it is refused as the description of the API says."""

    def __init__(self, session: SessionOf, vllm: ScriptedVLLM, log: pytest.LogCaptureFixture) -> None:
        self.session = session
        self.tried = 0
        self._vllm = vllm
        self._log = log
        session.ok("/chat", message="раз")
        self._history = session.ok("/history")
        self._declared = session.gateway.http.get("/openapi.json").json()["paths"]

    def good(self, path: str) -> dict[str, str]:
        """A body that the endpoint takes."""
        fields = {} if path == "/init_session" else {"session_id": json.dumps(self.session.id)}
        more = {"/init_session": {"vllm_api_key": KEY}, "/set_system_prompt": {"system_prompt": "x"}}
        more["/chat"] = {"message": "?"}
        return {**fields, **{name: json.dumps(value) for name, value in more.get(path, {}).items()}}

    def check(self, path: str, content: bytes, headers: Mapping[str, str] = JSON) -> None:
        """Both ways."""
        for way in WAYS:
            response = self.session.gateway.http.post(path, content=content, headers={**headers, **way})
            self.check_refusal(response, path, content[:200])
            self.tried += 1

    def check_refusal(self, response: httpx2.Response, path: str, told: object) -> None:
        assert 400 <= response.status_code < 500, (path, told, response.text[:300])
        assert response.headers["content-type"] == "application/problem+json", (path, told)
        code = response.json()["code"]
        declared = self._declared[path]["post"]["responses"][str(response.status_code)]["description"]
        assert f"`{code}`" in declared, (path, told, code)

    def check_end(self) -> None:
        """All is as it was."""
        now = self.session.ok("/history")
        assert now == self._history
        assert len(self._vllm.seen) == 1, "vLLM was asked"
        assert self.session.gateway.session_count() == 1
        assert "Traceback" not in self._log.text
        assert not [record for record in self._log.records if record.levelname in {"ERROR", "CRITICAL"}]


@pytest.fixture
def attack(session: SessionOf, vllm: ScriptedVLLM, caplog: pytest.LogCaptureFixture) -> Iterator[Attack]:
    started = Attack(session, vllm, caplog)
    yield started
    started.check_end()


@pytest.mark.parametrize("path", ENDPOINTS)
def test_requests_that_are_none(attack: Attack, path: str) -> None:
    try_bodies(attack, path)
    try_content_types(attack, path)
    try_sessions(attack, path)


def try_bodies(attack: Attack, path: str) -> None:
    for body in BAD_BODIES:
        attack.check(path, body)
    good = attack.good(path)
    for name in good:
        attack.check(path, wire({key: value for key, value in good.items() if key != name}))
    attack.check(path, wire({**good, "nothing": "1"}))
    attack.check(path, wire({**good, "\0": "1"}))
    attack.check(path, wire({**good, "ё" * 10_000: "1"}))
    attack.check(path, wire(good)[:-1])
    attack.check(path, wire(good) + b"x")
    attack.check(path, wire(good) + b"\0")
    attack.check(path, b"[" + wire(good) + b"]")
    for value in LONE_SURROGATES:
        attack.check(path, wire(good)[:-1] + f", {value}: 1}}".encode())


def try_content_types(attack: Attack, path: str) -> None:
    for media_type in BAD_CONTENT_TYPES:
        headers = {} if media_type is None else {"Content-Type": media_type}
        attack.check(path, wire(attack.good(path)), headers)


def try_sessions(attack: Attack, path: str) -> None:
    good = attack.good(path)
    for session_id in (*NO_SESSION, *near_ids(attack.session.id)):
        attack.check(path, wire({**good, "session_id": json.dumps(session_id)}))
        attack.check(path, wire({**good, "session_id": json.dumps(session_id, ensure_ascii=False)}))
    for value in (*NO_TEXT, *LONE_SURROGATES, *([] if path == "/init_session" else ["null"])):
        attack.check(path, wire({**good, "session_id": value}))
        attack.check(path, wire(good)[:-1] + f', "session_id": {value}}}'.encode())  # twice: the last counts


FIELDS: list[tuple[str, str, dict[str, str]]] = [
    (path, field, {}) for path, fields in BAD_FIELDS.items() for field in fields
]
FIELDS += [("/chat", field, {"stream": "true"}) for field in BAD_FIELDS["/chat"]]


@pytest.mark.parametrize(("path", "field", "more"), FIELDS)
def test_fields_that_are_not_what_they_should_be(attack: Attack, path: str, field: str, more: dict[str, str]) -> None:
    for value in BAD_FIELDS[path][field]:
        attack.check(path, wire({**attack.good(path), **more, field: value}))


# --- what is odd, and fine or vLLM's to judge ---

ODD_VALUES = [
    *(
        "null",
        "5",
        "-0",
        "-0.0",
        "1e308",
        "1e-400",
        "true",
        '"x"',
        "[]",
        "{}",
        "[1]",
        "[null]",
        '["x"]',
        "[{}]",
        "[[[]]]",
    ),
    *('[{"function": 5}]', '[{"function": {"parameters": 5}}]', '[{"type": "function"}]', '{"": 1}', '{"messages": 5}'),
    *(r'{"x": "\u0000"}', '{"enable_thinking": 1e30}', str(10**30), str(-(2**63) - 1), str(2**64), "9" * 4000),
    *(f'[{{"title": {10**30}}}]', "[" * 150 + "]" * 150, "[" * 900 + "]" * 900, '{"x": ' * 900 + "1" + "}" * 900),
]
EXTRAS = "tools documents chat_template_kwargs reasoning_effort response_format seed stop".split()


@pytest.mark.parametrize("way", WAYS)
def test_parameters_of_any_kind_reach_vllm_or_are_refused(
    gateway: Gateway, vllm: ScriptedVLLM, way: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    session = gateway.open()
    vllm.openapi = openapi(EXTRAS)
    gateway.ok("/init_session", vllm_api_key=KEY)
    taken = 0
    for name in EXTRAS:
        for value in ODD_VALUES:
            fields = {"session_id": json.dumps(session.id), "message": '"?"', "extra": f'{{"{name}": {value}}}'}
            response = gateway.http.post("/chat", content=wire(fields), headers={**JSON, **way})
            assert response.status_code in {200, 400, 422}, (name, value[:100], response.text[:300])
            if response.status_code == 200:
                taken += 1
                assert vllm.seen[-1].body[name] == json.loads(value)
                session.ok("/undo")
    assert taken > 100
    assert session.contents() == []
    assert "Traceback" not in caplog.text


ODD = [
    *({"temperature": value} for value in ("-0", "-0.0", "null", "0", "2", "2.0", "1e-400", "1E0")),
    *({"message": value} for value in (r'"\u0000"', '" "', r'"\uffff"', r'"\ud83d\ude00"', '"\x7f"', r'"\u202e"')),
    *({"extra": value} for value in ("null", "{}")),
    *({"max_tokens": value} for value in ("1", "7000")),
]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_odd_and_fine(session: SessionOf, vllm: ScriptedVLLM, way: dict[str, str]) -> None:
    good = {"session_id": json.dumps(session.id), "message": '"?"'}
    for number, odd in enumerate(ODD, start=1):
        response = session.gateway.http.post("/chat", content=wire({**good, **odd}), headers={**JSON, **way})
        assert response.status_code == 200, (odd, response.text)
        assert vllm.said()[-1] == json.loads(odd.get("message", '"?"'))
        assert len(session.contents()) == 2 * number


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("types", "status"),
    [
        (["application/json; charset=utf-8"], 200),
        (["application/json; charset=koi8-r"], 200),  # JSON is in UTF-8 whatever is said
        (["application/json;"], 200),
        (["APPLICATION/JSON ; x=y; x=z"], 200),
        (["application/json", "text/plain"], 200),  # the first counts, on both ways
        (["text/plain", "application/json"], 422),
    ],
)
def test_content_types_with_more_to_them(
    session: SessionOf, way: dict[str, str], types: list[str], status: int
) -> None:
    content = wire({"session_id": json.dumps(session.id), "message": json.dumps("да", ensure_ascii=False)})
    headers = [("Content-Type", media_type) for media_type in types] + [*way.items()]
    response = session.gateway.http.post("/chat", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert session.contents()[:1] == (["да"] if status == 200 else [])


def test_other_methods_and_other_paths(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    address = httpx2.URL(gateway.url)
    paths = "/ /chat/ //chat /CHAT /chat%00 /chat;x /../chat /%2e%2e/chat /chat%2f /%ff /%ed%a0%80 /static-offline-docs"
    assets = (
        "",
        "/",
        "/%00",
        "/..",
        "/../core.py",
        "/%2e%2e/core.py",
        "/%2e%2e%2fcore.py",
        "//etc/passwd",
        "/" + "x" * 5000,
    )
    requests = [(method, path) for path in paths.split() for method in ("GET", "POST", "PUT")]
    requests += [("GET", f"/static-offline-docs{asset}") for asset in assets]
    requests += [(method, path) for path in ENDPOINTS for method in "GET HEAD PUT DELETE PATCH OPTIONS TRACE".split()]
    requests += [(method, path) for path in ("/health", "/ready", "/docs") for method in "POST PUT DELETE".split()]
    requests += [("POST", path) for path in ("/chat?" + "x" * 5000, "/chat?session_id=%00", "/chat?%ff=%ff")]
    with closing(HTTPConnection(address.host, address.port or 80)) as connection:
        for method, path in requests:
            connection.request(method, path)
            response = connection.getresponse()
            response.read()
            assert 400 <= response.status < 500, (method, path, response.status)
            assert response.headers["content-type"] == "application/problem+json", (method, path)
    assert "Traceback" not in caplog.text
