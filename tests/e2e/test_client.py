"""The terminal client with the real vLLM behind the gateway."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Gateway
from tests.e2e.conftest import RealVLLM
from tests.readme import ROOT
from tests.screen import client_on_screen
from tests.scripted_vllm import KEY
from tests.servers import wait_until

pytestmark = pytest.mark.vllm


def test_a_talk(gateway: Gateway, real_vllm: RealVLLM, tmp_path: Path) -> None:
    environ = {"VLLM_API_KEY": KEY}
    with client_on_screen("--url", gateway.url, folder=tmp_path, environ=environ, columns=100) as screen:
        screen.say("/set max_tokens 60")
        screen.say("Здравствуй")
        screen.wait_for("контекст")
        screen.wait_for("сессия 10 мин")
        shown = re.sub(r"\s*\n", " · ", screen.text())
        status = r"контекст (\d+)/8000 · кэш \d+% · \d+,\d ток/с · первый токен \d+,\d\d с · сессия 10 мин"
        assert re.search(status, shown), shown
        screen.say("/set max_tokens 7500")
        screen.say("/set ignore_eos true")
        screen.say("Расскажи всё")
        screen.wait_for_reply_to("Расскажи всё")
        assert real_vllm.running() == 1
        screen.press("ctrl-c")
        screen.wait_for("Остановлено.")
        wait_until(lambda: real_vllm.running() == 0, 5)
        screen.say("/set max_tokens 5")
        screen.say("/regenerate")
        screen.wait_for("Ответ обрезан по max_tokens.")
        screen.say("/save talk.json")
        screen.wait_for("Разговор сохранён (2 пары): talk.json")
        screen.say("/load talk.json")
        screen.wait_for("Загрузить другой? [д/Н]")
        screen.type("д")
        screen.press("enter")
        screen.wait_for("в новой сессии, 2 пары")
        screen.say("/exit")
        assert screen.wait_for_end() == 0
    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in messages[::2]] == ["Здравствуй", "Расскажи всё"]
    assert gateway.http.get("/health").json()["sessions"] == 0


def test_in_a_script(gateway: Gateway, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "client", "--json", "--max-tokens", "5", "--set", "ignore_eos=true"],
        cwd=ROOT,
        env={"VLLM_API_KEY": KEY, "CHAT_GATEWAY_URL": gateway.url, "HOME": str(tmp_path)},
        input="Привет\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = json.loads(result.stdout)
    assert answer["output_tokens"] == 5
    assert answer["context"]["used"] == answer["input_tokens"]
