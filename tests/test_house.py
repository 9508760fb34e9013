"""What holds for all scripts: one page each that reads down, standing alone, in one dialect."""

import ast
import importlib
import inspect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro
from conftest import ROOT

# Lines of each script. A number may go down; who needs more says in the same commit what left the
# page, and that it could not be a library's or a table's.
BUDGETS = {
    "00-make-sample-videos.py": 460,
    "01-convert-video-to-image.py": 640,
    "02-crop-faces-with-mtcnn.py": 540,
    "03-prepare-fake-real-dataset.py": 520,
    "04-train-cnn.py": 640,
    "05-evaluate-model.py": 420,
    "06-detect-deepfake.py": 563,
    "07-export-model.py": 230,
    "08-web-page.py": 330,
}
LONGEST_PART = 450  # lines of a file in parts/
LONGEST_COPY = 6  # lines of a body that stands in two scripts
RULER = "# " + 98 * "-"
MACHINERY = "# --- Machinery ".ljust(100, "-")

SCRIPTS = sorted(ROOT.glob("0?-*.py"))
PARTS = sorted((ROOT / "parts").glob("*.py"))
PIPELINE = [path for path in SCRIPTS if path.name[:2] in ("01", "02", "03", "04")]
each_page = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
each_file = pytest.mark.parametrize("path", SCRIPTS + PARTS, ids=lambda path: path.name)

Definition = ast.FunctionDef | ast.ClassDef


def read_page(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def list_definitions(page: ast.Module) -> dict[str, Definition]:
    return {node.name: node for node in page.body if isinstance(node, Definition)}


def read_panel(path: Path) -> dict[str, list[str]]:
    """The constants between the two rulers, with the lines of each."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first, last = (number for number, line in enumerate(lines, 1) if line == RULER)
    return {
        node.targets[0].id: lines[node.lineno - 1 : node.end_lineno]
        for node in read_page(path).body
        if isinstance(node, ast.Assign) and first < node.lineno < last
    }


# --- The order of a page --------------------------------------------------------------------------


def test_the_four_scripts_are_there() -> None:
    assert [path.name for path in PIPELINE] == [
        "01-convert-video-to-image.py",
        "02-crop-faces-with-mtcnn.py",
        "03-prepare-fake-real-dataset.py",
        "04-train-cnn.py",
    ]


@each_page
def test_a_page_keeps_to_its_budget(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= BUDGETS[path.name]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_a_part_is_of_one_subject(path: Path) -> None:
    """It says which scripts use it, and is no longer than a page."""
    docstring = ast.get_docstring(read_page(path))
    assert re.search(r"\bscripts?\b|\b0[0-8]-[a-z-]+\.py|\b0[0-8]\b.* uses? (it|this)\b", docstring)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_PART


@each_page
def test_a_page_has_its_parts_in_order(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(read_page(path))
    marks = [f"\n    python {path.name}", "\nReads   ", "\nWrites  "]
    assert sorted(marks, key=docstring.index) == marks
    ruled = [match.start() for match in re.finditer(f"^{RULER}$", text, re.MULTILINE)]
    definitions = [match.start() for match in re.finditer("^(@|def |class )", text, re.MULTILINE)]
    assert len(ruled) == 2 and text.index("\nimport ") < ruled[0] and ruled[1] < definitions[0]
    assert next(iter(list_definitions(read_page(path)))) == "main"
    assert text.index(f"\n{MACHINERY}\n") < text.index('\nif __name__ == "__main__":\n')
    assert text.count(MACHINERY) == 1


class Names(ast.NodeVisitor):
    """All names that run when a definition does: not those of its annotations and decorators."""

    def __init__(self) -> None:
        self.found = []

    def visit_Name(self, node: ast.Name) -> None:
        self.found.append((node.lineno, node.col_offset, node.id))

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *filter(None, node.kw_defaults)):
            self.visit(default)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)


def meet_definitions(page: ast.Module) -> list[str]:
    """The definitions in the order in which main meets them, each before what it calls."""
    nodes = list_definitions(page)
    constants = {
        node.targets[0].id: node.value
        for node in page.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    met = []

    def meet(name: str) -> None:
        met.append(name)
        names = Names()
        names.visit((nodes | constants)[name])
        for _, _, used in sorted(names.found):
            if used in nodes | constants and used not in met:
                meet(used)

    meet("main")
    return [name for name in met if name in nodes]


def count_jumps_up(path: Path) -> list[str]:
    """Where somebody who follows main has to go back up the page, above the machinery."""
    text = path.read_text(encoding="utf-8")
    ruler = text[: text.index(MACHINERY)].count("\n") + 1
    lines = {name: node.lineno for name, node in list_definitions(ast.parse(text)).items()}
    walk = [name for name in meet_definitions(ast.parse(text)) if lines[name] < ruler]
    steps = itertools.pairwise(walk)
    return [f"{one} to {other}" for one, other in steps if lines[other] < lines[one]]


@each_page
def test_a_walk_from_main_only_goes_down(path: Path) -> None:
    assert count_jumps_up(path) == []


def test_the_walk_sees_a_jump_up(tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text(
        f"A = {{'a': last}}\ndef main(): return [second(), A]\ndef last(): safe()\n"
        f"def second(x: last): pass\n{MACHINERY}\ndef safe(): second()\n"
    )
    assert count_jumps_up(page) == ["second to last"]


# --- The constants --------------------------------------------------------------------------------


@each_page
def test_every_constant_has_its_group_and_its_reason(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    panel = text.split(RULER)[1].strip().splitlines()
    assert re.fullmatch("# [a-z]+", panel[0]), "the first constants have no group"
    assert all(re.fullmatch("# [a-z]+", line) for line in panel if line.startswith("#"))
    for name, lines in read_panel(path).items():
        assert any("  # " in line for line in lines), f"{name} has no reason"


@each_page
def test_every_constant_can_be_given_at_the_shell(path: Path) -> None:
    arguments = list_definitions(read_page(path))["main"].args
    named = [*arguments.posonlyargs, *arguments.args]
    with_default = named[len(named) - len(arguments.defaults) :] + arguments.kwonlyargs
    defaults = [*arguments.defaults, *arguments.kw_defaults]
    given = {
        parameter.arg: ast.unparse(default)
        for parameter, default in zip(with_default, defaults, strict=True)
    }
    assert given == {name.lower(): name for name in read_panel(path)}


@each_page
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


# --- Alone, and alike -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: path.name)
def test_the_four_scripts_stand_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "import_module" not in text
    for other in SCRIPTS:
        imports = f"import {other.stem}", f"from {other.stem}"
        assert not any(line in text for line in imports)


def test_what_stands_in_two_scripts_is_the_same_and_short() -> None:
    copies = defaultdict(dict)
    for path in SCRIPTS + PARTS:
        for name, node in list_definitions(read_page(path)).items():
            if name != "main":
                copies[name][path.name] = node
    for name, nodes in copies.items():
        texts = {ast.unparse(node) for node in nodes.values()}
        assert len(texts) == 1, f"{name} differs between {', '.join(nodes)}"
        for node in nodes.values():
            if len(nodes) > 1:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1
                assert lines <= LONGEST_COPY, (
                    f"{name} is in {', '.join(nodes)}: {lines} lines are copied"
                )


def test_all_scripts_end_alike() -> None:
    """The guards are one text, but that scripts without a lock leave its clause out."""
    guards, locks = {}, {}
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        guard = text[text.index('\nif __name__ == "__main__":\n') :]
        clause = re.search(r"    except filelock\.Timeout.*?(?=    except )", guard, re.DOTALL)
        guards[path.name] = guard.replace(clause[0], "") if clause else guard
        if clause:
            locks[path.name] = clause[0]
    for texts in (guards, locks):
        assert len(set(texts.values())) <= 1, f"not the same: {', '.join(texts)}"
    assert '{"SIGTERM", "SIGHUP"}' in guards["03-prepare-fake-real-dataset.py"]


# --- The docstrings -------------------------------------------------------------------------------


def list_docstrings(page: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(page):
        if isinstance(node, Definition) and (docstring := ast.get_docstring(node)):
            yield node.name, docstring


@each_file
def test_docstrings_have_one_form(path: Path) -> None:
    for name, docstring in list_docstrings(read_page(path)):
        first, *rest = docstring.splitlines()
        assert first.endswith("."), f"{name}: the first line is no sentence"
        assert not rest or rest[0] == "", f"{name}: the first line does not stand alone"
        for block in ("Args", "Returns", "Raises"):
            assert not re.search(f"{block}: +\\S", docstring), f"{name}: {block} is no block"
        for line in re.findall(r"^    [a-z_]+: .*", docstring, re.MULTILINE):
            assert not line.endswith("."), f"{name}: {line.strip()}"


@each_page
def test_every_parameter_of_main_is_explained(path: Path) -> None:
    main = list_definitions(read_page(path))["main"]
    explained = re.search(r"\nArgs:\n((?:    .*\n)+)", ast.get_docstring(main) + "\n")[1]
    names = [
        argument.arg
        for argument in (*main.args.posonlyargs, *main.args.args, *main.args.kwonlyargs)
    ]
    assert re.findall(r"^    ([a-z_0-9]+): ", explained, re.MULTILINE) == names
