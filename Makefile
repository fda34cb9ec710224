# The targets that people run. Each may be run first on a bare machine.
VENV := .venv
PY   := $(VENV)/bin/python

# As in tools/setup.
PIP_EDITABLE := $(VENV)/bin/pip install --quiet --config-settings editable_mode=compat --editable

# How long `make fuzz` gives each target.
FUZZ_SECONDS := 60

# Two files of tests at a time: most tests wait, for guests and for timers.
SIDE_BY_SIDE := -n 2 --dist loadfile

# A machine that is busy with something else may fail a test: those that failed have another try, by themselves.
ALONE := $(PY) -m pytest --last-failed --last-failed-no-failures none

# The tests of the compiled modules, which are run with them once more; one of them replaces a method.
COMPILED := tests/unit/tcp tests/unit/relay tests/cmd/test_help.py tests/lab/test_tcp_kernel.py \
	tests/lab/test_tcp_faults.py tests/lab/test_relay_programs.py tests/unit/packet/test_quick.py \
	tests/unit/device/test_batch.py tests/unit/runtime/test_runner.py tests/lab/test_links.py \
	tests/unit/ack/test_ack_flow.py tests/unit/split/test_split_connector.py \
	tests/unit/tor/test_tor_names.py tests/unit/udt/test_udt_stage.py tests/unit/udt/test_udt_ends.py \
	tests/unit/fw/test_tracking.py tests/unit/fw/test_tracking_tcp.py tests/unit/fw/test_transfer.py \
	tests/unit/fw/test_fw_hostile.py tests/unit/model/test_tcp_follow.py tests/unit/packet/test_offload.py \
	tests/unit/freeze/test_table.py tests/unit/freeze/test_freezer.py tests/unit/freeze/test_proof.py \
	tests/unit/freeze/test_freeze_attacks.py tests/unit/wan/test_path.py tests/unit/wan/test_bottleneck.py

.PHONY: help setup demo check test compiled pure fuzz bench deb lint clean

help:
	@echo "make setup   install what is missing (Debian packages, Python packages in $(VENV))"
	@echo "make demo    carry a real guest's traffic and show the evidence (needs root)"
	@echo "make check   lint, and the tests that need no root: under a minute, for every edit"
	@echo "make test    run every test (needs root, boots guests)"
	@echo "make compiled  compile the hot modules in place; make pure takes that back"
	@echo "make fuzz    fuzz every parser of foreign octets for a minute (FUZZ_SECONDS=60)"
	@echo "make bench   run the quick benchmarks"
	@echo "make deb     build the Debian package dist/vtl-tools_VERSION_ARCHITECTURE.deb"
	@echo "make lint    ruff and mypy --strict"

setup:
	@tools/setup

demo: setup
	$(PY) examples/demo.py

check: lint
	$(PY) -m pytest -q -n 2 --hypothesis-profile=quick -m "not lab and not vm and not tor and not slow" \
		tests/unit tests/sim tests/oracle tests/fuzz

test: setup
	@tools/compiled --remove
	$(PY) -m pytest $(SIDE_BY_SIDE) || $(ALONE)
	@VTL_PROFILE=0 tools/compiled
	$(PY) -m pytest $(SIDE_BY_SIDE) --hypothesis-profile=quick $(COMPILED) || $(ALONE) || \
		{ tools/compiled --remove; exit 1; }
	@tools/compiled --remove

compiled: setup
	@tools/compiled

pure:
	@tools/compiled --remove

fuzz: setup
	$(PIP_EDITABLE) '.[fuzz]'
	$(PY) -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

bench: setup
	$(PIP_EDITABLE) '.[bench]'
	@tools/setup-bench
	$(PY) bench/bridge.py --quick --json
	tools/both bench/fw.py --quick --json
	tools/both bench/relay.py --quick --json
	$(PY) bench/freeze.py --quick --json
	$(PY) bench/subnet.py --quick --json
	$(PY) bench/wan.py --quick --json
	$(PY) bench/figure7.py --quick --json
	$(PY) bench/vortex.py --quick --json
	$(PY) bench/evpn.py --quick --json
	$(PY) bench/vnet.py --quick --json
	$(PY) bench/adapt.py --quick --json

deb: setup
	@tools/deb

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
