# Two commands: `make quickstart` and `make test`. Both install what they need into .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow check install bench format clean

quickstart: install
	$(BIN)/graphcl run configs/quickstart.toml

# Each process on one thread: more would wait for one another.
test test-slow: export OMP_NUM_THREADS = 1

test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python tests/benchmarks/bench_carriers.py --clients 100
	$(BIN)/python tests/benchmarks/bench_accuracy.py
	$(BIN)/python tests/benchmarks/bench_contrast.py
	$(BIN)/python tests/benchmarks/bench_products.py
	$(BIN)/python tests/benchmarks/bench_nodes.py
	$(BIN)/python tests/benchmarks/bench_policy.py
	$(BIN)/python tests/benchmarks/bench_scale.py
	$(BIN)/python tests/benchmarks/bench_outages.py
	$(BIN)/python tests/benchmarks/bench_forecast_scale.py
	$(BIN)/python tests/benchmarks/bench_forecast_scale.py --clients
	$(BIN)/python tests/benchmarks/bench_recovery.py
	$(BIN)/python tests/benchmarks/bench_hostile.py
	$(BIN)/python tests/benchmarks/bench_asynchrony.py --seeds 5
	$(BIN)/python tests/benchmarks/bench_faults.py
	$(BIN)/python tests/benchmarks/bench_softmax.py
	$(BIN)/python tests/benchmarks/bench_recommend.py
	$(BIN)/python tests/benchmarks/bench_deploy.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
