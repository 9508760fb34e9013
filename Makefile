# make run    every step on practice videos, from nothing to a trained model
# make test   the tests
# Each sets up .venv first, and only once: the stamps below are older than nothing they depend on.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: run test lint
run: $(VENV)/installed
	$(PY) 00-make-sample-videos.py
	$(PY) 01-convert-video-to-image.py --frames-per-video 20
	$(PY) 02-crop-faces-with-mtcnn.py
	$(PY) 03-prepare-fake-real-dataset.py
	$(PY) 04-train-cnn.py --start auto --epochs 3 --learning-rate 4e-4

test: $(VENV)/installed-for-tests
	$(PY) -m pytest

lint: $(VENV)/installed-for-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --requirement requirements.txt
	touch $@

$(VENV)/installed-for-tests: tests/requirements.txt $(VENV)/installed
	$(PY) -m pip install --disable-pip-version-check --requirement tests/requirements.txt
	touch $@
