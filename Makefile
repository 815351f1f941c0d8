# make demo: the whole recipe on the embedded data set.
# make test: the tests.   make test-slow: those that take more than ten seconds.
# make test-essential: those of the slow tests that CI always runs.
# make test-versions: a short set of tests on the lowest versions of the libraries that
# requirements.txt allows, and on the newest.
# make test-aot: the tests that compile for a TPU, which need no TPU.
# make docs: the documentation, in docs/_build/html.
# PYTHON chooses the interpreter .venv is made from: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo test test-slow test-essential test-versions test-lowest test-newest test-aot lint docs venv clean

demo: .venv/installed
	$(VENV)/python main.py --config=configs/demo.py --workdir=runs/demo
	@echo
	@echo "Open runs/demo/report.html in a browser. Then train on your own images, one folder per class:"
	@echo "$(VENV)/python main.py --config=configs/image_folder.py:cpu --config.data.dir=FOLDER --workdir=runs/mine"

test: .venv/installed-test
	$(VENV)/python -m pytest -n 2 --dist=worksteal -m 'not slow'

test-slow: .venv/installed-test
	$(VENV)/python -m pytest -n 2 --dist=worksteal -m slow

test-essential: .venv/installed-test
	$(VENV)/python -m pytest -n 2 --dist=worksteal -m essential

# What an upgrade of a library breaks first: programs, arrays, checkpoints, images, files, whole runs.
VERSIONS := tests/test_versions.py tests/test_import.py tests/training/test_loop.py \
  tests/core/test_preemption.py tests/evaluation/test_predictions.py \
  tests/evaluation/test_metrics.py tests/evaluation/test_scores.py \
  tests/data/test_pipeline.py tests/data/test_dicom.py tests/models/test_models.py

test-versions: test-lowest test-newest

# uv reads the lowest versions off requirements.txt itself; what those need comes as new as it may.
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet uv
	.venv-$*/bin/uv pip install --quiet --upgrade --python .venv-$*/bin/python \
	  --resolution $(RESOLUTION) --editable '.[dicom,demo]'
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python \
	  pytest pytest-xdist hypothesis
	.venv-$*/bin/uv pip list --python .venv-$*/bin/python
	.venv-$*/bin/python -m pytest -n 2 --dist=worksteal -m 'versions or not slow' $(VERSIONS)

test-aot:
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/pip install --quiet --constraint constraints.txt --editable '.[aot]'
	.venv-aot/bin/pip install --quiet pytest hypothesis
	.venv-aot/bin/python -m pytest tests/test_aot.py

lint: .venv/installed-test
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports

docs: .venv/installed-docs
	$(VENV)/sphinx-build -W --keep-going -b html docs docs/_build/html

venv: .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt constraints.txt pyproject.toml setup.py | .venv/bin/python
	$(VENV)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(VENV)/pip install --quiet --constraint constraints.txt --editable '.[test,parity,onnx,dev,demo,docs]'
	touch $@

.venv/installed-docs: .venv/installed
	$(VENV)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-aot runs docs/_build
