# setup: .venv from the lock files · run: the whole method · check-config: what can be known before · test: the tests
# ui: MLflow · lint: style, types, safety
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup setup-dev run check-config test test-fast ui viz lint bench lock ci-run

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

# What tests and extras (Ray, S3, scene cuts, datasets) need beside it.
setup-dev: .venv/installed-dev

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -r requirements-dev.lock
	touch $@

run: setup
	kedro run

# What can be known before a run: make check-config ENV=ucf101
check-config: setup
	kedro check-config $(if $(ENV),--env $(ENV))

test: setup-dev
	pytest

test-fast: setup-dev
	pytest -m "not slow"

# One worker and no job runner: starts in a third of the default's time. Listens on this machine only.
ui: setup
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false DO_NOT_TRACK=true mlflow ui --workers 1 \
		--host 127.0.0.1 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}

viz: setup
	DO_NOT_TRACK=true kedro viz run --host 127.0.0.1

lint: setup-dev
	ruff check .
	ruff format --check .
	mypy
	git ls-files -z | xargs -0 detect-secrets-hook \
		--disable-plugin HexHighEntropyString --disable-plugin Base64HighEntropyString

bench: setup-dev
	for script in benchmarks/bench_*.py; do python $$script || exit 1; done

# The whole method at the smallest size that still runs every part.
ci-run: setup
	kedro run --env ci

# After `pip install -e ".[dev,ray,s3,scenes,datasets,gpu,viz]"` in .venv.
lock:
	$(BIN)/python scripts/lock.py
