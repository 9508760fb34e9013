# make detect FILES="clip.mp4 photo.jpg"    a verdict on your own files
# make page   the detection as a page in the browser
# make run    every step on practice videos, in practice/: from nothing to a verdict on two of them
# make test   the tests
# Each sets up .venv first with install.sh, and installs only what is missing there.
# The command behind make detect takes every name: .venv/bin/deepfake-detect "my clip.mp4"

export PYTHON ?= python3
PY := .venv/bin/python

# Prints the path of one fake and of one real video of the test part, a line each, for 06.
define TEST_VIDEOS
import pandas; \
crops = pandas.read_csv('split_dataset/crops.csv'); \
sources = pandas.read_csv('frames/videos.csv').set_index('video_id').source; \
print(*('videos/' + sources[crops[crops.split == 'test'].groupby('label').video_id.first()]), sep='\n')
endef

.PHONY: detect page run test lint lock
# FILES as it was typed: the name of one file, or several names, quoted as in a shell.
detect: export NAMES = $(value FILES)
detect:
	@test -n "$$NAMES" || { echo 'Name your files: make detect FILES="clip.mp4 photo.jpg"'; exit 1; }
	@sh install.sh detect
	@if test -e "$$NAMES"; then set -- "$$NAMES"; else eval "set -- $$NAMES"; fi; \
		$(PY) 06-detect-deepfake.py "$$@"

page:
	@sh install.sh page
	$(PY) 08-web-page.py

run:
	@sh install.sh train
	mkdir -p practice
	cd practice && ../$(PY) ../00-make-sample-videos.py --videos-dir videos
	cd practice && ../$(PY) ../01-convert-video-to-image.py --frames-per-video 20
	cd practice && ../$(PY) ../02-crop-faces-with-mtcnn.py
	cd practice && ../$(PY) ../03-prepare-fake-real-dataset.py
	cd practice && ../$(PY) ../04-train-cnn.py --epochs 3
	cd practice && ../$(PY) ../05-evaluate-model.py
	cd practice && ../$(PY) -c "$(TEST_VIDEOS)" | tr '\n' '\0' | xargs -0 ../$(PY) ../06-detect-deepfake.py \
		--model model/best_model.onnx
	@echo "The verdicts on a fake and a real video of people that training did not see: look into practice/detections/"

test:
	@sh install.sh test
	$(PY) -m pytest

lint:
	@sh install.sh test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# The tested versions of all packages with their hashes, for every system and Python from 3.11 on. What is
# not a week old is not taken: by then a bad release is mostly found out.
lock:
	@sh install.sh test
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --exclude-newer '1 week' \
		--custom-compile-command "make lock" --output-file requirements.lock \
		pyproject.toml tests/requirements.txt
