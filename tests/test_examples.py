"""The examples run, and give the same results as the project."""

import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import ROOT
from frames import make_frame

from deepfake_detect import Detector


@pytest.mark.parametrize("place", [(200, 60, 1.0), (-40, 100, 0.5)])
def test_minimal_example_matches_the_score_of_06(place: tuple, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    cv2.imwrite(str(path), make_frame(place, size=(1280, 720)))
    result = Detector(ROOT / "weights" / "deepfake-detector.onnx").check(path)
    (face,) = result.tracks[0].faces
    script = ROOT / "examples" / "onnx_minimal.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    box = map(str, (face.x, face.y, face.width, face.height))
    command = [sys.executable, str(script), str(path), *box]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(face.p_fake, abs=1e-3)
