# Every target sets up what it needs: Python 3.11 or later, git and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# The packages that frontends run, for the tests; without npm those tests say that they are skipped.
NODE_MODULES = $(if $(shell command -v npm),tests/sdk/node_modules/.package-lock.json)

# Hundreds of tests start a gateway, and each would compile it.
unexport PYTHONDONTWRITEBYTECODE

# Stamps are made one after another, whatever -j says.
.NOTPARALLEL:
.PHONY: help demo example setup test test-python test-programs coverage faults histories streams storm mutants soak soak-faults fuzz \
  twins bench listeners simulate audit release lint api-lint format docs programs lock clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run ## Run the gateway in front of a pretend upstream, and print lines to paste
	@$(BIN)/bff demo

setup: $(VENV)/dev $(NODE_MODULES) ## Install the packages, pinned with hashes

# Lint needs one core, and tests that wait leave half a core idle, so the two run at the same time.
test: $(VENV)/dev $(NODE_MODULES) ## Run lint, format check, types, import contracts and tests
	@$(MAKE) --no-print-directory lint & linted=$$!; \
	  $(MAKE) --no-print-directory test-python && tested=0 || tested=$$?; \
	  wait $$linted && exit $$tested

# More at a time than a small machine has cores: many of them wait.
JOBS  ?= 6
TESTS ?= tests
# A busy machine can pause a test beside real clocks and programs, so a failed test gets a second run.
# The summary names it (RERUN): mend it, since it may show a race in bff/.
test-python: $(VENV)/dev $(NODE_MODULES) ## Run the tests alone, on the Python of VENV
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --reruns 1 -rR $(TESTS)

# These tests drive other programs (browsers, proxies, a benchmark) and show no branch of bff/ that
# the others miss; measured, they would take twice their time.
PROGRAM_TESTS = $(addprefix tests/,bench chaos clients deploy docs faults fuzz soak topology)
MODULE_TESTS  = $(filter-out $(PROGRAM_TESTS),$(patsubst %/,%,$(dir $(wildcard tests/*/test_*.py))) \
  $(wildcard tests/test_*.py))
coverage: $(VENV)/dev $(NODE_MODULES) ## Run the tests of the modules and measure the branches of bff/ that they take
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist worksteal $(sort $(MODULE_TESTS))
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-programs: $(VENV)/dev $(NODE_MODULES) ## Run the tests that drive other programs: browsers, proxies, benchmarks
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(wildcard $(PROGRAM_TESTS))

faults: $(VENV)/dev ## Take out each protection in a copy of the code and see its test fail
	$(BIN)/python tests/faults

SECONDS ?= 300
FUZZ    ?= 60
soak: $(VENV)/dev ## Let everything around the gateway fail for SECONDS=300, and print what held
	$(BIN)/python tests/soak $(SECONDS)

soak-faults: $(VENV)/dev ## Plant a fault for each promise of the soak and see it noticed (six minutes)
	$(BIN)/python tests/soak faults

fuzz: $(VENV)-fuzz/run ## Let a fuzzer guided by coverage choose the bytes, FUZZ=60 seconds for each target
	$(VENV)-fuzz/bin/python tests/fuzz $(FUZZ)

HISTORIES ?=
histories: $(VENV)/dev ## Play HISTORIES=5000 random histories of polls, and of listeners, and check each answer
	HISTORIES=$(or $(HISTORIES),5000) $(BIN)/python -m pytest -n $(JOBS) -o faulthandler_timeout=0 \
	  tests/properties/test_property_histories.py tests/properties/test_property_listeners.py

streams: $(VENV)/dev ## Open and cut OPENS=10000 chat streams, and stop a gateway with STREAMS=500
	OPENS=$(or $(OPENS),10000) STREAMS=$(or $(STREAMS),500) $(BIN)/python -m pytest tests/incidents/test_incident_chat.py

storm: $(VENV)/dev ## Let STORM=10000 listeners come back within a second
	STORM=$(or $(STORM),10000) $(BIN)/python -m pytest -k storm tests/incidents/test_incident_listeners.py

twins: $(VENV)/dev ## Let HISTORIES=10000 random histories pass in twin worlds, and print what observers see of secrets
	$(BIN)/python tests/twins $(or $(HISTORIES),10000)

SAMPLE ?= 20
SEED   ?=
mutants: $(VENV)/dev $(VENV)-mutants/run ## Change SAMPLE=20 places of the core at random and print what no test notices
	$(VENV)-mutants/bin/python tests/mutants --python $(abspath $(BIN))/python --sample $(SAMPLE) \
	  $(if $(SEED),--seed $(SEED))

example: $(VENV)/dev $(NODE_MODULES) ## Install and build the Next.js example, and run it in Chromium with the plain one
	npm ci --prefix docs/examples/next --silent
	EXAMPLE=1 $(BIN)/python -m pytest tests/docs/test_examples.py

lint: $(VENV)/dev ## Run lint, format check, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/dev ## Format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

api-lint: $(VENV)/dev $(NODE_MODULES) tests/api/node_modules/.package-lock.json ## Lint /openapi.json with Redocly's and Spectral's recommended rules
	$(BIN)/python tests/programs/api_descriptions.py build/openapi
	tests/sdk/node_modules/.bin/redocly lint --extends recommended build/openapi/*.json
	tests/api/node_modules/.bin/spectral lint --ruleset tests/api/spectral.yaml --fail-severity hint build/openapi/*.json

docs: $(VENV)/dev ## Write the tables and drawings of the documentation that the code determines
	$(BIN)/python tests/programs/generate_docs.py

simulate: $(VENV)/dev ## Check the formulae of docs/FLEET.md against ten million sessions
	$(BIN)/python tests/programs/capacity.py
	$(BIN)/python tests/programs/generate_docs.py

# Debian's package of each program. A machine may have Node from elsewhere, with which Debian's npm
# cannot be installed, so only missing programs are installed.
PROGRAMS = chromium:chromium haproxy:haproxy nginx:nginx-light node:nodejs npm:npm \
  promtool:prometheus redis-server:redis-server systemd-analyze:systemd
programs: ## Install the programs that tests drive and that are missing (Debian; as root)
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
	  $$(for pair in $(PROGRAMS); do command -v $${pair%%:*} >/dev/null || echo $${pair##*:}; done)

lock: $(VENV)/dev ## Pin what is installed, with hashes
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/run.txt --group build pyproject.toml
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -c requirements/run.txt -o requirements/dev.txt \
	  --group dev pyproject.toml
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -c requirements/dev.txt -o requirements/tracing.txt \
	  --group build --extra tracing pyproject.toml
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/audit.txt --group audit
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/bench.txt --group bench
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/fuzz.txt --group fuzz
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/mutants.txt --group mutants
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-annotate -o requirements/release.txt --group release

audit: $(VENV)/dev $(VENV)-audit/run ## Look up known vulnerabilities of what is pinned, list licences, write build/sbom.json
	@mkdir -p build
	$(VENV)-audit/bin/cyclonedx-py requirements requirements/run.txt -o build/sbom.json
	$(BIN)/python tests/programs/sbom.py build/sbom.json
	$(VENV)-audit/bin/pip-licenses --python $(BIN)/python --from=mixed --order=license
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/run.txt || \
	  { echo "NOT AUDITED, OR VULNERABLE: what could not be looked up counts as a failure."; exit 1; }

release: $(VENV)/dev $(VENV)-release/run ## Build the sdist and the wheel in build/dist, check and list them; it publishes nothing
	rm -rf build/dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python tests/programs/release.py build/dist
	$(VENV)-release/bin/twine check --strict build/dist/*
	$(BIN)/uvx --quiet pipx run --spec build/dist/*.whl bff --version

bench: $(VENV)/bench ## Measure beside the peers (Debian's wrk and haproxy); BENCH="--seconds 1 --rounds 1" is short
	cd tests/bench/node && { ! command -v npm >/dev/null || npm ci --silent --no-audit --no-fund; }
	$(BIN)/python tests/bench --publish $(BENCH)
	$(BIN)/python tests/programs/generate_docs.py
	$(BIN)/python tests/bench/memory.py

listeners: $(VENV)/dev ## Measure quiet listeners of one worker, LISTENERS=10000, beside a server that only writes
	$(BIN)/python tests/bench/listeners.py $(or $(LISTENERS),10000)

clean: ## Remove what the targets made
	rm -rf $(VENV) $(VENV)-audit $(VENV)-fuzz $(VENV)-mutants $(VENV)-release build tests/*/node_modules tests/bench/node/node_modules \
	  docs/examples/next/node_modules docs/examples/next/.next \
	  .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# One stamp a set of packages: rerun when the pins change.
$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("This takes Python 3.11 or later: make PYTHON=python3.11 demo")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/python requirements/run.txt pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(VENV)/run requirements/dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/bench: $(VENV)/dev requirements/bench.txt
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

# The fuzzer is heavy and of its own pace: in no other set of packages.
$(VENV)-fuzz/run: requirements/fuzz.txt requirements/dev.txt requirements/run.txt
	$(PYTHON) -m venv $(VENV)-fuzz
	$(VENV)-fuzz/bin/pip install -q --disable-pip-version-check --require-hashes \
	  -r requirements/run.txt -r requirements/dev.txt -r requirements/fuzz.txt
	$(VENV)-fuzz/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# cosmic-ray brings many packages that no test needs.
$(VENV)-mutants/run: requirements/mutants.txt
	$(PYTHON) -m venv $(VENV)-mutants
	$(VENV)-mutants/bin/pip install -q --disable-pip-version-check --require-hashes \
	  -r requirements/mutants.txt
	@touch $@

# npm writes this file last: a stamp of its own.
tests/%/node_modules/.package-lock.json: tests/%/package-lock.json tests/%/.npmrc
	npm ci --prefix tests/$* --silent
	@touch $@

$(VENV)-release/run: requirements/release.txt
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/release.txt
	@touch $@

$(VENV)-audit/run: requirements/audit.txt
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/audit.txt
	@touch $@
