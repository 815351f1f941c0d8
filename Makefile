# make demo: the whole recipe on the embedded data set.
# make test: the tests.   make test-slow: those that take more than ten seconds.
# make test-essential: those of the slow tests that CI always runs.
# make docs: the documentation, in docs/_build/html.
# PYTHON chooses the interpreter .venv is made from: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo test test-slow test-essential lint docs venv clean

demo: .venv/installed
	$(VENV)/python main.py --config=configs/demo.py --workdir=runs/demo

test: .venv/installed-test
	$(VENV)/python -m pytest -n 2 --dist=worksteal -m 'not slow'

test-slow: .venv/installed-test
	$(VENV)/python -m pytest -n 2 --dist=worksteal -m slow

test-essential: .venv/installed-test
	$(VENV)/python -m pytest -n 2 --dist=worksteal -m essential

lint: .venv/installed-test
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

docs: .venv/installed-docs
	$(VENV)/sphinx-build -W --keep-going -b html docs docs/_build/html

venv: .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt constraints.txt pyproject.toml | .venv/bin/python
	$(VENV)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(VENV)/pip install --quiet --constraint constraints.txt --editable '.[test,parity,onnx,dev,demo,docs]'
	touch $@

.venv/installed-docs: .venv/installed
	$(VENV)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv runs docs/_build
