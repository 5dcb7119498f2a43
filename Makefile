# make demo          create .venv, install, train three tasks together on a real encoder (at most 8 minutes on 2 cores)
# make demo FULL=1   the same, to convergence
# make test          create .venv, install, run the tests
# make check         ruff, import directions, types, packaging, the example plugin, the C++ kernels under AddressSanitizer
# make oldest        the unit tests on the oldest releases of the packages that hfadapt stands on
# make newest        all tests on the newest releases that PyPI serves; writes hfadapt/tested_releases.json when they pass
# make readme        write the README's generated parts from the last demos
PYTHON ?= python3
VENV ?= .venv
# The version is pinned because a plain "torch" may resolve to a CUDA build of several GB; set TORCH= to keep your own.
TORCH ?= torch==2.13.0
JOBS ?= 2
OUT ?= runs/demo$(if $(FULL),-full)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
# Python compiles a module when it is first imported; of all that is installed, most is never imported here.
INSTALL = $(PIP) install --quiet --no-compile
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test check lint imports types packaging plugin sanitize triton compile oldest newest readme clean

demo: $(VENV)/.demo
	HF_HUB_OFFLINE=1 $(BIN)/hfadapt train examples/minisuite-pals.yaml --output $(OUT) --overwrite $(if $(FULL),,--fast)

test: $(VENV)/.test
	$(PYTEST) -n $(JOBS) --dist worksteal --durations=15 tests

# `make -j2 check` does two at a time; the one that only waits for the compiler begins first.
check: sanitize lint imports types packaging plugin

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

imports: $(VENV)/.test
	PYTHONPATH=.:kernels:plugins $(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python

packaging: $(VENV)/.test
	HFADAPT_TEST_PACKAGING=1 $(PYTEST) tests/packaging/test_distributions.py

# The C++ kernels under AddressSanitizer, in a folder of their own.
sanitize: $(VENV)/.test
	tools/asan_kernels.sh $(abspath $(BIN))/python

# Every Triton configuration compiled anew for every card family, which takes minutes; the tests compile some of them.
triton: $(VENV)/.test
	HFADAPT_TEST_TRITON=1 $(PYTEST) -n $(JOBS) --dist worksteal tests/kernels/test_triton_static.py

# Every method compiled on every architecture, with the graph of its backward pass: half an hour; the tests take a sample.
compile: $(VENV)/.test
	HFADAPT_TEST_COMPILE=1 $(PYTEST) -n $(JOBS) --dist worksteal tests/conformance/test_methods.py -k compiles

# A third party's distribution: installed, held against the conformance suite, and trained with.
plugin: $(VENV)/.test
	$(INSTALL) --no-build-isolation --no-deps --editable examples/hfadapt-plugin-ia3
	$(PYTEST) -n $(JOBS) examples/hfadapt-plugin-ia3/tests; status=$$?; \
	$(PIP) uninstall --quiet --yes hfadapt-plugin-ia3; exit $$status

# The unit tests on the oldest releases that pyproject.toml allows, in an environment of their own.
oldest: $(VENV)/.demo
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet $(TORCH) pytest pytest-xdist hypothesis matplotlib
	$(VENV)-oldest/bin/python -m pip install --quiet $$($(BIN)/python tools/oldest.py)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -n $(JOBS) --dist worksteal tests/unit tests/cli

# All tests on the newest releases, in a copy of what git tracks: the C++ part is built there against that torch, and not
# over the one that is in use here. A plain "torch" may be a CUDA build of several GB: TORCH='torch==2.14.1' names another.
NEWEST = build/newest
newest: TORCH_NEWEST = $(if $(filter file,$(origin TORCH)),torch,$(TORCH))
newest:
	rm -rf $(NEWEST)
	git checkout-index --all --prefix=$(NEWEST)/
	$(MAKE) -C $(NEWEST) test TORCH='$(TORCH_NEWEST)'
	$(NEWEST)/$(VENV)/bin/python tools/tested_releases.py

# The README's generated parts: the method table, and the results of the last demos, fast and full.
readme: $(VENV)/.demo
	$(BIN)/python tools/update_readme.py $(patsubst %/results.json,%,$(wildcard runs/demo/results.json runs/demo-full/results.json))

# Built without isolation: the C++ part is compiled against the torch of this environment, not a second download of it.
$(VENV)/.demo: pyproject.toml $(wildcard setup.py csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) 'setuptools>=77' wheel ninja $(TORCH)
	$(INSTALL) --no-build-isolation --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo requirements-test.txt
	$(INSTALL) -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
