# make demo   sets everything up and runs the main job on embedded real data
# make test   the same set-up, then all tests
# make lint   format, lint, types, layers
# make docs   the documentation site, into build/docs/index.html; its examples run
# make pretrained  the tests of pretrained models, with peft and transformers in a folder of their own
# make oracles  tests against torch-fidelity, in an environment of their own (about 1 GB)
# make clean  removes what these made

PYTHON ?= python3
VENV ?= .venv
ORACLES ?= .venv-oracles
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
ORACLES_PIP = $(ORACLES)/bin/python -m pip install --disable-pip-version-check --quiet \
	-c constraints.txt -c constraints-oracles.txt

# Two OpenMP threads that spin while they wait cost tenfold on a busy machine; threads that sleep at once cost the demo's
# training nearly half of its speed on a quiet one. A thousand turns are in between (docs/speed.md).
export OMP_WAIT_POLICY = PASSIVE
demo: export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test lint docs pretrained oracles clean

demo: $(VENV)/.ready
	$(VENV)/bin/imbdiff run digits --preset demo --out runs/demo
	@echo "open runs/demo/report.html"

# one thread each: two test processes share the machine. One that dies is not replaced: its test is a failure
test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(TESTS)

lint: $(VENV)/.ready-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# warnings are errors; links inside of the site are checked by tests/test_site.py too
docs: $(VENV)/.ready-docs
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

$(VENV)/.ready-docs: $(VENV)/.ready
	$(PIP) -e '.[docs]'
	touch $@

# Makes its own environment: it needs torchvision, which breaks the one that everything else runs in.
oracles: $(ORACLES)/.ready
	OMP_NUM_THREADS=1 $(ORACLES)/bin/python -m pytest tests/oracles

$(ORACLES)/.ready: pyproject.toml constraints.txt constraints-oracles.txt
	$(PYTHON) -m venv $(ORACLES)
	echo '*' > $(ORACLES)/.gitignore
	$(ORACLES_PIP) torch==2.13.0
	$(ORACLES_PIP) torchvision torch-fidelity pytest
	$(ORACLES_PIP) -e .
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "imbdiff needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, by its pin: asked for without one, it brings several GB of GPU packages
$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) -e '.[dev]'
	touch $@

# Beside the environment: in it they make every start of diffusers half as long again.
pretrained: $(VENV)/pretrained/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/test_pretrained.py

$(VENV)/pretrained/.ready: $(VENV)/.ready-dev
	$(PIP) --target $(VENV)/pretrained --upgrade --no-deps peft transformers tokenizers
	touch $@

clean:
	rm -rf $(VENV) $(ORACLES) runs build dist docs/gallery docs/generated docs/benchmarks docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
