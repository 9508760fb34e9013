"""What holds for all scripts: one page each, standing alone, copies that stay copies."""

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest
import tyro
from conftest import ROOT

SCRIPTS = sorted(ROOT.glob("0?-*.py"))
PIPELINE = [path for path in SCRIPTS if path.name[:2] in ("01", "02", "03", "04")]


def read_page(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_four_scripts_are_there() -> None:
    assert [path.name for path in PIPELINE] == [
        "01-convert-video-to-image.py",
        "02-crop-faces-with-mtcnn.py",
        "03-prepare-fake-real-dataset.py",
        "04-train-cnn.py",
    ]


def test_functions_that_stand_in_two_scripts_are_the_same() -> None:
    copies = defaultdict(dict)
    for path in SCRIPTS:
        for node in read_page(path).body:
            if isinstance(node, ast.FunctionDef) and node.name != "main":
                copies[node.name][path.name] = ast.unparse(node)
    for name, texts in copies.items():
        assert len(set(texts.values())) == 1, f"{name} differs between {', '.join(texts)}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_page_has_its_parts_in_order(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(read_page(path))
    marks = [f"\n    python {path.name}", "\nReads   ", "\nWrites  "]
    assert sorted(marks, key=docstring.index) == marks
    ruled = [match.start() for match in re.finditer("^# -{98}$", text, re.MULTILINE)]
    functions = text.index("\ndef ")
    assert len(ruled) == 2 and ruled[1] < functions
    for line in text[ruled[0] : ruled[1]].splitlines():
        if re.match("[A-Z_]+ = ", line):
            assert "  # " in line or line.endswith("("), f"a constant with no reason: {line}"
    if "\n# --- Machinery -" in text:
        assert text.index("\ndef main(") == functions
    assert "\n    except KeyboardInterrupt:\n" in text
    assert text.endswith('        sys.exit(f"{Path(__file__).name}: {error}")\n')


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: path.name)
def test_the_four_scripts_stand_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "import_module" not in text
    for other in SCRIPTS:
        imports = f"import {other.stem}", f"from {other.stem}"
        assert not any(line in text for line in imports)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_tells_every_option(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(path.stem).main
    with pytest.raises(SystemExit) as ended:
        tyro.cli(main, args=["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_ONLY:
            option = f"--{name.replace('_', '-')}"
            assert re.search(rf"\s{option}[ ,]", shown)  # a switch has a --no-option beside it
