# Everything sets itself up: python3, make, gcc and the package registries are enough.
PYTHON ?= python3
BIN := .venv/bin
UV_INSTALL := VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet

.PHONY: env demo demo-long test lint lock clean

env: .venv/ready

# The lock holds a hash for every package; Detectron2's sdist is built against the locked torch
# (pyproject.toml). The second try is for networks whose certificates only the system knows.
.venv/ready: requirements.lock requirements-uv.lock pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements-uv.lock
	$(UV_INSTALL) --require-hashes -r requirements.lock \
		|| $(UV_INSTALL) --system-certs --require-hashes -r requirements.lock
	$(UV_INSTALL) --offline --no-deps --no-build-isolation -e .
	touch $@

demo: env
	$(BIN)/python tools/demo.py

demo-long: env
	$(BIN)/python tools/demo.py --long

# A file of tests stays on one worker; two workers, because tests start processes of their own.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# After a change of the dependencies in pyproject.toml. torch and torchvision stay a pair that common GPU images have.
lock: env
	printf 'torch==2.11.0\ntorchvision==0.26.0\n' > .venv/constraints.txt
	$(BIN)/uv pip compile pyproject.toml --extra detectron2 --extra dev --universal --python-version 3.10 \
		--generate-hashes --no-annotate --no-header --constraint .venv/constraints.txt --output-file requirements.lock

clean:
	rm -rf .venv output .pytest_cache .ruff_cache *.egg-info
