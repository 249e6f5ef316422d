"""Settings: defaults, and refusals that say what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import ConfigError, Settings, load_settings
from app.tokenizer import ChatTokenizer

ROOT = Path(__file__).resolve().parents[1]


def test_the_documented_defaults() -> None:
    settings = Settings()
    assert settings.vllm_base_url == "http://vllm:8000/v1"
    assert settings.vllm_root_url == "http://vllm:8000"
    assert settings.vllm_model_name == settings.tokenizer_folder == "/app/model"
    assert (settings.max_context_tokens, settings.session_ttl_seconds) == (8000, 600)
    assert settings.cors_allow_origins == ("*",)


def test_settings_come_from_the_environment_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "VLLM_BASE_URL": "https://gpu.example:8443/some/v1/",
        "TOKENIZER_PATH": "/tok",
        "SESSION_TTL_SECONDS": "5",
        "DEFAULT_SYSTEM_PROMPT": "",
        "CORS_ALLOW_ORIGINS": "https://a.example/ , https://b.example:8443",
        "LOG_LEVEL": "debug",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.vllm_base_url == "https://gpu.example:8443/some/v1"
    assert settings.vllm_root_url == "https://gpu.example:8443/some"
    assert settings.tokenizer_folder == "/tok"
    assert settings.session_ttl_seconds == 5
    assert settings.default_system_prompt == "", "an empty prompt is a choice"
    assert settings.cors_allow_origins == ("https://a.example", "https://b.example:8443")
    assert settings.log_level == "DEBUG"
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "INFO"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SESSION_TTL_SECONDS", "abc", "нужно целое число"),
        ("SESSION_TTL_SECONDS", "0", "больше 0"),
        ("SESSION_TTL_SECONDS", "", "нужно целое число"),
        ("MAX_CONTEXT_TOKENS", "-1", "больше 0"),
        ("TRIM_TARGET_RATIO", "0", "больше 0"),
        ("TRIM_TARGET_RATIO", "1.01", "не больше 1"),
        ("TRIM_TARGET_RATIO", "nan", "нужно конечное число"),
        ("TRIM_TARGET_RATIO", "0,7", "нужно число"),
        ("MAX_SESSIONS", "1.5", "нужно целое число"),
        ("VLLM_IDLE_TIMEOUT_SECONDS", "0", "больше 0"),
        ("VLLM_TOTAL_TIMEOUT_SECONDS", "inf", "нужно конечное число"),
        ("VLLM_BASE_URL", "vllm:8000", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://vllm:8000", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://[x/v1", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://vllm:port/v1", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://vllm:8000#/v1", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://vl lm:8000/v1", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://user:secret@vllm:8000/v1", "http://vllm:8000/v1"),
        ("VLLM_BASE_URL", "http://vllm..local:8000/v1", "http://vllm:8000/v1"),
        ("CORS_ALLOW_ORIGINS", "a.example", "https://site.example"),
        ("CORS_ALLOW_ORIGINS", "https://a.example/path", "https://site.example"),
        ("SESSION_TTL_SECONDS", "1" + "0" * 400, "не больше"),
        ("VLLM_MODEL_NAME", "", "пустая строка"),
        ("LOG_LEVEL", "LOUD", "'WARNING' или 'ERROR'"),
        ("LOG_FORMAT", "xml", "'text' или 'json'"),
        ("METRICS_ENABLED", "maybe", "нужно true или false"),
        ("MAX_CONCURRENT_REQUESTS", "0", "больше 0"),
        ("MAX_WAITING_REQUESTS", "-1", "не меньше 0"),
        ("DRAIN_SECONDS", "-1", "не меньше 0"),
        ("FORWARDED_ALLOW_IPS", "proxy.example", "172.16.0.0/12"),
        ("FORWARDED_ALLOW_IPS", "127.0.0.1,*", "172.16.0.0/12"),
        ("WEB_CONCURRENCY", "4", "один"),
        ("MAX_SESSION_BYTES", "1000", "MAX_REQUEST_BYTES=1048576"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    message = str(caught.value)
    assert name in message
    assert value in message
    assert says in message
    assert "\n" not in message


SECRET = "0123456789" * 4


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://redis:6379/0",
        "redis://:pass%2Fword@redis:6379/15",
        "redis://user:password@[::1]:6379",
        "rediss://redis:6380/0?ssl_ca_certs=/ca.crt&ssl_certfile=/a&ssl_keyfile=/b",
    ],
)
def test_addresses_of_redis(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SESSION_STORE_URL", url)
    monkeypatch.setenv("SESSION_SECRET", f"{SECRET}, {SECRET[::-1]}")
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    settings = load_settings()
    assert settings.session_store_url.get_secret_value() == url
    assert [secret.get_secret_value() for secret in settings.session_secret] == [SECRET, SECRET[::-1]]
    assert not settings.keeps_sessions_in_memory
    for secret in (url, SECRET):
        assert secret not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis:6379",
        "memory",
        "http://redis:6379",
        "redis://",
        "redis://:s3cret@",
        "redis://redis:0",
        "redis://redis:s3cret",
        "redis://redis/-1",
        "redis://redis/chat",
        "redis://redis/0#s3cret",
        "redis://:s3cret@x/y@redis:6379/0",
        "redis://:s3@cret@redis:6379/0",
        "redis://redis?decode_responses=true",
        "redis://redis?ssl_ca_certs=/ca.crt",
        "rediss://redis?ssl_ca_cert=/ca.crt",
        "redis+sentinel://redis:26379/main",
    ],
)
def test_what_is_no_address_of_redis_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SESSION_STORE_URL", url)
    monkeypatch.setenv("SESSION_SECRET", SECRET)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith("SESSION_STORE_URL: нужен адрес вида redis://")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("secret", "says"), [("", "openssl rand"), ("s3cret", "32"), (f"{SECRET},s3cret", "32")])
def test_redis_needs_a_secret_that_is_not_shown(monkeypatch: pytest.MonkeyPatch, secret: str, says: str) -> None:
    monkeypatch.setenv("SESSION_STORE_URL", "redis://redis")
    monkeypatch.setenv("SESSION_SECRET", secret)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    message = str(caught.value)
    assert "SESSION_SECRET" in message
    assert says in message
    assert "s3cret" not in message
    assert SECRET not in message


def test_a_prompt_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_SYSTEM_PROMPT", b"\xff".decode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"DEFAULT_SYSTEM_PROMPT=.*суррогаты"):
        load_settings()


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_SESSIONS", "x")
    monkeypatch.setenv("LOG_LEVEL", "y")
    with pytest.raises(ConfigError, match=r"LOG_LEVEL='y': .*; MAX_SESSIONS='x': "):
        load_settings()


def start(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start the gateway as a container would, in a way that must fail."""
    return subprocess.run(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_wrong_setting_stops_the_start_with_one_line_and_code_2() -> None:
    result = start(SESSION_TTL_SECONDS="abc")
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["Ошибка: SESSION_TTL_SECONDS='abc': нужно целое число"]


def broken_folder(folder: Path, kind: str) -> str:
    if kind == "absent":
        return str(folder / "absent")
    if kind == "unnameable":
        return "/" + "x" * 5000
    if kind == "damaged":
        (folder / "tokenizer.json").write_text("{")
    if kind == "of links to nowhere":
        (folder / "tokenizer.json").symlink_to("../../blobs/4a5b")
    if kind == "of Git LFS pointers":
        (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4a5b\nsize 7\n")
    if kind == "with code of its own":
        (folder / "tokenizer.json").write_text("{}")
        (folder / "own.py").write_text("print('RAN')\nclass Own: pass\n")
        config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("absent", "не читается"),
        ("unnameable", "не читается"),
        ("empty", "нет файлов токенизатора"),
        ("damaged", "не загружается"),
        ("with code of its own", "не загружается"),
        ("of links to nowhere", "положите вместо них сами файлы"),
        ("of Git LFS pointers", "указатели Git LFS: tokenizer.json. Скачайте"),
    ],
)
def test_a_folder_without_a_tokenizer_stops_the_start_with_one_line_and_code_2(
    tmp_path: Path, kind: str, says: str
) -> None:
    folder = broken_folder(tmp_path, kind)
    result = start(VLLM_MODEL_NAME=folder)
    [line] = result.stderr.splitlines()
    assert result.returncode == 2
    assert says in line
    assert folder in line
    assert result.stdout == ""


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path, model_folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    with pytest.raises(ConfigError, match="нет шаблона чата"):
        ChatTokenizer.load(str(tmp_path))


def test_a_chat_template_that_does_not_work_is_refused(tmp_path: Path, model_folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ConfigError, match="не работает"):
        ChatTokenizer.load(str(tmp_path))


def test_a_folder_without_config_json_is_warned_of(
    tmp_path: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    ChatTokenizer.load(str(tmp_path))
    assert "config.json" in caplog.text


def test_weights_that_vllm_will_not_read_are_warned_of(linked_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (linked_model / ".cache").symlink_to("nowhere")
    ChatTokenizer.load(str(linked_model))
    assert "не читаются" not in caplog.text
    (linked_model / "model.safetensors").unlink()
    (linked_model / "model.safetensors").symlink_to("../../blobs/4a5b")
    ChatTokenizer.load(str(linked_model))
    assert "не читаются файлы: model.safetensors. " in caplog.text
    (linked_model / "model.safetensors").unlink()
    (linked_model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    ChatTokenizer.load(str(linked_model))
    assert "указатели Git LFS: model.safetensors. " in caplog.text


def test_several_worker_processes_are_refused(model_folder: Path) -> None:
    result = start("--workers", "2", TOKENIZER_PATH=str(model_folder))
    assert "сессии живут в памяти одного процесса" in result.stderr
    assert "Application startup complete" not in result.stderr
    assert "WEB_CONCURRENCY=2: сессии живут" in start(WEB_CONCURRENCY="2").stderr
