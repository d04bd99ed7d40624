# setup: .venv from the lock files · run: the whole method · check-config: what can be known before · test: the tests
# ui: MLflow · lint: style, types, safety
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
# Every file is checked by its sha256; the lock files are closed, so nothing is left to resolve.
PIP_LOCKED := $(PIP) --require-hashes --no-deps
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup setup-dev run check-config test test-fast ui viz lint bench lock sbom audit ci-run

setup: .venv/installed

# pip chooses the build of torch by its own settings (an index, or files on disk), and then its sha256 is checked. PyPI's
# build for Linux needs the libraries of CUDA, others do not.
.venv/installed: requirements.lock requirements-torch.lock requirements-cuda.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip download --disable-pip-version-check -q --no-deps -d .venv/torch $$(grep -o '^torch==[^ ]*' requirements-torch.lock)
	$(PIP_LOCKED) --no-index --find-links .venv/torch -r requirements-torch.lock
	rm -r .venv/torch
	$(PIP_LOCKED) -r requirements.lock
	if $(BIN)/pip check | grep '^torch .* requires nvidia-' > /dev/null; then $(PIP_LOCKED) -r requirements-cuda.lock; fi
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@

# What tests and extras (Ray, S3, scene cuts, datasets) need beside it.
setup-dev: .venv/installed-dev

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP_LOCKED) -r requirements-dev.lock
	touch $@

run: setup
	kedro run

# What can be known before a run: make check-config ENV=ucf101
check-config: setup
	kedro check-config $(if $(ENV),--env $(ENV))

# A process of tests per core, four at most: each takes 1.5 GB, and starts others. One file: `pytest tests/test_noise.py`.
PYTEST := OMP_NUM_THREADS=1 pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test: setup-dev
	$(PYTEST)

test-fast: setup-dev
	$(PYTEST) -m "not slow"

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

# The lock files from pyproject.toml: make lock UPGRADE=--upgrade
lock: setup-dev
	python scripts/lock.py $(UPGRADE)

# What is installed, and the weights that come with it, as CycloneDX.
sbom: setup-dev
	python scripts/sbom.py sbom.json

# Known vulnerabilities in what the lock files name.
audit: setup-dev
	python scripts/audit.py
