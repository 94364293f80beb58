# Everything sets itself up: python3, make, gcc and the package registries are enough.
PYTHON ?= python3
BIN := .venv/bin
UV_INSTALL := VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet

# Where this is set, every start of Python compiles all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env bench-env docs-env demo demo-long demo-vit docs test test-fast test-browser lint bench lock clean

env: .venv/ready

# The lock holds a hash for every package; Detectron2's sdist is built against the locked torch
# (pyproject.toml). The second try is for networks whose certificates only the system knows.
.venv/ready: requirements.lock requirements-uv.lock pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements-uv.lock
	$(UV_INSTALL) --require-hashes -r requirements.lock \
		|| { echo "trying again with the certificates of the system"; \
			$(UV_INSTALL) --system-certs --require-hashes -r requirements.lock; }
	$(UV_INSTALL) --offline --no-deps --no-build-isolation -e .
	touch $@

# On top of env: what the benchmarks compare with.
bench-env: env
	$(UV_INSTALL) --no-deps --require-hashes -r requirements-bench.lock

# On top of env: what builds the pages of docs/.
docs-env: env
	$(UV_INSTALL) --no-deps --require-hashes -r requirements-docs.lock

# The site is output/docs. A broken link or a stale reference is an error.
docs: docs-env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open output/docs/index.html; $(BIN)/mkdocs serve shows the pages with a search"

demo: env
	$(BIN)/python tools/demo.py

demo-long: env
	$(BIN)/python tools/demo.py --long

demo-vit: env
	$(BIN)/python tools/demo.py --vit

# A file of tests stays on one worker; two workers, because tests start processes of their own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: env
	$(PYTEST)

# The inner loop: all but the files of tests that take long (tests/support/suite_order.py).
test-fast: env
	$(PYTEST) -m "not slow"

# Pages in a headless Chromium; without one, the tests say so and are skipped.
test-browser: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/browser

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# Each benchmark takes turns between what it compares, for a minute to a quarter of an hour; leave the machine alone.
BENCHMARKS := distributed evaluation feeding fine_tuning linear_evaluation memory pretraining_step records rehearsal scale start_up
bench: bench-env
	for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --json results/benchmarks/$$name.json || exit 1; done
	$(BIN)/python benchmarks/render.py

# After a change of the dependencies in pyproject.toml. torch and torchvision stay a pair that common GPU images have.
lock: env
	printf 'torch==2.11.0\ntorchvision==0.26.0\n' > .venv/constraints.txt
	$(BIN)/uv pip compile pyproject.toml --extra detectron2 --extra dev --universal --python-version 3.10 \
		--generate-hashes --no-annotate --no-header --constraint .venv/constraints.txt --output-file requirements.lock
	for extra in bench docs; do \
		$(BIN)/uv pip compile pyproject.toml --extra detectron2 --extra $$extra --universal --python-version 3.10 \
			--generate-hashes --no-annotate --no-header --constraint requirements.lock --output-file .venv/$$extra.lock \
			|| exit 1; done
	$(BIN)/python -c "import re, pathlib; parts = lambda f: re.split(r'(?m)^(?=\S)', pathlib.Path(f).read_text()); \
		base = set(parts('requirements.lock')); \
		[pathlib.Path(f'requirements-{extra}.lock').write_text(''.join( \
			p for p in parts(f'.venv/{extra}.lock') if p not in base)) for extra in ('bench', 'docs')]"

clean:
	rm -rf .venv output .mypy_cache .pytest_cache .ruff_cache *.egg-info
