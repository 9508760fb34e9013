"""What README.md and benchmarks/README.md promise is there: scripts, options, commands, files."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [path for path in (ROOT / "README.md", ROOT / "benchmarks/README.md") if path.exists()]
SCRIPTS = sorted(ROOT.glob("0?-*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def read_codes(page: Path) -> list[str]:
    """All that is set as code, a line each: the lines of blocks, and what stands between `."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return [line for block in blocks for line in block.splitlines()] + spans


@cache
def read_options(script: Path) -> set[str]:
    """The options of a script: the fields of its settings, or the parameters of its main."""
    definitions = ast.parse(script.read_text(encoding="utf-8")).body
    classes = [node for node in definitions if isinstance(node, ast.ClassDef)]
    fields = [node for one in classes for node in one.body if isinstance(node, ast.AnnAssign)]
    named = [(field.target.id, field.annotation) for field in fields]
    for main in (node for node in definitions if getattr(node, "name", "") == "main"):
        parameters = [*main.args.args, *main.args.kwonlyargs]
        named += [(parameter.arg, parameter.annotation) for parameter in parameters]
    options = {"--help"}
    for name, annotation in named:
        option = name.replace("_", "-")
        options |= {f"--{option}"}
        options |= {f"--no-{option}"} if "bool" in ast.unparse(annotation) else set()
    return options


def find_script(name: str, page: Path) -> Path:
    """The file that a page means by a name: a path from the top, or from the page's own folder."""
    return next((path for path in (page.parent / name, ROOT / name) if path.exists()), ROOT / name)


@each_page
def test_every_python_file_that_is_named_is_there(page: Path) -> None:
    for code in read_codes(page):
        for name in re.findall(r"[\w./-]+\.py\b", code):
            assert find_script(name, page).exists(), f"{page.name} names {name}"


@each_page
def test_every_option_that_is_named_is_there(page: Path) -> None:
    anywhere = set().union(*(read_options(script) for script in (*SCRIPTS, *BENCHMARKS)))
    for code in read_codes(page):
        command, *_ = code.split(" #")
        named = [find_script(name, page) for name in re.findall(r"[\w./-]+\.py\b", command)]
        known = set().union(*(read_options(script) for script in named)) if named else anywhere
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", command):
            assert option in known, f"{page.name}: `{code}` has {option}"


@each_page
def test_every_target_of_make_that_is_named_is_there(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for code in read_codes(page):
        for target in re.findall(r"^(?:[A-Z]+=\S+ )*make (\w+)", code):
            assert target in targets, f"{page.name}: `{code}`"


@each_page
def test_every_file_that_is_linked_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@each_page
def test_numbers_have_their_command_beside_them(page: Path) -> None:
    """A table that is mostly numbers stands in a section that says how they were got."""
    for section in re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        cells = [
            cell
            for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
            if not set(row) <= set("|- :")
            for cell in row.split("|")[1:]
        ]
        numbers = [cell for cell in cells if re.match(r"\s*[-~]?\d", cell)]
        if len(numbers) > len(cells) / 2:
            title = section.splitlines()[0]
            assert re.search(r"`[^`]*\.py\b[^`]*`|\bmake \w+", section), f"{page.name}: {title}"


def test_every_script_and_benchmark_is_named() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in (*SCRIPTS, *BENCHMARKS):
        assert path.name in text, f"no page names {path.name}"


def test_the_tests_see_what_is_not_there(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    for code, test in (
        ("03-other.py", test_every_python_file_that_is_named_is_there),
        (f"{SCRIPTS[0].name} --no-such", test_every_option_that_is_named_is_there),
        ("--no-such 3", test_every_option_that_is_named_is_there),
        ("KILLS=2 make tea", test_every_target_of_make_that_is_named_is_there),
    ):
        for text in (f"Say `{code}`.", f"```\n{code}  # --\n```\n"):
            page.write_text(text)
            with pytest.raises(AssertionError):
                test(page)
    page.write_text("![x](img/none.png)")
    with pytest.raises(AssertionError):
        test_every_file_that_is_linked_is_there(page)
    page.write_text("## Speed\n\n| a | b |\n|---|---|\n| x | 1.5 |\n| y | 3 |\n")
    with pytest.raises(AssertionError):
        test_numbers_have_their_command_beside_them(page)
