# Needs python3.11, pip and make. Everything is installed into .venv; nothing outside this folder is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check fix ui serve bench lock

demo: $(READY)
	$(BIN)/recfunnel demo

test: $(READY)
	$(BIN)/pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

ui: $(READY)
	$(BIN)/recfunnel ui

serve: $(READY)
	$(BIN)/recfunnel serve

bench: $(READY)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[bench]'
	$(BIN)/recfunnel bench all --small

$(READY): requirements.lock pyproject.toml
	@echo "installing the packages of requirements.lock into .venv: a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# A clean resolve of pyproject.toml. Both Faiss wheels are resolved here for their versions; a platform installs one of them.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet '.[dev]' faiss-cpu
	build/lock/bin/pip freeze --all --exclude recfunnel --exclude pip \
	| sed -E -e 's/\+[a-z0-9.]+$$//' \
	  -e "/^(faiss-gpu|nvidia-)/s/$$/ ; sys_platform == 'linux' and platform_machine == 'x86_64'/" \
	  -e "/^faiss-cpu/s/$$/ ; sys_platform != 'linux' or platform_machine != 'x86_64'/" \
	> requirements.lock
	rm -rf build/lock
