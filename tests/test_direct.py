"""The short way of /chat takes nothing that the usual way would refuse, and takes it for the same."""

import codecs
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.schemas import ChatBody
from tests.conftest import SessionOf

NUMBERS: list[Any] = [2**70, -1, 0, 1, 1.0, 1.5, 1e400, float("nan")]
ODD = st.sampled_from([*NUMBERS, True, None, "", "а", "\ud800", [], {}, {"a": [{}]}])
FIELDS = st.sampled_from([*ChatBody.model_fields, "x"])
BODIES = st.dictionaries(FIELDS, ODD, max_size=3).map(lambda odd: {"session_id": "с", "message": "м", **odd})


def read(way: Any, raw: bytes) -> ChatBody | None:
    try:
        body: ChatBody = way(raw)
    except (ValidationError, ValueError):
        return None
    return body


@given(BODIES | ODD, st.booleans(), st.sampled_from(["", " ", "}", "\n", "\0"]))
def test_the_short_way_reads_a_body_as_the_usual_way_or_not_at_all(body: Any, ascii_only: bool, end: str) -> None:  # noqa: FBT001
    raw = (json.dumps(body, ensure_ascii=ascii_only) + end).encode("utf-8", "surrogatepass")
    short = read(ChatBody.model_validate_json, raw)
    usual = read(lambda raw: ChatBody.model_validate(json.loads(raw)), raw)
    assert short in (usual, None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"extra": {"seed": float("inf")}}, "extra"),
        ({"extra": {"user": "\ud800"}}, "extra"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_what_the_short_way_does_not_take_is_explained(session: SessionOf, more: dict[str, Any], said: str) -> None:
    raw = json.dumps({"session_id": session.id, "message": "а", **more})
    response = session.gateway.http.post("/chat", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert len(response.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"])
def test_any_way_to_say_json(session: SessionOf, media_type: str) -> None:
    raw = json.dumps({"session_id": session.id, "message": "а"})
    response = session.gateway.http.post("/chat", content=raw, headers={"content-TYPE": media_type})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"


def test_a_page_of_another_origin_is_answered_too(session: SessionOf) -> None:
    body = {"session_id": session.id, "message": "а"}
    response = session.gateway.http.post("/chat", json=body, headers={"Origin": "https://a.example"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("encode", [lambda text: codecs.BOM_UTF8 + text.encode(), lambda text: text.encode("utf-16")])
def test_a_body_that_only_the_usual_way_reads_is_answered_too(session: SessionOf, encode: Any) -> None:
    raw = encode(json.dumps({"session_id": session.id, "message": "а"}))
    response = session.gateway.http.post("/chat", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    assert session.contents()[0] == "а"
