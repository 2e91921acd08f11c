# Everything runs in a virtual environment of its own; all it needs is a Python of at least 3.12.
#   make quickstart    train, evaluate and sample the small character model into runs/quickstart; VARIANT=:minute is
#                      short, into runs/quickstart_minute
#   make test          the fast tests, nine to twelve minutes on two cores: every feature once
#   make test-all      the other tests, some twenty minutes
#   make exhaustive    further cases of some of these, for those who change attention, its kernels, the benchmarks of a
#                      GPU or what several processes do; longer still
#   make lint types    ruff and pyrefly
#   make aot-short     compiles the GPU kernels for A100, H100 and B200, no GPU needed, in a few minutes; an environment
#                      of its own, .venv-aot
#   make aot           the same of every case, with the oldest JAX for H100 as well (.venv-aot-oldest): hours, most of
#                      them for the 528 calls of the paper's models
#   make bench         attention on a CPU; TORCH_PYTHON=python of an environment with torch and transformers adds its peers
# PYTHON=/path/to/python chooses the interpreter the environment is made from.

BIN := .venv/bin
READY := .venv/ready
CANDIDATES := $(or $(PYTHON),python3.12 python3.13 python3.14 python3 python)
WORKDIR := runs/quickstart$(subst :,_,$(VARIANT))

.PHONY: setup quickstart test test-all exhaustive lint types bench aot aot-short
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@for python in $(CANDIDATES); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "error: no Python >= 3.12 among: $(CANDIDATES); name one with make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "Setting up .venv with $$found" && "$$found" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard]'
	@touch $@

quickstart: $(READY)
	$(BIN)/python train.py --config=configs/char_lm/quickstart.py$(VARIANT) --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR) --split=validation --protocol=stream
	$(BIN)/python eval.py --workdir=$(WORKDIR) --sample=500

# In the order of the files: sorted by their number of tests, the longest tests would come last, one by one.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not exhaustive"

exhaustive: $(READY)
	$(BIN)/python -m pytest -n 2 -m exhaustive

# XLA's CUDA plugin would make every other command look for a GPU.
.venv-aot/ready: $(READY)
	$(BIN)/python -m venv --clear .venv-aot
	.venv-aot/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,aot]'
	@touch $@

# The oldest JAX that works, which many GPU machines have; else the same versions.
.venv-aot-oldest/ready: $(READY)
	$(BIN)/python -m venv --clear .venv-aot-oldest
	sed 's/^\(jax.*\)==.*/\1==0.11.2/' constraints.txt > .venv-aot-oldest/constraints.txt
	.venv-aot-oldest/bin/python -m pip install --quiet --constraint .venv-aot-oldest/constraints.txt --editable '.[dev,aot]'
	@touch $@

aot: .venv-aot/ready .venv-aot-oldest/ready
	.venv-aot/bin/python -m pytest -s tests/pallas_kernels/test_aot.py
	.venv-aot-oldest/bin/python -m pytest -s tests/pallas_kernels/test_aot.py -k "spill and (sm_90a or own_keys) and not float32"

aot-short: .venv-aot/ready
	.venv-aot/bin/python -m pytest -s tests/pallas_kernels/test_aot.py -m "not exhaustive"

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/pyrefly check --python-interpreter-path=$(BIN)/python

bench: $(READY)
	$(BIN)/python benchmarks/attention.py peers $(if $(TORCH_PYTHON),--torch-python=$(TORCH_PYTHON))
	$(BIN)/python benchmarks/attention.py costs
