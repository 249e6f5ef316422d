PYTHON ?= python3
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo gateway test lint bench clean

help: ## показать эту справку
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## поднять vLLM на процессоре и шлюз, открыть разговор; выход остановит всё
	@$(PYTHON) -m demo

gateway: ## подготовить окружение шлюза и клиента (.venv), без vLLM
	@$(PYTHON) -m demo.environments gateway

test: ## подготовить всё нужное и прогнать все тесты
	@$(PYTHON) -m demo.environments tests vllm
	@.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: ## проверить стиль, формат и типы
	@$(PYTHON) -m demo.environments tests
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy app client tests bench demo

bench: ## измерить, за сколько остановка ответа доходит до vLLM
	@$(PYTHON) -m demo.environments gateway vllm
	@.venv/bin/python -m bench.cancel

clean: ## удалить окружения и всё созданное
	rm -rf .venv .venv-vllm .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
