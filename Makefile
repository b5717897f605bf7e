# Bedside. The first two are all a newcomer needs.
SHELL := /bin/bash
PY := .venv/bin/python
PYTEST_ARGS ?=

.PHONY: device-lab help demo test setup setup-tests check format lock bench test-slow gpu-test torture soak fuzz attack sbom audit schema clean

help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: setup     ## set up and run the main job on loopback (DEMO_ARGS="--exit" ends at once)
	$(PY) -m tools.demo $(DEMO_ARGS)

test: setup-tests  ## set up and run the tests
	$(PY) -m pytest -n 2 $(PYTEST_ARGS)

setup:          ## Debian packages and .venv, enough to run
	tools/setup/setup.sh

setup-tests:    ## the same and what tests and checks need
	tools/setup/setup.sh tests

check: setup-tests  ## ruff, strict types for Python 3.10 and newer, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --python-version 3.10
	.venv/bin/mypy --python-version 3.13
	.venv/bin/lint-imports --no-cache

format:         ## format the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock:           ## make the hash-pinned locks again
	.venv/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url --group demo \
	  --extra postgresql --custom-compile-command 'make lock' pyproject.toml -o requirements.lock
	.venv/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url --group dev \
	  --extra postgresql --extra plots -c requirements.lock --custom-compile-command 'make lock' pyproject.toml -o requirements-dev.lock

bench: setup-tests  ## every benchmark as a table of ratios
	$(PY) -m tools.bench

test-slow: setup-tests  ## the long suites
	$(PY) -m pytest -m slow --timeout 7200 $(PYTEST_ARGS)

gpu-test: setup-tests  ## what needs an NVIDIA GPU
	$(PY) -m pytest -m gpu $(PYTEST_ARGS)

torture: setup  ## kill and cut everything for two minutes, then count
	$(PY) -m tools.torture --kills 25

soak: setup-tests  ## an hour of mixed capture, everything unplugged now and then, then count (SOAK_ARGS="--minutes 5")
	$(PY) -m tools.soak $(SOAK_ARGS)

fuzz: setup-tests  ## broken files, associations, sounds and settings, a minute each (FUZZ_MINUTES=60)
	for kind in files messages sounds config; do $(PY) -m tools.fuzz $$kind --minutes $(or $(FUZZ_MINUTES),1) || exit 1; done

attack: setup   ## thief, guest, rogue broker, replayer and rogue device against the real programs
	$(PY) -m tools.attack

sbom: setup-tests  ## bill of materials (CycloneDX) of the lock, into artefacts/
	$(PY) -m tools.supply sbom

audit: setup-tests  ## known vulnerabilities of what the lock installs (needs a network)
	$(PY) -m tools.supply audit

device-lab: setup  ## video, sound, disk and watchdog of a virtual machine, unplugged and cut off on purpose
	$(PY) -m tools.device_lab $(LAB_ARGS)

schema: setup   ## write docs/schema from the messages
	$(PY) -m tools.schema

clean:          ## remove what was made here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis var artefacts
