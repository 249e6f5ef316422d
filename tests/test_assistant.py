"""What the model of `make demo` was taught: consistent in itself, and true of the product as it is."""

import json
import re
from collections import defaultdict
from random import Random

import pytest

from app.config import DEFAULT_SYSTEM_PROMPT
from app.turn import DEFAULT_MAX_TOKENS
from client.commands import COMMANDS
from demo.assistant import corpus
from demo.assistant.exam import Paper
from demo.assistant.pattern import texts
from tests.conftest import Gateway
from tests.readme import ROOT
from tests.test_deploy import defaults_of_the_gateway, defaults_of_the_stand
from tests.test_errors import all_errors

MODEL = ROOT / "demo" / "assistant" / "model"
PAGES = "\n".join(
    path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "client" / "README.md", *(ROOT / "docs").glob("*.md"))
)


@pytest.fixture(scope="module")
def taught() -> corpus.Corpus:
    return corpus.load()


@pytest.mark.parametrize(
    ("pattern", "stands_for"),
    [
        ("привет", ["привет"]),
        ("как (дела|жизнь)", ["как дела", "как жизнь"]),
        ("[а] как дела [сегодня|сейчас]", [
            "как дела", "как дела сегодня", "как дела сейчас", "а как дела", "а как дела сегодня", "а как дела сейчас",
        ]),
        ("(добрый (день|вечер)|привет[ик])", ["добрый день", "добрый вечер", "привет", "приветик"]),
    ],
)  # fmt: skip
def test_a_pattern_stands_for_all_its_texts(pattern: str, stands_for: list[str]) -> None:
    assert texts(pattern) == stands_for


@pytest.mark.parametrize("pattern", ["(а", "а)", "[а)", "а|б", "((а)"])
def test_a_pattern_with_a_slip_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="а"):
        texts(pattern)


def bare(text: str) -> str:
    """A question without what people write either way."""
    return re.sub(r"[^\w/]|_", "", text.lower().replace("ё", "е"))


def plain(text: str) -> set[str]:
    """A question, and what is left of it without the openings and endings that are put to any in training."""
    begun = {bare(text), *(bare(text).removeprefix(bare(opener)) for opener in corpus.OPENERS)}
    return {*begun, *(rest.removesuffix(bare(closer)) for rest in begun for closer in corpus.CLOSERS)}


def test_no_question_has_two_answers(taught: corpus.Corpus) -> None:
    answers = defaultdict(set)
    for topic in taught.known:
        for text in topic.texts():
            answers[bare(text)].add(topic.name)
    for topic in taught.unknown:
        for text in topic.texts():
            answers[bare(text)].add(corpus.UNKNOWN)
    assert {text: names for text, names in answers.items() if len(names) > 1} == {}


def test_what_the_exam_asks_is_never_trained_on(taught: corpus.Corpus) -> None:
    """Neither questions in free words nor those that are held out of the patterns' own."""
    trained = {bare(text) for topic in (*taught.known, *taught.unknown) for text in topic.texts()}
    paper = Paper(taught)
    assert not {question.text for question in paper.free + paper.free_unknown if plain(question.text) & trained}
    rng = Random(0)
    held_out = {topic.sample_held_out(rng) for topic in taught.known for _ in range(20)}
    learnt = {topic.sample(rng) for topic in taught.known for _ in range(200)}
    assert not held_out & learnt


def test_there_are_75_to_100_questions_with_paraphrases(taught: corpus.Corpus) -> None:
    assert 75 <= len(taught.known) <= 100
    assert all(len(topic.texts()) >= 100 for topic in taught.known)
    assert len(Paper(taught).free) >= 200
    assert len(Paper(taught).free_unknown) >= 100


def test_it_is_trained_with_the_gateways_own_system_prompt(taught: corpus.Corpus) -> None:
    assert taught.system_prompts[0] == DEFAULT_SYSTEM_PROMPT


def test_the_weights_are_of_this_corpus() -> None:
    """Whoever changes the corpus trains the model anew: `make train`."""
    assert (MODEL / corpus.FINGERPRINT_FILE).read_text(encoding="utf-8").strip() == corpus.fingerprint()


def test_the_folder_is_small_and_answers_alike() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 10 * 1024**2
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert set(config["layer_types"]) == {"sliding_attention"}, "a talk may go on past the length that was trained on"
    generation = json.loads((MODEL / "generation_config.json").read_text(encoding="utf-8"))
    assert 0 < generation["temperature"] <= 0.2


# What stands in an answer, and where it must be found besides.
VARIABLE = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
PATH = re.compile(r"(?<![\w./:])/[a-z_]+\b(?!/)")
CODE = re.compile(r"\bКод (\w+)")
FILE = re.compile(
    r"(?<![\w/.:-])(?:(?:docs|deploy)/[\w./-]+\w|\.env\.example|docker-compose\.example\.yaml|README|demo\b)"
)
COMMAND = re.compile(
    r"""
    docker\ compose\ \w+ (?:\ -*[a-z-]+)*
    | (?:VLLM_EXTRA_ARGS|COMPOSE_FILE|COMPOSE_PROFILES|GATEWAY_PORT)= [^;,]+? (?=[.;,:]?\ |\.?$)
    | make\ \w+ | git\ pull | ss\ -ltnp | python\ -m\ client | chmod\ -R\ a\+rX\ model
    | openssl\ rand\ -hex\ \d+ | hf\ download\ \S+\ --local-dir\ model
    """,
    re.VERBOSE,
)


def found(pattern: re.Pattern[str], taught: corpus.Corpus) -> dict[str, set[str]]:
    """What a pattern finds in the answers: by names of topics."""
    matches = {name: set(pattern.findall(answer)) for name, answer in taught.answers.items()}
    some = {name: said for name, said in matches.items() if said}
    assert some, "the pattern finds nothing at all"
    return some


def test_answers_name_variables_that_exist(taught: corpus.Corpus) -> None:
    known = {*defaults_of_the_gateway(), *defaults_of_the_stand(), "VLLM_API_KEY", "COMPOSE_FILE", "COMPOSE_PROFILES"}
    assert {name: said - known for name, said in found(VARIABLE, taught).items() if said - known} == {}


def test_answers_name_addresses_and_commands_of_the_client_that_exist(taught: corpus.Corpus, gateway: Gateway) -> None:
    known = {*gateway.http.get("/openapi.json").json()["paths"], *COMMANDS, "/docs"}
    assert {name: said - known for name, said in found(PATH, taught).items() if said - known} == {}


def test_answers_name_codes_that_exist(taught: corpus.Corpus) -> None:
    codes = {error.code for error in all_errors() if not error.__subclasses__()}
    for name, said in found(CODE, taught).items():
        assert said <= codes, name


def test_answers_name_files_that_exist(taught: corpus.Corpus) -> None:
    for said in found(FILE, taught).values():
        for text in said:
            assert (ROOT / text).exists() or (ROOT / f"{text}.md").exists(), text


def test_answers_name_what_to_type_as_the_pages_do(taught: corpus.Corpus) -> None:
    for name, said in found(COMMAND, taught).items():
        for text in said:
            assert text in PAGES, f"{name}: {text}"


def quoted(text: str) -> list[str]:
    """The numbers of what the pages say word for word."""
    assert text in PAGES
    return numbers(text)


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)*", text)


def test_numbers_in_answers_are_those_of_the_code_or_of_the_pages(taught: corpus.Corpus) -> None:
    gateway, stand = defaults_of_the_gateway(), defaults_of_the_stand()
    budget = min(int(gateway["MAX_CONTEXT_TOKENS"]), int(stand["VLLM_MAX_MODEL_LEN"]) - DEFAULT_MAX_TOKENS)
    assert {name: numbers(answer) for name, answer in taught.answers.items() if numbers(answer)} == {
        "how-big": ["10"],
        "requirements": [*quoted("Linux на x86-64"), *quoted("25 ГБ на диске под образы")],
        "windows": quoted("Linux на x86-64"),
        "download-model": quoted("hf download Qwen/Qwen2.5-7B-Instruct --local-dir model"),
        "gpu-memory": quoted("модели в 7 миллиардов параметров в bfloat16 хватает 24 ГБ"),
        "get-key": quoted("openssl rand -hex 16"),
        "port": [stand["GATEWAY_PORT"]],
        "port-taken": quoted("GATEWAY_PORT=8081"),
        "only-here": ["127.0.0.1", stand["GATEWAY_PORT"]],
        "session-lifetime": [gateway["SESSION_TTL_SECONDS"]],
        "redis": [*quoted("redis://redis:6379/0"), *quoted("не меньше 32 знаков")],
        "max-sessions": [gateway["MAX_SESSIONS"]],
        "context-limit": [str(budget)],
        "max-tokens": [str(DEFAULT_MAX_TOKENS)],
        "temperature": ["0", "2"],
        "two-gpus": quoted("VLLM_EXTRA_ARGS=--tensor-parallel-size 2"),
    }
