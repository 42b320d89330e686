# make demo         set up and rewrite the bundled model
# make test         set up and run the tests
# make lint         ruff and mypy
# make test-export  set up the export environment (torch, timm: about 6 GB) and run its tests
# make test-slow    the tests that take longer than a default run should
# make lock         pin the environments anew

PYTHON ?= python3
VENV := .venv
EXPORT_VENV := .venv-export
SOURCES := pyproject.toml models/zoo.toml $(shell find onnxquant passes -name '*.py' -o -name '*.toml' -o -path '*/report/*')

DEMO := models/demo
DEMO_MODEL := $(DEMO)/mobilevit_xxs_digits.onnx

.PHONY: demo test test-slow test-export export-env lint lock clean

demo: $(VENV)/.onnxquant
	@mkdir -p build
	$(VENV)/bin/onnxquant evaluate $(DEMO_MODEL) --data $(DEMO)/digits.npz
	$(VENV)/bin/onnxquant rewrite $(DEMO_MODEL) --calib $(DEMO)/digits_train.npz -o build/mobilevit_xxs_digits.q.onnx
	$(VENV)/bin/onnxquant evaluate build/mobilevit_xxs_digits.q.onnx --data $(DEMO)/digits.npz

# Two workers on two cores: torch and BLAS are not to start more threads.
test: $(VENV)/.dev $(VENV)/.onnxquant
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 -m "not slow" --ignore tests/export

test-slow: $(VENV)/.dev $(VENV)/.onnxquant
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 -m slow --ignore tests/export

# mypy is run from elsewhere: it reads the installed package, where passes/ is onnxquant.passes.
lint: $(VENV)/.dev $(VENV)/.onnxquant
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p onnxquant

export-env: $(EXPORT_VENV)/.onnxquant

test-export: $(EXPORT_VENV)/.onnxquant
	OMP_NUM_THREADS=1 $(EXPORT_VENV)/bin/pytest -n 2 -m export tests/export

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.dev: requirements/dev.lock requirements/search.txt | $(VENV)/.venv
	$(VENV)/bin/pip install -q -r requirements/dev.lock -r requirements/search.txt
	touch $@

$(VENV)/.onnxquant: $(SOURCES) requirements/dev.lock | $(VENV)/.venv
	$(VENV)/bin/pip install -q -c requirements/dev.lock .
	$(VENV)/bin/pip install -q --no-deps --force-reinstall .
	touch $@

$(EXPORT_VENV)/.venv:
	$(PYTHON) -m venv $(EXPORT_VENV)
	touch $@

$(EXPORT_VENV)/.dependencies: requirements/export.lock | $(EXPORT_VENV)/.venv
	$(EXPORT_VENV)/bin/pip install -q -r requirements/export.lock
	touch $@

$(EXPORT_VENV)/.onnxquant: $(SOURCES) $(EXPORT_VENV)/.dependencies
	$(EXPORT_VENV)/bin/pip install -q --no-deps --force-reinstall .
	touch $@

lock:
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q uv
	build/lock/bin/uv pip compile -q --universal --python-version 3.10 --extra dev --no-annotate \
	    --custom-compile-command "make lock" pyproject.toml -o requirements/dev.lock

clean:
	rm -rf build $(VENV) *.egg-info
