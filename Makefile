# One command each, the same on a desk and in CI. The first use of a command makes the environment it needs.
#
#   make demo          a small analysis from end to end on this machine
#   make test          the tests, with the newest dask that dask-awkward works with
#   make test-unprivileged   what touches files again, as a user without privileges, if root says so
#   make test-cluster  those with batch systems, Dask clusters, other machines and networks
#   make test-clients  coffea, Parsl and others that were written for TaskVine, unchanged
#   make test-newest   what has to do with dask again, with the newest dask and without dask-awkward
#   make lint types    ruff; mypy
#   make bench         the benchmarks
#   make fuzz          ten minutes of random histories of a simulated cluster
#   make random-graphs two thousand random graphs, computed again after edits, compared with dask's own scheduler
#   make worker        the worker as one file, dist/vine_worker.pyz
#   make lies          a million odd messages to both ends of the protocol
#   make clean         remove environments, caches and what runs left behind

PYTHON ?= python3
HEP := .venv
NEWEST := .venv-newest
CLIENTS := .venv-clients
# one of the clients needs 3.12.11; with another Python its test is skipped
CLIENTS_PYTHON := $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python)),$(shell command -v python3.13),$(PYTHON))

# the engine and its worker do not import dask
WITH_DASK := tests/daskvine tests/conformance tests/notebooks tests/faults tests/benchmarks tests/cluster/test_dask.py \
	tests/test_docs.py tests/test_exports.py tests/test_imports.py

# many tests start processes of their own, and all of them come out right on two cores
TWO_AT_A_TIME := -n 2 --dist worksteal

# what files, folders and disks are to a user who is not root
WITH_FILES := tests/vineworker tests/vinecore/manager/test_files.py tests/vinecore/manager/test_trees.py tests/vinecore/manager/test_directories.py \
	tests/vinecore/manager/test_cache_levels.py tests/vinecore/manager/test_minitasks.py tests/vinecore/server/test_object_store.py tests/vinecore/manager/test_tasks.py \
	tests/vinecore/protocol/transfer/test_content.py tests/faults/test_disks.py tests/faults/test_full_disks.py tests/faults/test_cleanup.py

.PHONY: demo test test-unprivileged test-cluster test-clients test-newest lint types bench fuzz lies worker clean

demo: $(HEP)/.stamp
	$(HEP)/bin/python -m daskvine.demo

test: $(HEP)/.stamp
	$(HEP)/bin/python -m pytest $(TWO_AT_A_TIME) --ignore=tests/cluster --ignore=tests/clients $(ARGS)

test-unprivileged:
	PYTHON=$(PYTHON) .ci/as-another-user $(WITH_FILES) $(ARGS)

test-cluster: $(HEP)/.stamp
	$(HEP)/bin/python -m pytest tests/cluster $(ARGS)

test-clients: $(CLIENTS)/.stamp
	$(CLIENTS)/bin/python -m pytest tests/clients $(ARGS)

test-newest: $(NEWEST)/.stamp
	$(NEWEST)/bin/python -m pytest $(TWO_AT_A_TIME) $(WITH_DASK) $(ARGS)

lint: $(HEP)/.stamp
	$(HEP)/bin/ruff check .
	$(HEP)/bin/ruff format --check .

types: $(HEP)/.stamp
	$(HEP)/bin/mypy

bench: $(HEP)/.stamp
	$(HEP)/bin/python -m benchmarks $(ARGS)

fuzz: $(HEP)/.stamp
	$(HEP)/bin/python -m tests.fuzz.scheduler_histories $(ARGS)

random-graphs: $(HEP)/.stamp
	$(HEP)/bin/python -m tests.random_graphs $(ARGS)

# the same bytes from every Python, which needs no environment for it
worker:
	mkdir -p dist
	PYTHONPATH=.:worker $(PYTHON) -m vineworker --pyz dist

lies: $(HEP)/.stamp
	$(HEP)/bin/python -m tests.fuzz.protocol_messages $(ARGS)

$(HEP)/.stamp: EXTRAS := .[hep,dev]
# where there is no wheel of it, it would have to be compiled: then its tests are skipped
$(HEP)/.stamp: OPTIONAL := .[xrootd]
$(CLIENTS)/.stamp: EXTRAS := .[clients,ssl,test]
$(CLIENTS)/.stamp: PYTHON := $(CLIENTS_PYTHON)
$(NEWEST)/.stamp: EXTRAS := .[dev]
$(NEWEST)/.stamp: NEWER := 'dask>=2026'

%/.stamp: pyproject.toml
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --editable '$(EXTRAS)' $(NEWER)
	$(if $(OPTIONAL),$*/bin/python -m pip install --quiet --only-binary xrootd --editable '$(OPTIONAL)' || echo 'not installed: $(OPTIONAL)')
	touch $@

clean:
	rm -rf $(HEP) $(NEWEST) $(CLIENTS) build dist demo-output vine-run-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
