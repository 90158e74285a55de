# make demo: install, pretrain on the embedded scenes, benchmark, report.   make test: the same environment, all tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
unexport PYTHONDONTWRITEBYTECODE # else each of the tests' processes compiles every module and test again

.PHONY: demo test quick hardening speed gpu docs clean

demo: $(INSTALLED)
	$(BIN)/backbench demo

# Three workers on two cores: some tests wait for other processes, a SLURM's or a rank's, for half a minute.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m transfer.detection doctor

quick: $(INSTALLED)
	$(BIN)/python -m pytest -m quick

hardening: $(INSTALLED)
	BACKBENCH_HARDENING=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --timeout 1800 -m sample

speed: $(INSTALLED)
	$(BIN)/backbench speed $(if $(IMAGES),--images $(IMAGES))

gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/backbench speed --device cuda --out benchmarks/measured/gpu $(if $(IMAGES),--images $(IMAGES))

docs: $(INSTALLED)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict -d build/docs

$(INSTALLED): pyproject.toml setup.py constraints.txt transfer/detection/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	$(BIN)/python -m transfer.detection install && touch $@ || echo 'detection is left out until this succeeds: $(BIN)/python -m transfer.detection install'

clean:
	rm -rf $(VENV) runs results build *.egg-info
