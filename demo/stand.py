"""The two servers as processes of this machine: vLLM on the CPU and the gateway in front of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.environments import ROOT, VLLM_LIBRARIES, WORK, prepare_vllm
from demo.progress import Step, run_step, wait_for

SERVED_NAME = "/app/model"
ASSISTANT = ROOT / "demo" / "assistant" / "model"
"""The model of the demo, which knows this product and nothing else."""
DEFAULT_MAX_MODEL_LEN = 8192
_STOP_SECONDS = 10.0
_USER_MODEL_KV_CACHE_GIB = 4


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on a port; stopped on leaving, with everything it started."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], port: int, ready_path: str
    ) -> None:
        """`ready_path` answers 200 when it serves; its output goes to a log of its own."""
        self.url = f"http://127.0.0.1:{port}"
        self.log = WORK / "logs" / f"{name}.log"
        self._name = name
        self._has_served = False
        self._ready_url = self.url + ready_path
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            # A group of its own: Ctrl-C in the terminal is for us, and we stop it in our own time. Not a session of its
            # own: with Linux's autogroups, `nice` counts only among the processes of one session.
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Wait, showing progress, until it serves.

        Raises:
            StepFailed: it ended instead.
        """
        step = Step(f"запуск {self._name}")
        wait_for(step, lambda: self.process.poll() is not None or _answers(self._ready_url))
        if self.process.poll() is not None:
            raise step.fail(f"Процесс {self._name} завершился с кодом {self.process.returncode}.", self.log)
        self._has_served = True
        step.done()

    def stop(self) -> None:
        """End the process and its children.

        One that has not served yet has nothing to end in good order, and vLLM heeds no signal before that.
        """
        if self._has_served:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Give neither it nor its children any time to end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def generated_model() -> Path:
    """A small model folder with random weights, made the first time it is asked for."""
    return _made("make_model.py", "маленькая модель", {"model": []})[0]


def larger_model(layers: int, hidden: int) -> Path:
    """The same with more to compute, for measurements in which the model must not be for nothing."""
    arguments = [f"--layers={layers}", f"--hidden={hidden}"]
    return _made("make_model.py", "модель побольше", {f"model-{layers}x{hidden}": arguments})[0]


def random_models(*tokenizers: Path) -> list[Path]:
    """Model folders with random weights, one for each tokenizer's folder, made the first time they are asked for."""
    wanted = {f"random-{tokenizer.name}": [str(tokenizer)] for tokenizer in tokenizers}
    return _made("random_model.py", f"модели для токенизаторов: {len(wanted)}", wanted)


def _made(script: str, title: str, wanted: Mapping[str, Sequence[str]]) -> list[Path]:
    """Folders made by a script that runs in vLLM's environment.

    Args:
        script: takes, for each folder, some arguments and the folder.
        title: what the person is told.
        wanted: names of folders, with those arguments.
    """
    missing = {name: arguments for name, arguments in wanted.items() if not _is_made(name)}
    if missing:
        python = prepare_vllm() / "python"
        unfinished = {name: WORK / f"{name}.unfinished" for name in missing}
        for folder in unfinished.values():
            shutil.rmtree(folder, ignore_errors=True)
        arguments = [argument for name, given in missing.items() for argument in (*given, str(unfinished[name]))]
        run_step(title, [[str(python), str(ROOT / "demo" / script), *arguments]], WORK / "logs" / "models.log")
        for name, folder in unfinished.items():
            folder.rename(WORK / name)
    return [WORK / name for name in wanted]


def _is_made(name: str) -> bool:
    return (WORK / name / "model.safetensors").exists()


def start_vllm(model: Path, key: str, max_model_len: int = DEFAULT_MAX_MODEL_LEN, *more: str, port: int = 0) -> Server:
    """Start the real vLLM on the CPU; it serves after 20 to 60 seconds.

    Args:
        model: its folder.
        key: what it will ask for.
        max_model_len: tokens; less where the model itself takes less.
        more: further arguments of `vllm serve`.
        port: where it listens; 0 is one that is free.
    """
    programs = prepare_vllm()
    port = port or free_port()
    ours = model == ASSISTANT or model.parent == WORK
    environ = {
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": str(1 if ours else _USER_MODEL_KV_CACHE_GIB),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(VLLM_LIBRARIES), os.environ.get("LD_LIBRARY_PATH")])),
    }
    if ours:
        # So small that more threads only fight for the processor with the server itself.
        environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # With one thread the worker may live in the engine's process: it serves a quarter sooner.
        environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        more = ("--distributed-executor-backend", "uni", *more)
    if ours or shutil.which("g++") is None:
        environ["TORCH_COMPILE_DISABLE"] = "1"
    command = [
        *("nice", "-n", "10"),  # it takes every core that it can get; the gateway must not wait for one
        *(str(programs / "vllm"), "serve", str(model)),
        *("--served-model-name", SERVED_NAME),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(min(max_model_len, _longest_context(model)))),
        "--enable-prompt-tokens-details",
        *more,
    ]
    return Server("vllm", command, environ, port, "/health")


def start_gateway(python: Path, vllm_url: str, model: Path, **settings: str) -> Server:
    """Start the gateway in front of a vLLM; `settings` are further variables of its environment."""
    port = free_port()
    command = [str(python), "-m", "app", "--host", "127.0.0.1", "--port", str(port)]
    environ = {"VLLM_BASE_URL": f"{vllm_url}/v1", "VLLM_MODEL_NAME": SERVED_NAME, "TOKENIZER_PATH": str(model)}
    # Whoever stops it waits for no answer.
    environ |= {"DRAIN_SECONDS": "0", **settings}
    return Server("gateway", command, environ, port, "/ready")


def _longest_context(model: Path) -> int:
    """What the model's config.json allows; large where it does not say."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return int(length or 1 << 30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own loopback address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
