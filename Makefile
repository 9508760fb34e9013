# make run    every step on practice videos, from nothing to a verdict on two of them
# make detect FILES="clip.mp4 photo.jpg"    a verdict on your own files
# make page   the detection as a page in the browser
# make test   the tests
# Each sets up .venv first, and only once: the stamps below are older than nothing they depend on.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# Prints the path of one fake and of one real video of the test part, for 06.
define TEST_VIDEOS
import pandas; \
crops = pandas.read_csv('split_dataset/crops.csv'); \
sources = pandas.read_csv('frames/videos.csv').set_index('video_id').source; \
print(*('videos/' + sources[crops[crops.split == 'test'].groupby('label').video_id.first()]))
endef

.PHONY: run detect page test lint
run: $(VENV)/installed
	$(PY) 00-make-sample-videos.py
	$(PY) 01-convert-video-to-image.py --frames-per-video 20
	$(PY) 02-crop-faces-with-mtcnn.py
	$(PY) 03-prepare-fake-real-dataset.py
	$(PY) 04-train-cnn.py --epochs 3
	$(PY) 05-evaluate-model.py
	$(PY) 06-detect-deepfake.py $$($(PY) -c "$(TEST_VIDEOS)")
	@echo "The verdicts on a fake and a real video of people that training did not see: look into detections/"

detect: $(VENV)/installed
	@test -n "$(FILES)" || { echo 'Name your files: make detect FILES="clip.mp4 photo.jpg"'; exit 1; }
	$(PY) 06-detect-deepfake.py $(FILES)

page: $(VENV)/installed-for-page
	$(PY) 08-web-page.py

test: $(VENV)/installed-for-tests
	$(PY) -m pytest

lint: $(VENV)/installed-for-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --requirement requirements.txt
	touch $@

$(VENV)/installed-for-page: requirements-page.txt $(VENV)/installed
	$(PY) -m pip install --disable-pip-version-check --requirement requirements-page.txt
	touch $@

$(VENV)/installed-for-tests: tests/requirements.txt $(VENV)/installed-for-page
	$(PY) -m pip install --disable-pip-version-check --requirement tests/requirements.txt
	touch $@
