PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PEERS := $(VENV)/peers
CSRC := $(wildcard $(foreach folder,csrc csrc/*,$(folder)/*.cpp $(folder)/*.h))

# On two cores: each process computes on one thread, and a file is run by one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo check test test-peers test-hosts lint clean

demo: $(INSTALLED)
	$(BIN)/detr-fast demo

# All tests but those marked slow.
check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

# The tests that need RF-DETR, MMDetection or timm, in an environment of their own, and those of the oldest and the newest
# release of each host library.
test-peers: $(PEERS)/installed
	$(PEERS)/bin/pytest $(addprefix tests/integrations/test_,evidence.py rfdetr.py mmdet.py huggingface_weights.py)
	$(PEERS)/bin/python tests/integrations/hosts.py --ends

# All releases of tests/integrations/hosts.txt, each in an environment of its own; writes the tables of the documentation.
test-hosts: $(PEERS)/installed
	$(PEERS)/bin/python tests/integrations/hosts.py --write

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC) benchmarks/fake_cuda.cpp
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build *.egg-info detr_fast/_C*.so

# One environment for everything, from the project's own files. Sources of the extension rebuild it.
$(INSTALLED): constraints.txt pyproject.toml setup.py $(CSRC)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,test,docs]"
	touch $@

$(PEERS)/installed: tests/integrations/peers.txt $(INSTALLED)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --editable ".[train,test]"
	$(PEERS)/bin/pip install --quiet --no-deps --requirement tests/integrations/peers.txt
	touch $@
