"""The structure of the project: a package with imports in one direction, and scripts on top."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro
from conftest import ROOT

from deepfake_detect import cli

SCRIPTS = sorted(ROOT.glob("0?-*.py"))
TOOLS = [path for path in ROOT.glob("[bw]*/*.py") if "__main__" in path.read_text("utf-8")]
PACKAGE = sorted((ROOT / "deepfake_detect").rglob("*.py"))
each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)

# Imports point to the left, or stay inside a group.
GROUPS = {
    "plumbing": "start shipped cli files resume pool cluster",
    "data": "datasets identities bystanders splits practice video inputs faces mtcnn cropping crops"
    " augmentation provenance display kinds sampling packets canvas credentials_reader",
    "model": "decision first_layers model model_file scoring checkpoint keras_setup onnx_export"
    " detection_model explanation batches",
    "detection": "errors result tracks verdict detection_settings search source scored_frames"
    " detector",
    "results": "measures model_card plots report marked_video web jobs app",
}
LEVELS = {name: level for level, names in enumerate(GROUPS.values()) for name in names.split()}
# These know nothing of the model but its decision, which is data.
LEVELS["decision"] = LEVELS["datasets"]


def list_imports(path: Path) -> Iterator[str]:
    """Yield the names of the package's files that a file imports when it is loaded."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "deepfake_detect":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "deepfake_detect."
        ):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("deepfake_detect."):
                    yield alias.name.split(".")[1]


def test_there_are_nine_scripts() -> None:
    assert [path.name[:2] for path in SCRIPTS] == [f"{number:02d}" for number in range(9)]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_package_imports_no_script(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'import_module\(\s*"0\d-', text)


def test_every_file_belongs_to_a_group() -> None:
    assert {path.stem for path in PACKAGE} - {"__init__", "__main__"} == set(LEVELS) - {"web"}


def test_package_imports_point_one_way() -> None:
    upward = [
        f"{path.stem} -> {name}"
        for path in PACKAGE
        for name in list_imports(path)
        if path.stem in LEVELS and name in LEVELS and LEVELS[name] > LEVELS[path.stem]
    ]
    assert not upward


def test_package_imports_have_no_circle() -> None:
    waiting = {path.stem: set(list_imports(path)) for path in PACKAGE}
    while ready := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
    assert not waiting


@each_script
def test_scripts_do_not_import_each_other(path: Path) -> None:
    assert not re.search(r'import_module\(\s*"0\d-', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*SCRIPTS, *TOOLS], ids=lambda path: path.name)
def test_signals_are_handled_before_anything_slow_is_loaded(path: Path) -> None:
    before, call, _ = path.read_text(encoding="utf-8").partition("start.prepare(__name__)")
    assert call and not re.search("^(import|from) (cv2|numpy|pandas|keras|tyro)", before, re.M)


@each_script
def test_every_setting_has_a_comment(path: Path) -> None:
    """The comment is also the option's help."""
    lines = path.read_text(encoding="utf-8").splitlines()
    classes = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.ClassDef)]
    fields = [
        node
        for settings in classes
        if settings.name == "Settings"
        for node in settings.body
        if isinstance(node, ast.AnnAssign)
    ]
    assert fields
    assert not [node.target.id for node in fields if "  # " not in lines[node.end_lineno - 1]]


@each_script
def test_help_lists_every_setting(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module(path.stem)
    with pytest.raises(SystemExit) as end:
        cli.parse(script.main, ["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name, _, marks in cli.list_settings(script.Settings()):
        assert tyro.conf.Positional in marks or f"--{name.replace('_', '-')}" in text
    assert str(ROOT) not in text
