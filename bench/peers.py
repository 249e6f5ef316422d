"""What the gateway is measured against, each as a process in front of the same upstream."""

import shutil
from pathlib import Path

from bench.quick_vllm import MODEL
from bench.talks import KEY
from demo.environments import WORK
from demo.stand import Server, free_port

NGINX_PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

_NGINX = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 1m;
    keepalive_requests 1000000000;
    upstream vllm {{ {method} {servers} keepalive 2048; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://vllm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""
_VLLMS = """\
    upstream vllms_{name} {{ {method} server {servers}; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://vllms_{name};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
"""
_LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: hosted_vllm/{model}, api_base: "{upstream}/v1", api_key: {key}}}
"""


def start_nginx(*upstream_urls: str, method: str = "") -> Server:
    """Nginx as a plain proxy, one worker; `method` is how it chooses among several upstreams, by turns otherwise."""
    port = free_port()
    folder = WORK / f"nginx-{port}"
    folder.mkdir(parents=True, exist_ok=True)
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in upstream_urls)
    config = _NGINX.format(folder=folder, port=port, method=method, servers=servers)
    (folder / "nginx.conf").write_text(config, encoding="utf-8")
    assert NGINX_PROGRAM is not None
    command = [NGINX_PROGRAM, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return Server(folder.name, command, {}, port, "/health")


def start_litellm(environment: Path, upstream_url: str) -> Server:
    """LiteLLM's proxy, one worker, from a virtual environment that holds `litellm[proxy]`."""
    config = WORK / "litellm.yaml"
    config.write_text(_LITELLM.format(model=MODEL, upstream=upstream_url, key=KEY), encoding="utf-8")
    port = free_port()
    program = str(environment / "bin" / "litellm")
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": KEY}
    return Server("litellm", command, environ, port, "/health/liveliness")


def start_agentic_api(environment: Path, upstream_url: str) -> Server:
    """The vLLM project's agentic-api, conversations in SQLite, from a virtual environment that holds it."""
    database = WORK / "agentic-api.db"
    for old in WORK.glob("agentic-api.db*"):
        old.unlink()
    port = free_port()
    command = [str(environment / "bin" / "agentic-server"), "--llm-api-base", upstream_url]
    command += ["--gateway-host", "127.0.0.1", "--gateway-port", str(port)]
    environ = {"DATABASE_URL": f"sqlite://{database}?mode=rwc", "OPENAI_API_KEY": KEY}
    return Server("agentic-api", command, environ, port, "/health")
