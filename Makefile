# Everything runs in .venv, which `make install` makes. PYTHON may name another Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export OMP_WAIT_POLICY := PASSIVE
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True

.PHONY: install test test-slow check quickstart clean

install: $(VENV)/.installed

# torch first and by itself: an index may offer only builds with gigabytes of CUDA to a range.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/graftline backbone install
	touch $@

test: install
	$(BIN)/python -m pytest -m 'not slow' -n 2

test-slow: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[trl,gym,harness]'
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[check]'
	$(BIN)/ruff check .
	$(BIN)/mypy

# make itself ends with 2 whenever a command fails; `graftline quickstart` ends with 3 when nothing passed the gate.
quickstart: install
	$(BIN)/graftline quickstart

clean:
	rm -rf $(VENV) build dist
