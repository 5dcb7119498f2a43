# `make` alone lists what can be made: every target whose line ends in a comment of two #.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
# The version is pinned because a plain "torch" may resolve to a CUDA build of several GB; set TORCH= to keep your own.
TORCH ?= torch==2.13.0
JOBS ?= 2
OUT ?= runs/demo$(if $(FULL),-full)$(if $(QUICK),-quick)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
# Python compiles a module when it is first imported; of all that is installed, most is never imported here.
INSTALL = $(PIP) install --quiet --no-compile
# Which is kept, whatever the environment says: tests start hundreds of processes, and each would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo test check headers lint imports types packaging plugin sanitize triton gpu browser ray compile thorough oldest newest \
	readme changelog hooks sweep evidence kernel-hub wheels clean

help: ## what can be made, which is this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON=python3.12 to start from, TORCH=torch==2.12.0, JOBS=4 at once, OUT=folder of the demo.'

# Once it is installed, QUICK=1 takes a minute or two: one task, two methods, side by side.
QUICK_DEMO = set -e; \
	$(BIN)/hfadapt train examples/quick.yaml --output $(OUT)/pal --overwrite; \
	$(BIN)/hfadapt train examples/quick.yaml method=lora --output $(OUT)/lora --overwrite; \
	$(BIN)/hfadapt compare $(OUT)/pal $(OUT)/lora; \
	$(BIN)/hfadapt predict $(OUT)/lora "WINNER! Call 09061701461 now to claim your 900 pounds" "See you at seven"

demo: $(VENV)/.demo ## create .venv, install, train three tasks on a real encoder in 8 minutes; FULL=1: to convergence; QUICK=1: one, in a minute or two
	export HF_HUB_OFFLINE=1; $(if $(QUICK),$(QUICK_DEMO),\
	$(BIN)/hfadapt train examples/minisuite-pals.yaml --output $(OUT) --overwrite $(if $(FULL),,--fast))

test: $(VENV)/.test ## create .venv, install, run the tests
	$(PYTEST) -n $(JOBS) --dist worksteal --durations=15 tests

# `make -j2 check` does two at a time; the one that only waits for the compiler begins first.
check: sanitize headers lint imports types packaging plugin ## headers, lint, imports, types, packaging, sanitize and plugin: what must hold beside the tests

# Those of torch/ need torch's headers, and are built anyway.
headers: ## every header of the C++ kernels compiled alone, as an editor reads it
	find csrc -name '*.h' ! -path 'csrc/torch/*' -print0 | \
		xargs -0 -n 1 -P $(JOBS) $(CXX) -std=c++17 -fsyntax-only -w -x c++

lint: $(VENV)/.test ## style and format, by ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror

imports: $(VENV)/.test ## who may import whom, by import-linter
	PYTHONPATH=.:kernels:plugins $(BIN)/lint-imports

types: $(VENV)/.test ## types, by pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

packaging: $(VENV)/.test ## wheel, source distribution and editable install, built and looked into
	$(PYTEST) -m packaging tests/packaging

sanitize: $(VENV)/.test ## the C++ kernels under AddressSanitizer, in a folder of their own
	tools/asan_kernels.sh $(abspath $(BIN))/python

triton: $(VENV)/.test ## every Triton configuration compiled for every card family, which takes minutes
	$(PYTEST) -m triton -n $(JOBS) --dist worksteal tests/kernels

# On a machine with torch and Triton nothing is installed: PYTHON runs the checkout as it lies there.
DEVICE ?= cuda
gpu: ## the Triton kernels on this machine's card, in four minutes: right, stable, fast; DEVICE=cpu: interpreted
	HFADAPT_BUILD_CPP=0 PYTHONPATH=kernels $(PYTHON) -m hfadapt_kernels.bench.gpu --device $(DEVICE) --out runs/gpu

# Debian: apt-get install chromium chromium-driver
browser: $(VENV)/.test ## the page of hfadapt serve in a headless chromium, which must be there with its chromedriver
	$(PYTEST) -m browser tests/unit

ray: $(VENV)/.test ## files answered on a Ray cluster of this machine, workers killed on the way; installs Ray
	$(INSTALL) 'ray>=2.50'
	$(PYTEST) tests/unit/test_bulk_ray.py

compile: $(VENV)/.test ## every method compiled on every architecture, forward and back: half an hour
	$(PYTEST) -m compile -n $(JOBS) --dist worksteal tests/conformance tests/unit/test_capturable.py

thorough: $(VENV)/.test ## hundreds of random cases where the tests take a sample: kernels, rows, damaged folders
	$(PYTEST) -m thorough -n $(JOBS) --dist worksteal tests

sweep: $(VENV)/.demo ## every model type of the installed transformers with every method, resumable: an hour and more
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep/sweep.py

evidence: $(VENV)/.demo ## the papers' claims on real data, resumable, as many at once as cores; PART=drop one paper, SEEDS="3 4" others
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.evidence $(PART) $(if $(SEEDS),--seeds $(SEEDS))

plugin: $(VENV)/.test ## a third party's distribution installed, tested and trained with
	$(INSTALL) --no-build-isolation --no-deps --editable examples/hfadapt-plugin-ia3
	$(PYTEST) -n $(JOBS) examples/hfadapt-plugin-ia3/tests; status=$$?; \
	$(PIP) uninstall --quiet --yes hfadapt-plugin-ia3; exit $$status

oldest: $(VENV)/.demo ## the unit tests on the oldest releases that pyproject.toml allows, in .venv-oldest
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet $(TORCH) pytest pytest-xdist hypothesis matplotlib cmaes optuna
	$(VENV)-oldest/bin/python -m pip install --quiet $$($(BIN)/python tools/oldest.py)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -n $(JOBS) --dist worksteal tests/unit tests/cli

# In a copy of what git tracks, so that the C++ part is built there and not over the one that is in use here.
# A plain "torch" may be a CUDA build of several GB: TORCH='torch==2.14.1' names another.
NEWEST = build/newest
newest: TORCH_NEWEST = $(if $(filter file,$(origin TORCH)),torch,$(TORCH))
newest: ## all tests on the newest releases that PyPI serves
	rm -rf $(NEWEST)
	git checkout-index --all --prefix=$(NEWEST)/
	$(MAKE) -C $(NEWEST) test TORCH='$(TORCH_NEWEST)'
	$(NEWEST)/$(VENV)/bin/python tools/tested_releases.py

# With the C++ library that .venv uses: only names are written into the copy of it.
kernel-hub: $(VENV)/.test ## the ops as a repository for Hugging Face's kernels, in build/kernel-hub
	$(BIN)/python tools/kernel_hub.py build/kernel-hub

# In a copy of what git tracks, so that nothing of before is packed along.
WHEELS = build/wheels
wheels: $(VENV)/.test ## the wheels of a release in dist: one for Linux from glibc 2.28 on, and the plain one
	rm -rf $(WHEELS)
	git checkout-index --all --prefix=$(WHEELS)/
	MAX_JOBS=$(JOBS) $(WHEELS)/tools/wheels.sh $(abspath $(BIN))/python $(abspath dist)

# From what is registered, and from the results of the last demos, fast and full.
readme: $(VENV)/.demo ## write the generated parts of README, docs and the ops' pages anew
	$(BIN)/python tools/update_readme.py $(patsubst %/results.json,%,$(wildcard runs/demo/results.json runs/demo-full/results.json))

changelog: $(VENV)/.test ## show the next release's changes as they will read
	$(INSTALL) 'towncrier>=24.7'
	$(BIN)/towncrier build --draft --version next

hooks: $(VENV)/.test ## run style, format and import directions before every commit
	$(INSTALL) 'pre-commit>=4'
	$(BIN)/pre-commit install

# Built without isolation: the C++ part is compiled against the torch of this environment, not a second download of it.
$(VENV)/.demo: pyproject.toml $(wildcard setup.py csrc/*/*.* csrc/ops/*/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) 'setuptools>=77' wheel ninja $(TORCH)
	$(INSTALL) --no-build-isolation --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo requirements-test.txt
	$(INSTALL) -r requirements-test.txt
	touch $@

clean: ## remove what was built and installed here
	rm -rf $(VENV) build dist *.egg-info
