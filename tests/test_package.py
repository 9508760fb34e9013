"""Tests of the installed project: wheel, environment, uv, and the steps of the Dockerfile.

PYTHONS="python3.12 python3.13" also runs the tests of the wheel on these versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
import skimage.data
from conftest import ROOT
from PIL import Image

import deepfake_detect
from deepfake_detect.practice import write_examples

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [sys.executable, *os.environ.get("PYTHONS", "").split()]
# Prefix for a process without a network, if the system allows it.
OFFLINE = ["unshare", "--net"] if sys.platform == "linux" and os.getuid() == 0 else []
LARGEST_ENVIRONMENT = 600  # MB; the image may have 1 GB, and its base has 130 MB


def call(command: list[object], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without our PYTHON variables, but with programs such as uv in its PATH."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the files of a fresh clone to a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("package") / "a clone"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build_wheel(folder: Path) -> Path:
    built = call([sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist"], folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    return build_wheel(clone)


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda path: Path(path).name)
def installed(
    request: pytest.FixtureRequest,
    clone: Path,
    wheel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the bin folder of an environment made with the steps of the Dockerfile."""
    folder = tmp_path_factory.mktemp("environment") / "opt"
    script = ["sh", clone / "docker/install.sh", folder, wheel]
    made = call(script, clone, PYTHON=request.param)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder / "bin"


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "a face.jpg"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def test_wheel_contains_all_files_for_detection(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("dist-info/METADATA"))
        text = archive.read(metadata).decode()
    for name in (
        "06-detect-deepfake.py",
        "08-web-page.py",
        "credentials_reader.py",
        "templates/report.html",
        "weights/deepfake-detector.onnx",
        "py.typed",
    ):
        assert f"deepfake_detect/{name}" in names
    assert not [name for name in names if not name.startswith("deepfake_detect")]
    assert f"\nVersion: {deepfake_detect.__version__}\n" in text
    assert wheel.stat().st_size < 30e6


@pytest.mark.long
def test_dockerignore_keeps_all_files_of_the_wheel(
    clone: Path, wheel: Path, tmp_path: Path
) -> None:
    """The files that .dockerignore keeps give the same wheel."""
    lines = (clone / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    context = tmp_path / "context"
    for path in sorted(clone.rglob("*")):
        name = path.relative_to(clone)
        if path.is_file() and any(one.match(p) for p in kept for one in (name, *name.parents)):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, context / name)
    assert (context / "docker/install.sh").is_file()
    assert (context / "requirements.lock").is_file()
    with zipfile.ZipFile(build_wheel(context)) as theirs, zipfile.ZipFile(wheel) as ours:
        assert sorted(theirs.namelist()) == sorted(ours.namelist())


@pytest.mark.long
def test_installed_package_checks_files_offline(installed: Path, face: Path) -> None:
    fake = write_examples(face.parent)["fake"]
    command = [*OFFLINE, installed / "deepfake-detect", face, fake, "--json"]
    checked = call(command, face.parent)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    results = json.loads(checked.stdout)
    assert [result["verdict"] for result in results] == ["likely real", "likely fake"]
    for result in results:
        assert result["provenance"]["credentials"]["status"] == "none"
    for name in ("a face.html", f"{fake.stem}.html", f"{fake.stem}-marked.mp4"):
        assert (face.parent / "detections" / name).is_file()


def test_installed_package_is_small_and_without_training(installed: Path) -> None:
    packages = (installed.parent / "lib").glob("python3.*/site-packages/*.dist-info")
    names = {package.name.partition("-")[0].lower() for package in packages}
    assert {"numpy", "starlette", "c2pa_python"} <= names
    assert not names & {"tensorflow", "keras", "scipy", "scikit_learn", "matplotlib"}
    size = sum(path.stat().st_size for path in installed.parent.rglob("*") if path.is_file())
    assert size < LARGEST_ENVIRONMENT * 1e6


def test_installed_api(installed: Path, face: Path) -> None:
    code = (
        "import sys; from deepfake_detect import Detector, __version__;"
        "result = Detector().check(sys.argv[1]); print(__version__, result.verdict)"
    )
    printed = call([*OFFLINE, installed / "python", "-c", code, face], face.parent)
    assert printed.stdout.split(maxsplit=1) == [deepfake_detect.__version__, "likely real\n"]


def test_installed_page_starts(installed: Path, tmp_path: Path) -> None:
    """The page answers the health check of the Dockerfile."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [installed / "deepfake-detect-page", "--port", str(port), "--no-open-browser"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with subprocess.Popen(command, cwd=tmp_path, env=kept, stdout=subprocess.DEVNULL) as page:
        try:
            for _ in range(6000):
                with contextlib.suppress(OSError):
                    address = f"http://127.0.0.1:{port}/health"
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        assert json.load(answer)["status"] == "ok"
                    break
                assert page.poll() is None
                time.sleep(0.1)
            else:
                pytest.fail("the page does not answer")
        finally:
            page.terminate()


@pytest.mark.long
def test_uv_runs_the_script_of_a_clone(clone: Path, face: Path) -> None:
    command = ["uv", "run", "--quiet", "--python", sys.executable, "--project", clone]
    checked = call([*command, clone / "06-detect-deepfake.py", face, "--json"], face.parent)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads(checked.stdout)[0]["verdict"] == "likely real"


def write_python(path: Path, version: str) -> Path:
    """Write a program that pretends to be an old Python."""
    path.write_text(f'#!/bin/sh\ntest "$1" = -V && echo "Python {version}"\n')
    path.chmod(0o755)
    return path


def test_wrong_python_is_reported_and_leaves_no_files(clone: Path, tmp_path: Path) -> None:
    old, venv = write_python(tmp_path / "python3.10", "3.10.13"), tmp_path / "venv"
    refused = call(["sh", "install.sh", "detect"], clone, PYTHON=str(old), VENV=str(venv))
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "3.10.13" in refused.stderr
    assert "PYTHON=" in refused.stderr
    assert not venv.exists()
    gone = call(["sh", "install.sh", "detect"], clone, PYTHON="no-python", VENV=str(venv))
    assert (gone.returncode, len(gone.stderr.splitlines())) == (1, 1)


@pytest.mark.long
def test_environment_of_an_old_python_is_replaced(clone: Path, tmp_path: Path) -> None:
    venv, recorded = tmp_path / "venv", tmp_path / "recorded"
    (venv / "bin").mkdir(parents=True)
    write_python(venv / "bin/python", "3.10.13")
    # Replace pip and uv, which take long, with programs that record their arguments.
    programs = clone / "pip.py", clone / "uv.py"
    for program in programs:
        program.write_text(
            "import sys\n"
            f"with open({str(recorded)!r}, 'a') as file: print({program.stem!r}, *sys.argv[1:],"
            " file=file)\n"
        )

    def install(what: str, code: int = 0) -> None:
        options = {"PYTHON": sys.executable, "VENV": str(venv), "PYTHONPATH": str(clone)}
        made = call(["sh", "install.sh", what], clone, **options)
        assert made.returncode == code, made.stderr
        assert code == len(made.stderr.splitlines()), made.stderr
        assert (venv / f"installed-{what}").exists() == (code == 0)

    for what in ("detect", "detect", "page"):
        install(what)
    programs[1].write_text("raise SystemExit(1)\n")
    (venv / "installed-page").unlink()
    install("page")
    programs[0].write_text("import sys\nsys.exit('install' in sys.argv)\n")
    for what in ("train", "test"):
        install(what, code=1)
    for program in programs:
        program.unlink()
    installs = [line for line in recorded.read_text().splitlines() if "--editable" in line]
    used = [(line.split()[0], "page" in line) for line in installs]
    assert used == [("uv", False), ("uv", True), ("pip", True)]  # pip where uv fails
    assert call([venv / "bin/python", "-c", "pass"], tmp_path).returncode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("files", "names"),
    [
        ("my clip.mp4", ["my clip.mp4"]),  # this file exists
        ("it's $a&b (1).mp4", ["it's $a&b (1).mp4"]),
        ("a.mp4 b.mp4", ["a.mp4", "b.mp4"]),
        ("'my clip.mp4' b.mp4", ["my clip.mp4", "b.mp4"]),
    ],
)
def test_make_detect_accepts_names_with_spaces(
    files: str, names: list[str], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "install.sh").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')  # prints its arguments
    python.chmod(0o755)
    for name in names:
        (tmp_path / name).touch()
    printed = call(["make", "--silent", "detect", f"FILES={files}"], tmp_path)
    assert printed.stdout.splitlines() == names


def test_requirements_repeat_the_project(clone: Path) -> None:
    def read(name: str) -> list[str]:
        lines = (clone / name).read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and line[0] not in "#-"]

    assert read("requirements-detect.txt") == PROJECT["dependencies"]
    assert read("requirements.txt") == PROJECT["optional-dependencies"]["train"]


def test_lock_is_complete_and_matches_the_ranges() -> None:
    """Each package has a version and hashes, and the file does not contain URLs."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\w)", text)[1:]
    assert len(blocks) > 100
    for block in blocks:
        assert re.match(r"[\w.-]+==[\w.+!]+ ", block), block
        assert "--hash=sha256:" in block, block
    assert "://" not in text
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(name for extra in extras.values() for name in extra)]
    locked = {re.match(r"[\w.-]+", block)[0].lower().replace("_", "-") for block in blocks}
    assert {re.match(r"[\w.-]+", name)[0].lower() for name in asked} <= locked


def test_version_is_the_same_everywhere() -> None:
    version = deepfake_detect.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    assert f"\n## {version}, " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    printed = call([sys.executable, ROOT / "01-convert-video-to-image.py", "--version"], ROOT)
    assert printed.stdout.strip().endswith(f" {version}")
