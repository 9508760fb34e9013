"""Make the example report for the README: a practice fake, checked by the included model.

    .venv/bin/python img/make-example-report.py

Writes  docs/example-report.html   one page that any browser opens offline
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deepfake_detect import Detector, practice
from deepfake_detect.files import write_whole

MODEL = ROOT / "weights" / "deepfake-detector.onnx"
REPORT = ROOT / "docs" / "example-report.html"


def main() -> None:
    """Make the two examples of the page, check the fake one, and write its report."""
    detector = Detector(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        fake = practice.write_examples(Path(folder))["fake"]
        result = detector.check(fake)
        write_whole(REPORT, lambda path: detector.write_report(result, path))
    print(f"{REPORT}: {result.verdict}, score {result.score}")


if __name__ == "__main__":
    main()
