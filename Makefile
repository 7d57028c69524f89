# make demo           train a heartbeat spotter, export it, stream a real pulse, measure it (QUICK=1: a rough run)
# make demo-text      the same with a small language model on Python's documentation
# make example-vad    adopt a published model, find the speech in a recording with it, and write a page
# make example-denoise  the same with a model that removes noise
# make test           lint, types, tests
# make test-all       the same with the tests that take minutes
# make fuzz           300,000 mutated files (CASES=N: so many), and hostile command lines
# make mutants        change every node and constant of some graphs: the check must notice
# make rehearse       run the commands of docs/jetson.md on emulated boards (qemu 10, mmdebstrap, a cross gcc, python3.10 to 3.12);
#                     SHORT=1: with one Python, as CI does
# make docs-run       run every command of the README and of docs/ in a fresh environment (PAGES="run.md serve.md": these)
# make soak           a million steps, past 2^24, 2^31, 2^32 and 2^53
# make triton         a real Triton server streams bundles: 1,000 sequences, a kill, a move to another server
# make test-gpu       the tests that need an NVIDIA GPU, with the TensorRT that is installed
# make format         let ruff format and mend the code
# make docs           write the parts of the docs that come from the code
# make figures        the figures that edgemem holds itself to, measured on this machine
# make evidence       train and score what is left of docs/evidence.md's table (ROW="--row window --bytes 16K --task recall")
# make evidence-costs time of a step and bytes of every row that has a result, in turns on a quiet machine
# make evidence-page  docs/evidence.md, its pictures and the file of edgemem choose, from the results
# make wheel          wheels in dist/: one for every machine, and one for each processor with the native operators
# make clean          remove what make made
#
# PYTHON is the interpreter of the environment in VENV; pip takes its own settings from its environment as ever.

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
PROMPT ?= The import statement
CASES ?= 300000
WORKERS ?= 2

# Every recipe sees the environment's programs first, as after `source .venv/bin/activate`.
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Threads of torch that wait by spinning slow a busy machine down twentyfold.
CALMLY := OMP_WAIT_POLICY=PASSIVE

ifdef QUICK
TRAIN_BEATS := --steps 60
TRAIN := --steps 80
BENCH := --quick
endif

NATIVE := runtimes/native/libedgemem_native.so

.DELETE_ON_ERROR:
.PHONY: demo demo-text demo-quick example-vad example-denoise test test-all lint types unit fuzz mutants soak rehearse docs-run triton test-gpu format docs figures evidence evidence-costs evidence-page wheel clean

demo: $(VENV)/.demo-installed
	$(CALMLY) python examples/beats.py --out $(OUT)/beats $(TRAIN_BEATS)
	edgemem bench $(OUT)/beats/bundle $(BENCH) --html $(OUT)/beats/bench.html
	@echo
	@echo "Open $(abspath $(OUT))/beats/beats.png and $(abspath $(OUT))/beats/bench.html in a browser."
	@echo "To continue by hand: source $(VENV)/bin/activate"

demo-text: $(VENV)/.demo-installed
	$(CALMLY) python examples/text.py --out $(OUT)/text $(TRAIN)
	edgemem export $(OUT)/text --out $(OUT)/bundle
	edgemem run $(OUT)/bundle --prompt "$(PROMPT)" --max-tokens 400 --temperature 0.7 --top-p 0.95 --seed 1
	edgemem bench $(OUT)/bundle $(BENCH) --html $(OUT)/bench.html
	@echo
	@echo "Open $(abspath $(OUT))/bench.html in a browser. To continue by hand: source $(VENV)/bin/activate"

example-vad example-denoise: example-%: $(VENV)/.demo-installed
	$(CALMLY) python examples/$*.py --out $(OUT)/$*
	@echo
	@echo "Open $(abspath $(OUT))/$*/$*.html in a browser. To continue by hand: source $(VENV)/bin/activate"

demo-quick:
	$(MAKE) demo QUICK=1

test: lint types unit

lint: $(VENV)/.dev-installed
	ruff check .
	ruff format --check .
	codespell

types: $(VENV)/.dev-installed
	mypy -p edgemem
	mypy examples benchmarks boards

unit: $(VENV)/.dev-installed $(NATIVE)
	$(CALMLY) OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist loadfile

test-all: lint types
	$(CALMLY) OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist loadfile -m "long or not long"

fuzz: $(VENV)/.dev-installed
	$(CALMLY) OMP_NUM_THREADS=1 python -m tests.fuzz.command_lines
	$(CALMLY) OMP_NUM_THREADS=1 python -m tests.fuzz.files --cases $(CASES)

mutants: $(VENV)/.dev-installed
	$(CALMLY) OMP_NUM_THREADS=1 python -m tests.fuzz.mutants

soak: $(VENV)/.dev-installed
	$(CALMLY) OMP_NUM_THREADS=1 python -m tests.fuzz.soak

triton: $(VENV)-triton/.installed
	PYTHONPATH=. EDGEMEM_TRITON="$$(echo $(abspath $(VENV))-triton/lib/python3*/site-packages)" \
		$(VENV)-triton/bin/python -m pytest -m "long or not long" tests/triton

# Apart from the other environment: the server's Python backend needs an older numpy.
$(VENV)-triton/.installed: tests/triton/requirements.txt
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install -q --no-deps nvidia-pytriton==0.7.0
	$(VENV)-triton/bin/python -m pip install -q -r $<
	touch $@

rehearse: $(VENV)/.dev-installed
	PYTHON="$(BIN)/python" boards/rehearse.sh

docs-run: $(VENV)/.dev-installed
	python -m tests.docs.fresh $(PAGES)

test-gpu: $(VENV)/.dev-installed
	pytest tests/gpu

format: $(VENV)/.dev-installed
	ruff check --fix .
	ruff format .

docs: $(VENV)/.dev-installed
	python -m tests.docs.memories_page

figures: $(VENV)/.demo-installed
	python benchmarks/checks.py; python benchmarks/adopted.py; python benchmarks/figures.py

evidence: $(VENV)/.dev-installed
	$(CALMLY) OMP_NUM_THREADS=1 PYTHONPATH=benchmarks python -m evidence $(or $(ROW),--workers $(WORKERS))

evidence-costs: $(VENV)/.dev-installed
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks python -m evidence.costs

evidence-page: $(VENV)/.dev-installed
	PYTHONPATH=benchmarks python -m evidence.page

$(VENV)/.demo-installed: EXTRAS = examples
$(VENV)/.dev-installed: EXTRAS = dev,examples

# The folder is installed in place: after a change to the code there is nothing to install again.
$(VENV)/.%-installed: pyproject.toml setup.py constraints.txt
	test -x "$(BIN)/python" || $(PYTHON) -m venv $(VENV)
	@rm -rf edgemem.egg-info; python -m pip uninstall --quiet --yes edgemem 2>/dev/null  # the package's name until 0.1
	python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

# Where there is no C compiler, the standard graphs run, and the tests of the operators are skipped.
$(NATIVE): $(wildcard runtimes/native/*.[ch])
	-python runtimes/native/build.py

wheel:
	EDGEMEM_NATIVE=0 $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	if command -v aarch64-linux-gnu-gcc; then \
		CC=aarch64-linux-gnu-gcc $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .; fi

clean:
	rm -rf $(NATIVE) $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find edgemem export runtimes examples benchmarks tests -name __pycache__ -type d -exec rm -rf {} +
