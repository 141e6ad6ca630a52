# make demo | make test | make env: nothing is needed before them but Python (3.11 to 3.13) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch's own metadata pins its CUDA packages, so the lock leaves them to it: a CPU build needs none.
CUDA := $(addprefix --no-emit-package ,cuda-bindings cuda-pathfinder cuda-toolkit triton \
  nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 \
  nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 \
  nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx)
# A worker for each core; a file's tests stay together, for they share what its fixtures trained.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: env browser demo test fast bench check fix docs lock data clean

env: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# The report's tests drive a real Chromium; without one they are skipped with a message.
browser:
	command -v chromium >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; }

demo: env
	$(BIN)/gptoss demo --overwrite

test: env
	$(PYTEST)

fast: env
	$(PYTEST) -m "not slow"

# The quick ones. At full size: export.py --size 20b, full_size.py --size 20b (a GPU), learning.py
bench: env
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/full_size.py
	$(BIN)/python benchmarks/gpu_20b.py --out benchmarks/results
	$(BIN)/python benchmarks/startup.py --out benchmarks/results
	$(BIN)/python benchmarks/shared_prompts.py --out benchmarks/results
	$(BIN)/python benchmarks/token_budget.py --out benchmarks/results
	$(BIN)/python benchmarks/zero_signal.py --out benchmarks/results
	$(BIN)/python benchmarks/prepare_data.py --out benchmarks/results
	$(BIN)/python benchmarks/packed.py --out benchmarks/results/packed.json
	$(BIN)/python benchmarks/data_commands.py
	$(BIN)/python benchmarks/goals.py --readme README.md

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright src

fix: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env
	$(BIN)/python tools/write_cli_docs.py docs/cli.md

data: env
	$(BIN)/python tools/write_data.py

lock:
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	  $(CUDA) pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .ruff_cache .hypothesis
