"""Train the model of `make demo` and write its folder. Runs in vLLM's environment, which has torch and transformers.

`.venv-vllm/bin/python -m demo.assistant.train FOLDER`: less than half an hour on two cores, the same draws every time.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.assistant.corpus import FINGERPRINT_FILE, Corpus, Turn, fingerprint, load
from demo.make_model import CONTEXT_TOKENS, name_tokenizer_class, new_tokenizer

VOCABULARY_TOKENS = 2048
TOKENIZER_QUESTIONS = 50_000
LAYERS = 4
HIDDEN = 192
FEED_FORWARD = 512
HEAD = 32
"""A size that vLLM's attention on the CPU takes."""
WINDOW_TOKENS = 192
"""How far back a layer looks: with it a conversation may go on past the length that was trained on."""
TEMPERATURE = 0.1

ROWS = 8
ROW_TOKENS = 256
STEPS = 4000
WARM_UP_STEPS = 100
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 0.003
REPORT_STEPS = 50

BRIEF_TALKS = 0.5
"""Of conversations have their answers cut where all is said that tells one from the others: more questions a step."""
TURNS = range(1, 5)
TURNS_OF_BRIEF_TALKS = range(3, 12)
PLAIN_TOKEN_WEIGHT = 0.3
"""In the loss, of a token of an answer that the ones before it leave no choice of."""
ROUGH_QUESTIONS = 0.5
"""Of questions are cut into other tokens than the usual ones: words that were never seen may be of known parts."""
BPE_DROPOUT = 0.1
TOKEN_DROPOUT = 0.05

_NO_TOPIC = -100


@dataclass
class Row:
    """Tokens to train on.

    Attributes:
        ids: the tokens.
        weights: of each in the loss.
        talks: the number of the conversation that each is in.
        topics: at the last token before an answer, the number of that answer.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    talks: list[int] = field(default_factory=list)
    topics: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], talk: int, weights: Sequence[float] = ()) -> None:
        """Append tokens; without weights they are only read."""
        self.ids += ids
        self.weights += weights or [0.0] * len(ids)
        self.talks += [talk] * len(ids)
        self.topics += [_NO_TOPIC] * len(ids)


@dataclass(frozen=True)
class AnswerTokens:
    """An answer, its end included.

    Attributes:
        weights: of each token in the loss.
        telling: how many tokens tell it from all others.
    """

    ids: list[int]
    weights: list[float]
    telling: int


def answers_as_tokens(answers: Mapping[str, list[int]]) -> dict[str, AnswerTokens]:
    """Weigh each token by whether other answers go on otherwise after the same beginning."""
    following: dict[tuple[int, ...], set[int]] = {}
    for ids in answers.values():
        for place, token in enumerate(ids):
            following.setdefault(tuple(ids[:place]), set()).add(token)
    found = {}
    for name, ids in answers.items():
        forks = [place for place in range(len(ids)) if len(following[tuple(ids[:place])]) > 1]
        weights = [1.0 if place in forks else PLAIN_TOKEN_WEIGHT for place in range(len(ids))]
        found[name] = AnswerTokens(ids, weights, forks[-1] + 1)
    return found


class Source:
    """Draws rows of whole conversations."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self.names = list(corpus.answers)
        self._corpus = corpus
        self._rng = rng
        self._exact = tokenizer
        self._rough = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
        self._rough.backend_tokenizer.model.dropout = BPE_DROPOUT
        self._end = self._ids("<|im_end|>")
        self._end_of_message = self._ids("<|im_end|>\n")
        self._heads = {role: self._ids(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")}
        self._answers = answers_as_tokens(
            {name: [*self._ids(answer), *self._end] for name, answer in corpus.answers.items()}
        )

    def _ids(self, text: str, *, rough: bool = False) -> list[int]:
        tokenizer = self._rough if rough else self._exact
        return tokenizer.encode(text, add_special_tokens=False)

    def batches(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield ids, weights, talks and topics: rows × tokens each."""
        while True:
            rows = [self._row() for _ in range(ROWS)]
            parts = zip(*((row.ids, row.weights, row.talks, row.topics) for row in rows), strict=True)
            yield tuple(torch.tensor([part[:ROW_TOKENS] for part in of_rows]) for of_rows in parts)

    def _row(self) -> Row:
        row = Row()
        talk = 0
        while len(row.ids) < ROW_TOKENS:
            self._add_talk(row, talk)
            talk += 1
        return row

    def _add_talk(self, row: Row, talk: int) -> None:
        brief = self._rng.random() < BRIEF_TALKS
        if system_prompt := self._corpus.system_prompt(self._rng):
            row.add([*self._heads["system"], *self._ids(system_prompt), *self._end_of_message], talk)
        for _ in range(self._rng.choice(TURNS_OF_BRIEF_TALKS if brief else TURNS)):
            self._add_turn(row, talk, self._corpus.turn(self._rng), brief=brief)

    def _add_turn(self, row: Row, talk: int, turn: Turn, *, brief: bool) -> None:
        question = self._ids(turn.question, rough=self._rng.random() < ROUGH_QUESTIONS)
        row.add([*self._heads["user"], *question, *self._end_of_message, *self._heads["assistant"]], talk)
        row.topics[-1] = self.names.index(turn.answer)
        answer = self._answers[turn.answer]
        said = answer.telling if brief else len(answer.ids)
        row.add(answer.ids[:said], talk, answer.weights[:said])
        row.add(self._end_of_message if said < len(answer.ids) else self._end_of_message[1:], talk)


class Learner(torch.nn.Module):
    """The model, and beside it a layer that names the answer before it is given.

    The layer is thrown away in the end: it is there because the model learns sooner what a question is about when it
    has to tell that at once.
    """

    def __init__(self, model: LlamaForCausalLM, topics: int) -> None:
        super().__init__()
        self.model = model
        self.topic = torch.nn.Linear(HIDDEN, topics)

    def forward(
        self, ids: torch.Tensor, weights: torch.Tensor, talks: torch.Tensor, topics: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss."""
        embedded = self.model.get_input_embeddings()(ids)
        embedded = embedded * (torch.rand(ids.shape) >= TOKEN_DROPOUT)[..., None]
        hidden = self.model.model(inputs_embeds=embedded, attention_mask=seen(talks), use_cache=False).last_hidden_state
        told = topics != _NO_TOPIC
        wanted = weights[:, 1:] > 0
        losses = cross_entropy(self.model.lm_head(hidden[:, :-1][wanted]), ids[:, 1:][wanted], reduction="none")
        counted = weights[:, 1:][wanted]
        return (losses * counted).sum() / counted.sum() + cross_entropy(self.topic(hidden[told]), topics[told])


def seen(talks: torch.Tensor) -> torch.Tensor:
    """What each token may look at: the window before it, within its conversation; rows × 1 × tokens × tokens."""
    places = torch.arange(talks.shape[1])
    distance = places[:, None] - places[None, :]
    near = (distance >= 0) & (distance < WINDOW_TOKENS)
    return (near & (talks[:, :, None] == talks[:, None, :]))[:, None]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """With random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def train(learner: Learner, batches: Iterator[tuple[torch.Tensor, ...]], steps: int) -> None:
    """Muon for the layers' matrices, AdamW for the rest, the learning rate falling to nothing."""
    matrices = [weight for weight in learner.model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in learner.parameters() if not any(weight is matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.1),
        torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, 1.0) * (1 - step / steps)
        )
        for optimizer in optimizers
    ]
    learner.train()
    started = time.monotonic()
    total = 0.0
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        loss = learner(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        total += loss.item()
        if step % REPORT_STEPS == 0:
            left = (time.monotonic() - started) / step * (steps - step)
            print(f"шаг {step} из {steps}, потери {total / REPORT_STEPS:.3f}, осталось {left / 60:.0f} мин", flush=True)
            total = 0.0


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that vLLM serves."""
    tokenizer.save_pretrained(folder)
    name_tokenizer_class(folder / "tokenizer_config.json")
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers' Llama knows no window, vLLM's does.
    config |= {"sliding_window": WINDOW_TOKENS, "layer_types": ["sliding_attention"] * LAYERS}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / FINGERPRINT_FILE).write_text(fingerprint() + "\n", encoding="utf-8")


def main() -> None:
    """Train, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    torch.manual_seed(0)
    corpus = load()
    tokenizer = new_tokenizer(corpus.messages(TOKENIZER_QUESTIONS, random.Random(0)), VOCABULARY_TOKENS)
    source = Source(corpus, tokenizer, random.Random(1))
    learner = Learner(new_model(tokenizer), len(source.names))
    print(f"параметров: {learner.model.num_parameters()}, ответов: {len(source.names)}", flush=True)
    train(learner, source.batches(), asked.steps)
    save(learner.model, tokenizer, asked.folder)


if __name__ == "__main__":
    main()
