PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo doctor up down logs ps gateway train exam test lint bench clean

help: ## показать эту справку
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## поднять vLLM на процессоре и шлюз, открыть разговор; выход остановит всё
	@$(PYTHON) -m demo

doctor: ## проверить машину и стенд: что не так, почему и что набрать
	@$(PYTHON) -m app.doctor --stand

up: docker-compose.yaml .env model ## собрать образы, если их нет, и запустить стенд
	@docker compose up --detach || { echo "Стенд не запустился. Что не так, найдёт make doctor" >&2; exit 1; }
	@docker compose up --detach --no-deps --no-recreate --wait --wait-timeout 90 gateway || \
		{ echo "Шлюз не запустился. Его последние слова:" >&2; docker compose logs --tail 5 gateway >&2; \
		echo "Что ещё не так, найдёт make doctor" >&2; exit 1; }
	@address=$$({ docker compose port proxy 8080 2>/dev/null || docker compose port gateway 8080; } | \
		sed 's/^0\.0\.0\.0/127.0.0.1/'); \
		echo "Шлюз: http://$$address. Загрузилась ли модель, скажет curl http://$$address/ready"; \
		echo "Разговор: docker compose exec gateway python -m client. Журнал: make logs. Остановить: make down"

down: ## остановить стенд и удалить его контейнеры
	@docker compose down

logs: ## показывать журналы стенда; Ctrl-C — перестать
	@docker compose logs --follow --timestamps --tail 100 || true

ps: ## показать состояние стенда
	@docker compose ps

docker-compose.yaml:
	@echo "Нет docker-compose.yaml. Сделайте: cp docker-compose.example.yaml docker-compose.yaml" >&2; exit 1

.env:
	@echo "Нет .env. Сделайте: cp .env.example .env — и задайте в нём VLLM_API_KEY" >&2; exit 1

model:
	@echo "Нет папки model. Положите в неё модель: веса, config.json, токенизатор, шаблон чата" >&2; exit 1

gateway: ## подготовить окружение шлюза и клиента (.venv), без vLLM
	@$(PYTHON) -m demo.environments gateway

train: ## обучить модель для make demo заново: полчаса
	@$(PYTHON) -m demo.environments vllm
	@.venv-vllm/bin/python -m demo.assistant.train demo/assistant/model

exam: ## спросить модель для make demo о том, чему она не обучалась
	@$(PYTHON) -m demo.environments gateway vllm
	@.venv/bin/python -m demo.assistant.exam

test: ## подготовить всё нужное и прогнать все тесты
	@$(PYTHON) -m demo.environments tests vllm
	@.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: ## проверить стиль, формат и типы
	@$(PYTHON) -m demo.environments tests
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy app client tests bench demo
	@.venv/bin/hadolint Dockerfile Dockerfile.vllm
	@.venv/bin/shellcheck .ci/run

bench: ## измерить, сколько добавляет шлюз и Redis, остановку ответа, его показ, счёт токенов, память и кэш vLLM
	@$(PYTHON) -m demo.environments gateway vllm
	@.venv/bin/python -m bench.overhead $(BENCH_ARGS)
	@.venv/bin/python -m bench.soak
	@.venv/bin/python -m bench.cancel
	@.venv/bin/python -m bench.vanish
	@.venv/bin/python -m bench.rendering
	@.venv/bin/python -m bench.context
	@.venv/bin/python -m bench.window
	@.venv/bin/python -m bench.stores
	@.venv/bin/python -m bench.affinity

clean: ## удалить окружения и всё созданное
	rm -rf .venv .venv-vllm .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
