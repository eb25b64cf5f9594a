# The two commands that everybody needs are `make demo` and `make test`; both set up all they use in .venv.
# What does not live here: what is installed.  That is derived from pyproject.toml, core/ and plugins/*/pyproject.toml.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The core's own tests need neither torch nor a plugin nor a server.
CORE_VENV := .venv-core
CORE_BIN := $(CORE_VENV)/bin
CORE_STAMP := $(CORE_VENV)/.installed
# Programs that call torchrun; some want old releases of what the tests need.
CLIENTS_BIN := .venv-clients/bin
PRIVATE_HOSTS := tests/with-private-hosts
# Images of containers often set it; then each of thousands of processes would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# Most tests wait for processes, leases and deadlines: three at a time keep two cores busy.
JOBS ?= 3

PROJECTS := core $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
SOURCES := $(PROJECTS:%=%/src)
# The examples' folders too: an example's modules import each other by their bare names.
TYPE_ROOTS := $(SOURCES) $(patsubst %/,%,$(wildcard examples/*/))
empty :=
space := $(empty) $(empty)

.PHONY: clients help demo demo-live soak test test-core lint format types tests reference coverage simulate docs dist bench clean system-packages etcd machines trials slow-starts redis chromium mpirun slurm sshd kubernetes
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(STAMP) ## train on two agents, kill a worker and a whole agent, watch it go on (about a minute)
	$(PRIVATE_HOSTS) $(BIN)/python examples/digits_ddp/demo.py

demo-live: $(STAMP) ## kill workers and an agent; the others keep their processes and their state (about half a minute)
	$(PRIVATE_HOSTS) $(BIN)/python examples/digits_live/demo.py

soak: $(STAMP) ## random kills of live workers and their agents (KILLS=1000 SEED=1)
	LIVE_KILLS=$(or $(KILLS),1000) LIVE_SEED=$(or $(SEED),1) LIVE_AGENTS=0.05 $(PRIVATE_HOSTS) $(BIN)/python -m pytest plugins/live/tests -k random --timeout=14400 -q -rP

test: $(STAMP) ## lint, format, types and every test, the slow ones included
	@$(MAKE) --no-print-directory --keep-going lint format types tests

test-core: $(CORE_STAMP) ## the core's tests in an environment of their own, without torch and plugins (about a minute)
	$(CORE_BIN)/python -m pytest core/tests -n $(JOBS) --dist worksteal -m "not needs and not slow" $(ARGS)

lint: $(STAMP) ## ruff check alone
	$(BIN)/ruff check .

format: $(STAMP) ## ruff format, as a check
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict over all sources
	MYPYPATH=$(subst $(space),:,$(TYPE_ROOTS)) $(BIN)/mypy --strict $(SOURCES) benchmarks
	set -e; for folder in $(sort $(dir $(wildcard examples/*/*.py))); do \
		MYPYPATH=$(subst $(space),:,$(TYPE_ROOTS)) $(BIN)/mypy --strict $$folder; done

tests: $(STAMP) etcd redis chromium mpirun machines slurm sshd kubernetes ## pytest alone
	# Both parts are run, whatever fails.  The second is given only what has such tests: to collect all takes longer.
	status=0; \
	$(PRIVATE_HOSTS) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not alone" || status=$$?; \
	$(PRIVATE_HOSTS) $(BIN)/python -m pytest -m alone \
		$$(grep -rl --include="test_*.py" "pytest.mark.alone" $(PROJECTS:%=%/tests) tests) || status=$$?; \
	exit $$status

coverage: $(STAMP) ## which lines the core's tests reach (TESTS="core/tests plugins/errors/tests" for more); coverage/index.html
	$(BIN)/python -m pip install --quiet -c constraints.txt --group coverage
	$(BIN)/python -m coverage erase
	$(PRIVATE_HOSTS) $(BIN)/python -m coverage run -m pytest $(or $(TESTS),core/tests) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report
# Quotes in the sentence, not in the test: SUITE may name several files, or cases of one.
reference: $(STAMP) etcd ## the reference suite of elastic agents, which is not part of the repository: SUITE=path/to/agent_test.py
	@[ -n "$(SUITE)" ] || { echo "say where the reference suite is: make reference SUITE=path/to/agent_test.py" >&2; exit 2; }
	@for path in $(SUITE); do [ -e "$${path%%::*}" ] || { echo "there is no reference suite at $$path; set SUITE" >&2; exit 2; }; done
	SEED_TARGET=quorate $(PRIVATE_HOSTS) $(BIN)/python -m pytest -q -p no:cacheprovider $(SUITE) $(ARGS)

simulate: $(STAMP) ## random scenarios in virtual time (SEEDS=1000 FIRST=0; ARGS="--nodes 10000" for one large job)
	$(BIN)/python -m quorate.testing.simulate --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0) $(ARGS)

fuzz: $(STAMP) ## random bytes for everything that reads what others wrote (SECONDS=10 for each; ARGS=--coverage with atheris installed)
	$(BIN)/python -m core.tests.fuzz --seconds $(or $(SECONDS),10) $(ARGS)

docs: $(STAMP) ## write the generated parts of docs/ anew
	$(BIN)/python -m quorate.cli._reference docs

clients: $(STAMP) ## released programs that call torchrun, run by quorate (ARGS="-k deepspeed"; installs about 3 GB, takes about 20 minutes)
	[ -x $(CLIENTS_BIN)/python ] || $(PYTHON) -m venv $(dir $(CLIENTS_BIN))
	$(CLIENTS_BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(CLIENTS_BIN)/python -m pip install --quiet $(shell grep '^torch==' constraints.txt) --group clients hatchling editables
	$(CLIENTS_BIN)/python -m pip install --quiet --no-build-isolation $(PROJECTS:%=-e ./%)  # else an environment for each
	QUORATE_CLIENTS_PYTHON=$(abspath $(CLIENTS_BIN)/python) $(PRIVATE_HOSTS) $(BIN)/python -m pytest plugins/torchrun/tests/test_torchrun_clients.py -rs $(ARGS)

trials: $(STAMP) etcd machines ## a hundred random losses of a machine, of each kind, and partitions (about an hour; TRIALS=10 for fewer)
	QUORATE_TEST_TRIALS=$(or $(TRIALS),100) $(PRIVATE_HOSTS) $(BIN)/python -m pytest tests/test_lost_machines.py -k "three_machines or ranks_zero or training" -x

slow-starts: $(STAMP) etcd machines ## fifty starts over a slow link that loses packets, on each backend (about an hour; TRIALS=10 for fewer)
	QUORATE_TEST_TRIALS=$(or $(TRIALS),50) $(PRIVATE_HOSTS) $(BIN)/python -m pytest tests/test_slow_networks.py -x

bench: $(STAMP) etcd mpirun ## every benchmark, side by side with the peers that are installed (about 25 minutes; NAME=launch for one)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group bench
	$(PRIVATE_HOSTS) $(BIN)/python -m benchmarks $(or $(NAME),all) $(ARGS)

dist: $(CORE_STAMP) ## wheel and source archive of every distribution, in dist/
	$(CORE_BIN)/python -m pip install --quiet -c constraints.txt --group build
	rm -rf dist
	set -e; for project in . $(PROJECTS); do $(CORE_BIN)/python -m build --no-isolation --outdir dist $$project; done

clean: ## remove the environment, caches and everything that was built or written
	rm -rf $(VENV) $(CORE_VENV) .venv-clients demo-output benchmarks/results build dist .coverage .coverage.* coverage
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .nox
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf $(PROJECTS:%=%/dist) $(PROJECTS:%=%/build)

$(CORE_STAMP): Makefile constraints.txt pyproject.toml core/pyproject.toml
	[ -x $(CORE_BIN)/python ] || $(PYTHON) -m venv $(CORE_VENV)
	$(CORE_BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(CORE_BIN)/python -m pip install --quiet -c constraints.txt --group test -e ./core
	@touch $@

# torch comes first and alone, at the pinned version: whatever needs torch later then finds it there.
$(STAMP): Makefile constraints.txt pyproject.toml $(PROJECTS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "quorate needs Python 3.10 or newer; set PYTHON=…")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory system-packages
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev $(PROJECTS:%=-e ./%)
	@touch $@

# Debian splits venv off python3.
system-packages: APT_PACKAGES := python3-venv
system-packages:
	$(APT_INSTALL)

# The tests of the etcd backends run a real etcd of their own, with certificates that openssl makes.
etcd: APT_PACKAGES := etcd-server openssl
etcd:
	@{ [ -n "$$QUORATE_ETCD_BINARY" ] || command -v etcd >/dev/null; } && command -v openssl >/dev/null || { $(APT_INSTALL); }

# Tests cut machines (network namespaces) off from each other.
machines: APT_PACKAGES := iproute2 nftables
machines:
	@{ command -v ip && command -v nft; } >/dev/null || ( $(APT_INSTALL) ) || true

# The status page is looked at in a real browser; this one is the smallest that Debian has (95 MB to fetch).
chromium: APT_PACKAGES := chromium-headless-shell
chromium:
	@{ command -v chromium-headless-shell || command -v chromium || command -v google-chrome; } >/dev/null || { $(APT_INSTALL); }

# The example docs/examples/rendezvous_redis is tested with a server of its own.
redis: APT_PACKAGES := redis-server
redis:
	@command -v redis-server >/dev/null || { $(APT_INSTALL); }

# A peer to be measured beside, and a launcher of quorate; where it cannot be had it is left out, and tests and benchmarks
# say so.
mpirun: APT_PACKAGES := openmpi-bin
mpirun:
	@command -v mpirun >/dev/null || ( $(APT_INSTALL) ) || true

# The tests of quorate-cluster run a Slurm of their own; where it cannot be had they are skipped, and say so.
slurm: APT_PACKAGES := slurmctld slurmd slurm-client munge
slurm:
	@{ command -v slurmctld || [ -x /usr/sbin/slurmctld ]; } >/dev/null || ( $(APT_INSTALL) ) || true

# The tests of quorate-ssh run a server of their own on loopback; where it cannot be had they are skipped, and say so.
sshd: APT_PACKAGES := openssh-server openssh-client
sshd:
	@{ command -v sshd || [ -x /usr/sbin/sshd ]; } >/dev/null || ( $(APT_INSTALL) ) || true

# The manifests of examples/kubernetes are read by the API's own client libraries, in an environment of their own; where
# they cannot be had that test is skipped, and says so.
kubernetes:
	@[ -e .venv-kubernetes/.installed ] || { $(PYTHON) -m venv .venv-kubernetes && .venv-kubernetes/bin/python -m pip install --quiet --upgrade 'pip>=25.1' && .venv-kubernetes/bin/python -m pip install --quiet --group kubernetes && touch .venv-kubernetes/.installed; } || rm -rf .venv-kubernetes

# sudo only where there is one and it is needed.
define APT_INSTALL
command -v apt-get >/dev/null || { echo "install $(APT_PACKAGES) with your package manager" >&2; exit 1; }; \
sudo=$$([ "$$(id -u)" -eq 0 ] || command -v sudo || true); \
$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(APT_PACKAGES) >/dev/null
endef
