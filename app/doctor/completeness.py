"""Whether the model's folder is whole: pure, over what `model` has seen."""

from collections.abc import Iterator
from shlex import quote

from app.doctor.findings import Finding, failure, gib, ok, or_else, some, warning
from app.doctor.model import GGUF, OLD_WEIGHTS, WEIGHTS_INDEX, Model
from app.model_folder import TOKENIZER_FILES

_DOWNLOAD = "~/.hf/bin/hf download ИМЯ_МОДЕЛИ --local-dir model (README, «Подготовка», шаг 1)"


def folder(
    model: Model, *, has_tokenizer: bool = True, reads_gguf: bool = False, selinux: bool = False
) -> Iterator[Finding]:
    """Whether the folder holds what the gateway and vLLM read.

    Args:
        model: the folder.
        has_tokenizer: whether it is there that the gateway looks for one.
        reads_gguf: whether vLLM is given a file of GGUF to read.
        selinux: whether Docker keeps containers from files that are not labelled for them.
    """
    if not model.exists:
        yield failure(
            "model_missing",
            f"Нет папки модели {model.folder}",
            "Из неё vLLM берёт веса, а шлюз — токенизатор.",
            f"положите туда модель: {_DOWNLOAD}",
        )
        return
    if model.problem:
        yield failure(
            "model_unreadable",
            f"Папка модели {model.folder} не читается: {model.problem}",
            "Контейнеры не прочтут её тоже.",
            f"ls -ld {_typed(model)}; sudo chmod -R a+rX {_typed(model)}/",
        )
        return
    if not (model.entries.keys() & {"config.json", "params.json", *TOKENIZER_FILES} or model.shards):
        yield failure(
            "model_empty",
            f"В папке {model.folder} нет модели",
            "Нужны веса, config.json, токенизатор и шаблон чата, прямо в ней, а не в папке внутри.",
            f"положите туда модель целиком: {_DOWNLOAD}",
        )
        return
    troubles = [*_unusable(model), *_weights(model, reads_gguf=reads_gguf)]
    if not reads_gguf:
        troubles += _config(model)
    if has_tokenizer:
        troubles += _tokenizer(model)
    if selinux:
        troubles += _label(model)
    described = _described(model) + (", токенизатор и шаблон чата на месте" if has_tokenizer else "")
    yield from or_else(troubles, ok("model", f"Модель: {described}"))


def _typed(model: Model, more: str = "") -> str:
    """A path as a shell takes it."""
    return quote(model.folder + more)


def _described(model: Model) -> str:
    size = model.weights_bytes
    weights = f", веса {gib(size)}" if size else ""
    return f"{model.config.get('model_type') or 'тип неизвестен'}{weights}"


def _label(model: Model) -> Iterator[Finding]:
    if model.label and "container_file_t" not in model.label and "svirt_sandbox" not in model.label:
        yield warning(
            "model_selinux",
            "SELinux не пустит контейнеры в папку модели",
            f"Её метка — {model.label}.",
            f"sudo chcon -Rt container_file_t {_typed(model)}/",
        )


def _unusable(model: Model) -> Iterator[Finding]:
    entries = [entry for entry in model.entries.values() if model.is_read(entry.name)]
    closed = [entry.name for entry in entries if not (entry.is_readable or entry.leads_nowhere)]
    if closed or not model.is_open:
        yield failure(
            "model_closed",
            f"Контейнерам не прочесть {'файлы модели: ' + some(closed) if closed else 'папку модели'}",
            "Контейнеры работают не от root, а доступ есть только у владельца.",
            f"chmod -R a+rX {_typed(model)}/",
        )
    if links := [entry.name for entry in entries if entry.leads_nowhere]:
        yield failure(
            "model_links",
            f"В папке модели — ссылки, которые в контейнере никуда не ведут: {some(links)}",
            "Контейнер видит только эту папку; так бывает с кэшем Hugging Face.",
            f"скачайте сами файлы: {_DOWNLOAD}\nили скопируйте: cp -rL {_typed(model)} {_typed(model, '.files')} "
            f"&& mv {_typed(model)} {_typed(model, '.links')} && mv {_typed(model, '.files')} {_typed(model)}",
        )
    if pointers := [entry.name for entry in entries if entry.is_pointer]:
        yield failure(
            "model_pointers",
            f"Вместо файлов модели — указатели Git LFS: {some(pointers)}",
            "Репозиторий склонирован без git-lfs, весов в нём нет.",
            f"cd {_typed(model)} && git lfs install && git lfs pull",
        )
    no_json = [name for name, said in model.documents.items() if not isinstance(said, dict)]
    empty = [entry.name for entry in entries if entry.name.endswith(".json") and _is_empty(model, entry.name)]
    if bad := [*no_json, *empty]:
        yield failure(
            "model_json",
            f"Файлы модели испорчены, это не JSON: {some(bad)}",
            "Скачались не до конца или их правили.",
            f"rm {' '.join(_typed(model, f'/{name}') for name in bad[:3])}\nскачайте заново: {_DOWNLOAD}",
        )


def _is_empty(model: Model, name: str) -> bool:
    entry = model.entries[name]
    return not entry.size and not entry.leads_nowhere


def _config(model: Model) -> Iterator[Finding]:
    if "config.json" not in model.entries and "params.json" not in model.entries:
        yield failure(
            "config_missing",
            "В папке модели нет config.json",
            "Без него vLLM не знает, что это за модель, и счёт токенов может разойтись.",
            f"скачайте модель целиком: {_DOWNLOAD}",
        )


def _weights(model: Model, *, reads_gguf: bool) -> Iterator[Finding]:
    shards = model.shards
    is_gguf = any(name.endswith(GGUF) for name in model.entries)
    others = (*OLD_WEIGHTS, GGUF) if reads_gguf else OLD_WEIGHTS
    if shards or any(name.endswith(others) for name in model.entries):
        pass
    elif is_gguf:
        yield failure(
            "weights_gguf",
            "В папке модели веса только в GGUF",
            "Из папки vLLM загружает *.safetensors; GGUF — для llama.cpp.",
            f"возьмите ту же модель без GGUF в имени: {_DOWNLOAD}",
        )
    else:
        yield failure(
            "weights_missing",
            "В папке модели нет весов (*.safetensors)",
            "vLLM нечего загружать.",
            f"скачайте модель целиком: {_DOWNLOAD}",
        )
    if absent := [name for name in shards if name not in model.entries]:
        yield failure(
            "shards_missing",
            f"Не хватает файлов весов: {some(absent)} (всего их {len(shards)})",
            f"Они названы в {WEIGHTS_INDEX}: модель скачана не до конца.",
            f"повторите, скачается недостающее: {_DOWNLOAD}",
        )
    for name in shards:
        yield from _shard(model, name)


def _shard(model: Model, name: str) -> Iterator[Finding]:
    entry = model.entries.get(name)
    if entry is None or entry.is_pointer or entry.leads_nowhere or not entry.is_readable:
        return
    tensors = model.tensors.get(name)
    again = f"rm {_typed(model, f'/{name}')}\nскачайте заново: {_DOWNLOAD}"
    if not entry.size or (tensors and tensors.problem):
        problem = tensors.problem if tensors else "файл пуст"
        yield failure("weights_broken", f"{name}: {problem}", "vLLM остановится на нём.", again)
    elif tensors and tensors.promised_bytes != entry.size:
        seen = f"{name}: {_bytes(entry.size)} байт вместо {_bytes(tensors.promised_bytes)}"
        yield failure("weights_cut", seen, "Файл скачан не до конца или испорчен; vLLM остановится на нём.", again)


def _bytes(size: int) -> str:
    return f"{size:,}".replace(",", " ")


def _tokenizer(model: Model) -> Iterator[Finding]:
    if model.entries.keys().isdisjoint(TOKENIZER_FILES):
        yield failure(
            "tokenizer_missing",
            f"В папке модели нет токенизатора ({', '.join(TOKENIZER_FILES[:3])} …)",
            "Шлюзу нечем считать токены, он не запустится.",
            f"скачайте модель целиком: {_DOWNLOAD}",
        )
    if not _has_template(model):
        yield failure(
            "template_missing",
            "В папке модели нет шаблона чата (chat_template.jinja или chat_template в tokenizer_config.json)",
            "Без него шлюз не запустится. У базовых моделей (без Instruct или Chat в имени) его нет.",
            f"возьмите диалоговую модель (в имени — Instruct или Chat): {_DOWNLOAD}",
        )


def _has_template(model: Model) -> bool:
    said = model.documents.get("tokenizer_config.json")
    if said is None and "tokenizer_config.json" in model.entries:
        return True  # it cannot be read, which is said already
    files = {"chat_template.jinja", "chat_template.json", "tekken.json"}
    return bool(model.document("tokenizer_config.json").get("chat_template")) or not files.isdisjoint(model.entries)
