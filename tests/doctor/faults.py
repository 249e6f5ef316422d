"""The table of faults that a person meets on the way, and what the doctor says of each."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from tests.doctor.world import GIB, KEY, World

CPU = "docker-compose.yaml:deploy/docker-compose.cpu.yaml"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n"


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        title: as the documentation has it.
        seed: has it come over a world in good health.
        code: of the finding.
        says: the beginning of what was seen, as the documentation has it; … is whatever it is on that machine.
        types: a part of what to type.
        status: how bad it is.
        also: codes of other findings that follow from it.
    """

    title: str
    seed: Callable[[World], object]
    code: str
    says: str
    types: str
    status: str = "failure"
    also: frozenset[str] = frozenset()


def _missing_env(world: World) -> None:
    (world.folder / ".env").unlink()


def _key_of_the_shell(world: World) -> None:
    _missing_env(world)
    world.environ["VLLM_API_KEY"] = KEY


def _readable_env(world: World) -> None:
    (world.folder / ".env").chmod(0o644)


def _no_key(world: World) -> None:
    world.set(VLLM_API_KEY="")


def _append(line: str) -> Callable[[World], None]:
    def append(world: World) -> None:
        world.write_env((world.folder / ".env").read_bytes() + line.encode() + b"\n")

    return append


def _empty_model(world: World) -> None:
    for path in world.model.iterdir():
        path.unlink()


def _absent(name: str) -> Callable[[World], None]:
    def remove(world: World) -> None:
        (world.model / name).unlink()

    return remove


def _gguf(world: World) -> None:
    for path in world.model.glob("model*"):
        path.unlink()
    (world.model / "qwen.Q4_K_M.gguf").write_bytes(b"GGUF")


def _link_model(world: World) -> None:
    """As the cache of Hugging Face is."""
    elsewhere = world.folder / "blobs"
    elsewhere.mkdir()
    target = elsewhere / world.shard.name
    shutil.move(world.shard, target)
    world.shard.symlink_to(f"../blobs/{target.name}")


def _pointer(world: World) -> None:
    world.shard.write_text(POINTER)


def _cut(world: World) -> None:
    with world.shard.open("r+b") as file:
        file.truncate(world.shard.stat().st_size - 1000)


def _other_content(world: World) -> None:
    world.shard.write_text("<html>404</html>")


def _tool_of_the_past(world: World) -> None:
    world.say("version", {"Client": {"Version": "20.10.5"}, "Server": {"Version": "20.10.5"}})


def _denied(world: World) -> None:
    complaint = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
    world.say("version", {"Client": {"Version": "28.2.2"}, "Server": None}, complaint=complaint, code=1)


def _down(world: World) -> None:
    complaint = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    world.say("version", {"Client": {"Version": "28.2.2"}, "Server": None}, complaint=complaint, code=1)


def _podman(world: World) -> None:
    """Under the name of docker."""
    world.say("version", {"Client": {"APIVersion": "4.9.3", "Version": "4.9.3", "OsArch": "linux/amd64"}})
    world.say("info", {"host": {"arch": "amd64"}, "version": {"APIVersion": "4.9.3"}})


def _no_compose(world: World) -> None:
    world.say("compose-version", "", complaint="docker: 'compose' is not a docker command.", code=1)


def _fallen_vllm(world: World) -> None:
    log = "INFO loading\nValueError: No available memory for the cache blocks.\nRuntimeError: Engine core\n"
    world.containers({"Service": "vllm", "State": "restarting", "ExitCode": 1}, vllm=log)


def _killed_vllm(world: World) -> None:
    killed = {"State": {"OOMKilled": True}}
    world.containers({"Service": "vllm", "State": "exited", "ExitCode": 137, "Details": killed})


def _fallen_gateway(world: World) -> None:
    log = "Ошибка: SESSION_TTL_SECONDS='abc': нужно целое число\n"
    world.containers({"Service": "gateway", "State": "restarting", "ExitCode": 2}, gateway=log)


def _taken_port(world: World) -> None:
    world.set(GATEWAY_PORT=f"127.0.0.1:{world.listen()}")


def _full_disk(world: World) -> None:
    """Nothing is ever free there."""
    world.info(DockerRootDir="/proc")
    world.say("image-inspect", "", complaint="Error: No such image", code=1)


def _on_the_processor(**values: str) -> Callable[[World], None]:
    def switch(world: World) -> None:
        world.set(COMPOSE_FILE=CPU, **values)
        world.without("nvidia-smi")

    return switch


def _huge_for_the_processor(world: World) -> None:
    _on_the_processor()(world)
    world.write_model(weights_bytes=8000 * GIB)


def _small_card(world: World) -> None:
    world.set(VLLM_MAX_MODEL_LEN="32768")
    world.card(total="4096", free="4096")


def _old_driver(world: World) -> None:
    """Too old to know what else it is asked for."""
    world.card(driver="470.82.01", capability="")
    world.refuse_cards("compute_cap", 'Field "compute_cap" is not a valid field to query.')


def _unconnected_toolkit(world: World) -> None:
    world.info(Runtimes={"runc": {}})
    world.program("nvidia-container-runtime-hook", "#!/bin/sh\n")


def _broken_driver(world: World) -> None:
    complaint = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    world.say("smi", complaint + "\n", code=9)


FAULTS = (
    # --- Docker ---
    Fault(
        "Docker не установлен",
        lambda world: world.without("docker"),
        "docker_missing",
        "Docker не установлен",
        "docs.docker.com",
    ),
    Fault(
        "нет прав на Docker", _denied, "docker_denied", "У вас нет прав обращаться к Docker", "usermod -aG docker $USER"
    ),
    Fault(
        "служба Docker не запущена",
        _down,
        "docker_down",
        "Docker установлен, но не отвечает",
        "systemctl enable --now docker",
    ),
    Fault("вместо Docker — Podman", _podman, "docker_podman", "Вместо Docker — Podman", "поставьте Docker"),
    Fault(
        "Docker старше 23", _tool_of_the_past, "docker_old", "Docker 20.10.5, а нужен 23 или новее", "обновите Docker"
    ),
    Fault(
        "нет Docker Compose 2",
        _no_compose,
        "compose_missing",
        "У Docker нет Compose 2",
        "apt install docker-compose-plugin",
    ),
    Fault(
        "Docker Compose старше 2.24.4",
        lambda world: world.say("compose-version", "2.20.3\n"),
        "compose_old",
        "Docker Compose 2.20.3, а нужен 2.24.4 или новее",
        "обновите Docker",
    ),
    # --- files of the stand ---
    Fault(
        "нет `docker-compose.yaml`",
        lambda world: (world.folder / "docker-compose.yaml").unlink(),
        "compose_file_missing",
        "Нет docker-compose.yaml",
        "cp docker-compose.example.yaml docker-compose.yaml",
    ),
    Fault(
        "опечатка в `docker-compose.yaml`",
        lambda world: world.edit("docker-compose.yaml", "    shm_size: 8gb", "   shm_size: 8gb"),
        "compose_config",
        "Docker Compose не понимает файлов стенда",
        "docker compose config --quiet",
    ),
    Fault(
        "в `COMPOSE_FILE` назван файл, которого нет",
        lambda world: world.set(COMPOSE_FILE="docker-compose.yaml:docker-compose.cpu.yaml"),
        "compose_file_absent",
        "Нет файла …, названного в COMPOSE_FILE",
        "deploy/docker-compose.cpu.yaml",
    ),
    Fault(
        "мало общей памяти",
        lambda world: world.edit("docker-compose.yaml", "    shm_size: 8gb\n", ""),
        "shm",
        "У vllm общей памяти 64.0 МиБ",
        "shm_size: 8gb",
        "warning",
    ),
    # --- .env ---
    Fault("нет `.env`", _missing_env, "env_missing", "Нет файла .env", "cp .env.example .env && chmod 600 .env"),
    Fault("нет `.env`, а ключ — из оболочки", _key_of_the_shell, "env_missing", "Нет файла .env", "cp .env", "warning"),
    Fault(
        "`.env` — не текст",
        lambda world: world.write_env(b"\xff\xfe\x00V"),
        "env_broken",
        "Файл .env не читается",
        "cp .env.example .env",
    ),
    Fault(
        "строка `.env` — не `ИМЯ=значение`",
        _append("просто текст"),
        "env_line",
        "В .env строка 5: не ИМЯ=ЗНАЧЕНИЕ и не комментарий",
        "nano +5 .env",
    ),
    Fault(
        "не закрыта кавычка в `.env`",
        _append('DEFAULT_SYSTEM_PROMPT="Ты — ёж'),
        "env_quote",
        "В .env строка 5: не закрыта кавычка",
        "nano +5 .env",
    ),
    Fault(
        "не закрыта кавычка в `VLLM_EXTRA_ARGS`",
        _append('VLLM_EXTRA_ARGS=--override-generation-config \'{"top_p": 0.9}'),
        "extra_args_quote",
        "В VLLM_EXTRA_ARGS не закрыта кавычка",
        "VLLM_EXTRA_ARGS в .env",
    ),
    Fault(
        "`$` в значении",
        _append("DEFAULT_SYSTEM_PROMPT=Цена — $PRICE"),
        "env_dollar",
        "В .env, строка 5: в значении DEFAULT_SYSTEM_PROMPT есть $, и часть его пропадёт",
        "DEFAULT_SYSTEM_PROMPT='…'",
    ),
    Fault(
        "` #` в значении",
        _append("DEFAULT_SYSTEM_PROMPT=Задача # 1"),
        "env_hash",
        "В .env, строка 5: всё, что в DEFAULT_SYSTEM_PROMPT после « #», — комментарий",
        "DEFAULT_SYSTEM_PROMPT='…'",
        "warning",
    ),
    Fault(
        "опечатка в имени переменной",
        _append("MAX_CONTEXT_TOKEN=4000"),
        "env_unknown",
        "В .env, строка 5: стенд не знает MAX_CONTEXT_TOKEN — наверное, это MAX_CONTEXT_TOKENS",
        "sed -i '5s/MAX_CONTEXT_TOKEN/MAX_CONTEXT_TOKENS/' .env",
        "warning",
    ),
    Fault(
        "переменная в `.env` дважды",
        _append("MAX_CONTEXT_TOKENS=4000"),
        "env_twice",
        "В .env MAX_CONTEXT_TOKENS задан несколько раз",
        "nano +2 .env",
        "warning",
    ),
    Fault(
        "переменная оболочки сильнее `.env`",
        lambda world: world.environ.update(MAX_CONTEXT_TOKENS="4000"),
        "env_overridden",
        "MAX_CONTEXT_TOKENS задан и в .env, и в вашей оболочке, по-разному",
        "unset MAX_CONTEXT_TOKENS",
        "warning",
    ),
    Fault(
        "`.env` открыт всем",
        _readable_env,
        "env_readable",
        "Файл .env могут читать все на этой машине",
        "chmod 600 .env",
        "warning",
    ),
    Fault("ключа нет", _no_key, "key_missing", "В .env нет ключа VLLM_API_KEY", "openssl rand -hex 16"),
    Fault(
        "ключ из примера",
        lambda world: world.set(VLLM_API_KEY="INTERNAL_VLLM_KEY"),
        "key_example",
        "VLLM_API_KEY — ключ из примера",
        "openssl rand -hex 16",
        "warning",
    ),
    Fault(
        "ключ не передать в заголовке",
        lambda world: world.set(VLLM_API_KEY="мой ключ"),
        "key_letters",
        "В VLLM_API_KEY есть пробелы или не латинские буквы",
        "openssl rand -hex 16",
    ),
    Fault(
        "не число там, где нужно число",
        lambda world: world.set(SESSION_TTL_SECONDS="10m"),
        "not_a_number",
        "SESSION_TTL_SECONDS='10m': нужно целое число",
        "исправьте SESSION_TTL_SECONDS в .env",
    ),
    Fault(
        "`VLLM_MAX_MODEL_LEN` — не число",
        lambda world: world.set(VLLM_MAX_MODEL_LEN="8192токена"),
        "length_not_a_number",
        "VLLM_MAX_MODEL_LEN='8192токена': нужно целое число",
        "VLLM_MAX_MODEL_LEN=8192",
    ),
    Fault(
        "`VLLM_GPU_MEMORY_UTILIZATION` в процентах",
        lambda world: world.set(VLLM_GPU_MEMORY_UTILIZATION="90"),
        "utilization",
        "VLLM_GPU_MEMORY_UTILIZATION='90': нужна доля больше 0, до 1",
        "VLLM_GPU_MEMORY_UTILIZATION=0.90",
    ),
    Fault(
        "`MAX_CONTEXT_TOKENS` не меньше `VLLM_MAX_MODEL_LEN`",
        lambda world: world.set(MAX_CONTEXT_TOKENS="8192"),
        "budget",
        "MAX_CONTEXT_TOKENS=8192 не меньше VLLM_MAX_MODEL_LEN=8192",
        "MAX_CONTEXT_TOKENS=7680",
        "warning",
    ),
    Fault(
        "`VLLM_MAX_MODEL_LEN` не оставляет места разговору",
        lambda world: world.set(VLLM_MAX_MODEL_LEN="512"),
        "length_tiny",
        "VLLM_MAX_MODEL_LEN=512: на разговор не остаётся места",
        "VLLM_MAX_MODEL_LEN=8192",
    ),
    Fault(
        "`VLLM_MAX_MODEL_LEN` больше, чем умеет модель",
        lambda world: world.set(VLLM_MAX_MODEL_LEN="65536"),
        "length_over_model",
        "VLLM_MAX_MODEL_LEN=65536, а модель умеет 32768",
        "VLLM_MAX_MODEL_LEN=32768",
    ),
    Fault(
        "несколько процессов шлюза без Redis",
        lambda world: world.set(WEB_CONCURRENCY="4"),
        "workers_without_redis",
        "WEB_CONCURRENCY=4, а сессии — в памяти",
        "WEB_CONCURRENCY=1",
    ),
    Fault(
        "Redis без `SESSION_SECRET`",
        lambda world: world.set(SESSION_STORE_URL="redis://redis:6379/0"),
        "secret_missing",
        "SESSION_SECRET не задан или короче 32 знаков",
        "openssl rand -hex 32",
    ),
    Fault(
        "несколько шлюзов без `SESSION_SECRET`",
        lambda world: world.set(COMPOSE_FILE="docker-compose.yaml:deploy/docker-compose.scale.yaml"),
        "session_secret_missing",
        "В .env нет SESSION_SECRET",
        "openssl rand -hex 32",
        also=frozenset({"cards_few"}),
    ),
    Fault(
        "`DRAIN_SECONDS` больше `stop_grace_period`",
        lambda world: world.set(DRAIN_SECONDS="120"),
        "drain",
        "DRAIN_SECONDS=120, а stop_grace_period — 45 с",
        "stop_grace_period: 135s",
        "warning",
    ),
    Fault(
        "`TOKENIZER_PATH` — папка этой машины",
        lambda world: world.set(TOKENIZER_PATH="/home/me/model"),
        "tokenizer_path",
        "TOKENIZER_PATH=/home/me/model: такой папки в контейнере шлюза нет",
        "уберите TOKENIZER_PATH из .env",
    ),
    # --- the model ---
    Fault(
        "нет папки `model`",
        lambda world: world.model.rename(world.folder / "elsewhere"),
        "model_missing",
        "Нет папки модели …/model",
        "hf download",
    ),
    Fault(
        "папка `model` пуста",
        _empty_model,
        "model_empty",
        "В папке …/model нет модели",
        "hf download",
    ),
    Fault(
        "файлы модели — только для владельца",
        lambda world: world.shard.chmod(0o600),
        "model_closed",
        "Контейнерам не прочесть файлы модели",
        "chmod -R a+rX",
    ),
    Fault(
        "модель — ссылки из кэша Hugging Face",
        _link_model,
        "model_links",
        "В папке модели — ссылки, которые в контейнере никуда не ведут",
        "cp -rL",
    ),
    Fault(
        "вместо весов — указатели Git LFS",
        _pointer,
        "model_pointers",
        "Вместо файлов модели — указатели Git LFS",
        "git lfs pull",
    ),
    Fault(
        "нет `config.json`", _absent("config.json"), "config_missing", "В папке модели нет config.json", "hf download"
    ),
    Fault(
        "`config.json` испорчен",
        lambda world: (world.model / "config.json").write_text('{"model_type": '),
        "model_json",
        "Файлы модели испорчены, это не JSON: config.json",
        "hf download",
    ),
    Fault(
        "не хватает файла весов",
        lambda world: world.shard.unlink(),
        "shards_missing",
        "Не хватает файлов весов: model-00002-of-00002.safetensors (всего их 2)",
        "hf download",
    ),
    Fault(
        "файл весов недокачан",
        _cut,
        "weights_cut",
        "model-00002-of-00002.safetensors: 1 047 695 байт вместо 1 048 695",
        "hf download",
    ),
    Fault(
        "вместо весов скачалась страница",
        _other_content,
        "weights_broken",
        "model-00002-of-00002.safetensors: это не safetensors",
        "hf download",
    ),
    Fault("веса только в GGUF", _gguf, "weights_gguf", "В папке модели веса только в GGUF", "ту же модель без GGUF"),
    Fault(
        "нет токенизатора",
        _absent("tokenizer.json"),
        "tokenizer_missing",
        "В папке модели нет токенизатора",
        "hf download",
    ),
    Fault(
        "нет шаблона чата",
        lambda world: world.write_json("tokenizer_config.json", {"model_max_length": 1}),
        "template_missing",
        "В папке модели нет шаблона чата",
        "Instruct",
    ),
    # --- the cards ---
    Fault(
        "нет драйвера NVIDIA",
        lambda world: world.without("nvidia-smi"),
        "driver_missing",
        "Нет драйвера NVIDIA",
        "COMPOSE_FILE=docker-compose.yaml:deploy/docker-compose.cpu.yaml",
    ),
    Fault(
        "драйвер NVIDIA не работает", _broken_driver, "driver_broken", "nvidia-smi не видит видеокарт", "sudo reboot"
    ),
    Fault(
        "драйвер слишком стар для CUDA образа",
        _old_driver,
        "driver_old",
        "Драйвер NVIDIA 470.82.01 слишком стар для CUDA 12.8",
        "docs/operations.md, «Версии»",
    ),
    Fault(
        "драйвер старше, чем CUDA образа",
        lambda world: world.card(driver="550.54.14"),
        "driver_older",
        "Драйвер NVIDIA 550.54.14 старше, чем CUDA 12.8",
        "docs/operations.md, «Версии»",
        "warning",
    ),
    Fault(
        "видеокарта слишком стара",
        lambda world: world.card(capability="6.1", name="NVIDIA P40"),
        "card_old",
        "NVIDIA P40 (6.1) слишком стара",
        "другая видеокарта",
    ),
    Fault(
        "карта без bfloat16",
        lambda world: world.card(capability="7.5", name="NVIDIA T4"),
        "card_bfloat16",
        "NVIDIA T4 (7.5) не умеет bfloat16",
        "к VLLM_EXTRA_ARGS добавьте: --dtype half",
        "warning",
    ),
    Fault(
        "нет NVIDIA Container Toolkit",
        lambda world: world.info(Runtimes={"runc": {}}),
        "toolkit_missing",
        "Нет NVIDIA Container Toolkit",
        "nvidia-ctk runtime configure --runtime=docker",
    ),
    Fault(
        "NVIDIA Container Toolkit не подключён к Docker",
        _unconnected_toolkit,
        "toolkit_unknown",
        "NVIDIA Container Toolkit установлен, но к Docker не подключён",
        "nvidia-ctk runtime configure --runtime=docker",
        "warning",
    ),
    Fault(
        "видеокарта занята другим",
        lambda world: world.card(free="20480"),
        "card_busy",
        "На NVIDIA H100 свободно 20.0 ГиБ из 80.0 ГиБ",
        "VLLM_GPU_MEMORY_UTILIZATION=0.23",
    ),
    Fault(
        "веса больше памяти карты",
        lambda world: world.write_model(weights_bytes=140 * GIB),
        "weights_too_large",
        "Веса модели (140.0 ГиБ на карту) больше",
        "--tensor-parallel-size 2",
    ),
    Fault(
        "контекст не помещается в память карты",
        _small_card,
        "context_too_large",
        "На NVIDIA H100 не помещается контекст VLLM_MAX_MODEL_LEN=32768: вместе с весами 4.0 ГиБ, а есть 3.6 ГиБ",
        "VLLM_MAX_MODEL_LEN=20480",
    ),
    Fault(
        "памяти карты впритык",
        lambda world: world.card(total="2048", free="2048"),
        "card_tight",
        "Память NVIDIA H100 впритык",
        "VLLM_MAX_MODEL_LEN=",
        "warning",
    ),
    Fault(
        "карт меньше, чем в `--tensor-parallel-size`",
        lambda world: world.set(VLLM_EXTRA_ARGS="--tensor-parallel-size 2"),
        "cards_few",
        "vLLM (vllm) нужно видеокарт: 2, а доступно ему 1",
        "--tensor-parallel-size",
    ),
    # --- the machine ---
    Fault("порт занят", _taken_port, "port_taken", "Порт … (gateway) уже занят", "sudo ss -ltnp"),
    Fault(
        "порт — не число",
        lambda world: world.set(GATEWAY_PORT="80a"),
        "port_invalid",
        "Порт стенда назван неправильно: …80a",
        "GATEWAY_PORT=127.0.0.1:8080",
    ),
    Fault("диск полон", _full_disk, "disk", "В /proc свободно 0.0 МиБ", "docker system prune"),
    Fault(
        "часы не сверяются",
        lambda world: world.say("time", "no\n"),
        "clock_unsynchronised",
        "Часы ни с чем не сверяются",
        "timedatectl set-ntp true",
        "warning",
    ),
    Fault(
        "без видеокарты: памяти машины мало для весов",
        _huge_for_the_processor,
        "ram",
        "Памяти на машине …, а весам и кэшу нужно 8004.0 ГиБ",
        "модель поменьше",
    ),
    Fault(
        "без видеокарты: кэша не хватит на один разговор",
        _on_the_processor(VLLM_CPU_KVCACHE_SPACE="1", VLLM_MAX_MODEL_LEN="32768"),
        "cpu_cache",
        "В VLLM_CPU_KVCACHE_SPACE=1 (ГиБ) не помещается контекст VLLM_MAX_MODEL_LEN=32768",
        "VLLM_CPU_KVCACHE_SPACE=4",
    ),
    # --- at work ---
    Fault(
        "vLLM падает: мало памяти карты",
        _fallen_vllm,
        "container_fallen",
        "vllm: падает и запускается снова (код 1)",
        "docker compose logs --tail 100 vllm",
    ),
    Fault(
        "vLLM упал и не запускается",
        lambda world: world.containers({"Service": "vllm", "State": "exited", "ExitCode": 1}, vllm="KeyError: 'x'\n"),
        "container_fallen",
        "vllm: упал и не запускается (код 1)",
        "docker compose logs --tail 100 vllm",
    ),
    Fault(
        "vLLM убит: кончилась память машины",
        _killed_vllm,
        "container_memory",
        "vllm: убит, потому что кончилась память машины",
        "free -g",
    ),
    Fault(
        "стенд остановлен (`docker compose stop`)",
        lambda world: world.containers({"Service": "vllm", "State": "exited", "ExitCode": 137}),
        "container_stopped",
        "vllm: остановлен",
        "docker compose up -d",
        "warning",
    ),
    Fault(
        "шлюз падает из-за настройки",
        _fallen_gateway,
        "container_fallen",
        "gateway: падает и запускается снова (код 2)",
        "docker compose up -d",
    ),
)
