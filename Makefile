# What a person types. `make setup` is quick when nothing has changed; every other target runs it first.
#
#   PYTHON=...  a Python 3.11 or newer for `make setup` (default: python3)
#   ARGS=...    further arguments for pytest (make test) or the benchmark (make bench)

PY := .venv/bin/python
ARGS ?=

.PHONY: setup demo test crash soak bench lint types lock deb clean

setup: .venv/.token

# The stamps lie in .venv: removing it starts afresh, and a set-up that was interrupted leaves none.
.venv/.packages: requirements.lock pyproject.toml .ci/setup
	@.ci/setup packages
	@touch $@

.venv/.token: .venv/.packages
	@.ci/setup token
	@touch $@

.venv/.host: .venv/.token
	@.ci/setup host
	@touch $@

demo: setup
	@tests/support/demo.sh

test: setup .venv/.host
	$(PY) -m tests $(ARGS)

# What `make test` does a little of: kills the service 10,000 times at random moments and at every disk call, also of
# rotations and destructions, the whole daemon 100 times, and `kmsd init` between any two steps; lets every disk call fail
# in every way, and cuts the power 5,000 times. Some 40 minutes on two cores.
#
#   KMSD_CAMPAIGN_SEED=N  repeats a campaign that found something, which tells its seed
crash: setup
	KMSD_CRASH_KILLS=10000 KMSD_CRASH_OUTAGES=100000 KMSD_CRASH_POWER_CUTS=5000 \
		$(PY) -m pytest -s tests/faults tests/life/test_kills.py $(ARGS)
	KMSD_CRASH_RUNS=100 $(PY) -m pytest tests/e2e/test_crash.py tests/commands/test_init.py tests/commands/test_init_shares.py $(ARGS)

# What `make test` does 5,000 steps of: lets people use and manage keys for years while clocks are set and the service is
# sealed, stopped, and killed amid its disk calls, and compares all that can be seen with a model of what AWS KMS
# promises. 200,000 steps take some 20 minutes.
#
#   KMSD_SOAK_STEPS=N  how many steps
#   KMSD_SOAK_SEED=N   repeats a run that found something, which tells its seed
soak: setup
	KMSD_SOAK_STEPS=$${KMSD_SOAK_STEPS:-200000} $(PY) -m pytest -s tests/life/test_life.py $(ARGS)

bench: setup
	$(PY) -m tests.benchmarks $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

# Resolves pyproject.toml's dependencies anew and pins them by hash. The only target that needs uv.
lock:
	@.ci/lock

# The Debian package, in dist/. Needs Debian's own python3, with which it runs; the first one takes half a minute.
deb: setup
	$(PY) -m systemd.debian.build $(ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
