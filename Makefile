# make detect FILES="clip.mp4 photo.jpg"    check your own files
# make page   detection as a page in the browser
# make run    all steps on practice videos in practice/, up to verdicts on two of the videos
# make test   run the tests
# make test-long   run the tests marked as long, which make test leaves out
# make lint   check code and format
# make lock   update requirements.lock
# Each target first sets up .venv with install.sh, which installs only missing packages.
# For unusual file names, run the command behind make detect: .venv/bin/deepfake-detect "my clip.mp4"

export PYTHON ?= python3
PY := .venv/bin/python

# Python code that prints the paths of a fake and a real test video for 06, one per line.
define TEST_VIDEOS
import pandas; \
crops = pandas.read_csv('split_dataset/crops.csv'); \
sources = pandas.read_csv('frames/videos.csv').set_index('video_id').source; \
print(*('videos/' + sources[crops[crops.split == 'test'].groupby('label').video_id.first()]), sep='\n')
endef

.PHONY: detect page run test test-long lint lock
# FILES is one file name, or several file names quoted as in a shell.
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
	@echo "The reports on a fake and a real video of people who are not in the training set are in practice/detections/"

test:
	@sh install.sh test
	$(PY) -m pytest -m "not long"

test-long:
	@sh install.sh test
	$(PY) -m pytest -m long

lint:
	@sh install.sh test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Lock the versions and hashes of all packages, for all systems and Python 3.11 or newer. Skip releases from
# the last week: most bad releases are discovered within a week.
lock:
	@sh install.sh test
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --exclude-newer '1 week' \
		--custom-compile-command "make lock" --output-file requirements.lock \
		pyproject.toml tests/requirements.txt
