# Every target sets up what it needs. `make help` is written from the comments behind the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The pins are a full list, so nothing is left to resolve: pip's resolver would take the newest release of a package of which a pin
# names an extra, and refuse it for its missing hash as soon as there is a newer one. `pip check` says whether the list is full.
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := var/demo
PORT ?= 8080
APT := $(if $(filter 0,$(shell id -u)),,sudo) env DEBIAN_FRONTEND=noninteractive apt-get

# The tests start hundreds of processes: where this is set, each of them would compile its modules again, a third of its time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve check test lint format bench bench-quick promtool faults faults-quick rig-tools fuzz docs dist lock clean

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

setup: $(READY) ## Make the virtual environment with everything in it

$(READY): requirements/dev.txt client/pyproject.toml service/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: set PYTHON=python3.12, for example."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv does not work here. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/dev.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e client -e service
	$(PIP) check
	@touch $@

demo: $(READY) ## Log thousands of real records on SQLite, verify, find and export some of them, and tamper with one
	$(BIN)/python -m tests.demo --data $(DEMO)

serve: $(READY) ## Serve the data of `make demo` (or a new log) on PORT, by default 8080
	@test -e $(DEMO)/policy || $(BIN)/muniment-server init --data $(DEMO) --origin localhost/demo
	$(BIN)/muniment-server serve --data $(DEMO) --port $(PORT)

check: lint ## Check quickly, while you work: lint, and the tests that need no Postgres and no server
	$(BIN)/python -m pytest -n 3 --dist worksteal -q -k "not (test_store_contract and postgres)" \
	  tests/unit tests/client tests/test_architecture.py tests/service/test_store_contract.py

test: $(READY) ## Run all tests that do not depend on time, on a real Postgres and a real SQLite
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not timed"

lint: $(READY) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure throughput and latency against a raw ASGI echo, on both stores
	$(BIN)/python -m tests.bench

bench-quick: $(READY) ## Run the tests that do depend on time: that the bench runs, and measures what it says
	$(BIN)/python -m pytest -m timed

faults: $(READY) ## Run fault rigs to their full count: all, or RIG=name SEEDS=a..b; adds to REPORT
	$(BIN)/python -m tests.rigs $(if $(RIG),--rig $(RIG)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(REPORT),--report $(REPORT))

faults-quick: $(READY) ## Run the quick lane of every fault rig (at most 20 minutes)
	$(BIN)/python -m tests.rigs --quick $(if $(REPORT),--report $(REPORT))

rig-tools: ## Install what fault rigs need beside Python (Debian and Ubuntu, as root)
	$(APT) update -qq
	$(APT) install -y -qq --no-install-recommends strace faketime xfsprogs e2fsprogs wrk \
	  patroni etcd-server haproxy

# Taken out of its package: installed, that would also start a Prometheus.
promtool: $(READY) ## Put what checks the alerts into the virtual environment (Debian and Ubuntu, as root)
	$(APT) update -qq
	folder="$$(mktemp -d)" && cd "$$folder" && $(APT) download -qq prometheus && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -O ./usr/bin/promtool > promtool && \
	  install -m 755 promtool "$(CURDIR)/$(BIN)/promtool" && rm -r "$$folder"

fuzz: $(READY) ## Fuzz every parser, 15 seconds each
	$(BIN)/python -m tests.fuzz --seconds 15

docs: $(READY) ## Write the generated parts of the docs (settings, routes, error codes, commands)
	$(BIN)/python -m tests.gendocs

dist: $(READY) ## Build sdists, and wheels from the sdists
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist client
	$(BIN)/python -m build --no-isolation --outdir dist service

lock: $(READY) ## Pin the newest allowed versions again (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --group dev \
	  --no-emit-package muniment --no-emit-package muniment-server --no-emit-package muniment-workspace \
	  client/pyproject.toml service/pyproject.toml --upgrade --quiet -o requirements/dev.txt
	@sed -n 's/^#    //p' deploy/requirements.txt deploy/requirements-build.txt | sh -x >/dev/null

clean: ## Remove what the other targets made
	rm -rf $(VENV) var dist bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis
