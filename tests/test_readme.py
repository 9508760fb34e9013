"""What README.md and docs/ promise is there: files, commands, options, code, names, limits."""

import ast
import importlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import av
import cv2
import pytest
import skimage.data
import tyro
from conftest import ROOT

from deepfake_detect.files import hash_file

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES = [page for page in PAGES if page.exists()]
SCRIPTS = sorted(ROOT.glob("0?-*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
LONGEST_README = 100  # lines
SCRIPT = r"[\w./\\-]+\.py\b"
OURS = "deepfake-detect", "deepfake-detect-page"  # commands that pyproject.toml installs
TOOLS = "git make sh py python python3 pip curl docker dask uv cp".split()  # noqa: SIM905
FOREIGN = {"--read-only", "--tmpfs"}  # options of docker, in prose
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def read_blocks(page: Path, language: str = r"\w*") -> list[str]:
    """Return the blocks of code, those of one language or of all."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def read_codes(page: Path) -> list[str]:
    """Return all that is set as code: the lines of blocks, joined, and what is between `."""
    rest = re.sub(r"^```\w*\n.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    blocks = [re.sub(r"\\\n\s*", "", block) for block in read_blocks(page)]
    return [line for block in blocks for line in block.splitlines()] + spans


@cache
def read_options(path: Path) -> set[str]:
    """Return the options of a script: the fields of its settings, or the parameters of its main."""
    definitions = ast.parse(path.read_text(encoding="utf-8")).body
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
        options |= {f"--no-{option}"} if annotation and "bool" in ast.unparse(annotation) else set()
    return options


def find_script(name: str, page: Path) -> Path:
    """Find the file that a page names: a path from the top, or from the page's own folder."""
    name = name.replace("\\", "/").removeprefix("../")
    return next((path for path in (page.parent / name, ROOT / name) if path.exists()), ROOT / name)


def find_module(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"


@each_page
def test_named_python_files_exist(page: Path) -> None:
    for code in read_codes(page):
        for name in re.findall(SCRIPT, code):
            found = find_script(name, page).exists() or list(ROOT.rglob(Path(name).name))
            assert found, f"{page.name} names {name}"
        for name in re.findall(r"-m (benchmarks\.\w+|deepfake_detect\.\w+|weights\.\w+)", code):
            assert find_module(name).exists(), f"{page.name} names {name}"


@each_page
def test_commands_of_our_scripts_are_valid(page: Path) -> None:
    """Each command is parsed by the script's own settings: options, values and their types."""
    for code in read_codes(page):
        try:
            words = shlex.split(code.replace("\\", "/"), comments=True)
        except ValueError:  # an apostrophe in prose
            continue
        places = [n for n, word in enumerate(words) if re.search(r"(^|/)0\d-[\w-]+\.py$", word)]
        if not places or {"|", ">", "...", "$"} & set("".join(words)):
            continue
        script, *arguments = words[places[0] :]
        if not any(word.startswith("-") for word in arguments):
            continue  # only names of files, or prose
        module = importlib.import_module(Path(script).stem)
        try:
            tyro.cli(module.Settings, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
        except SystemExit as end:
            pytest.fail(f"{page.name}: `{code}` ends with {end.code}")


@each_page
def test_named_options_exist(page: Path) -> None:
    """An option beside a script is one of it, an option in prose is one of any script."""
    anywhere = set().union(*(read_options(script) for script in (*SCRIPTS, *BENCHMARKS)))
    groups = ("augmentation", "detection_settings")  # of settings, that scripts nest
    anywhere = anywhere.union(
        *(read_options(ROOT / f"deepfake_detect/{name}.py") for name in groups)
    )
    anywhere |= FOREIGN
    anywhere = anywhere.union(*map(read_options, (ROOT / "weights").glob("*.py")))
    for code in read_codes(page):
        command, *_ = code.replace("\\", "/").split(" #")
        first = Path((command.split() or [""])[0]).name
        if first in TOOLS and not re.search(rf"{SCRIPT}|-m benchmarks", command):
            continue
        modules = re.findall(r"-m (benchmarks\.\w+)", command)
        named = [find_script(name, page) for name in re.findall(SCRIPT, command)]
        named += [find_module(name) for name in modules]
        named = [path for path in named if path in BENCHMARKS]
        known = set().union(*(read_options(path) for path in named)) if named else anywhere
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", command):
            assert option in known, f"{page.name}: `{code}`: {option}"


@each_page
def test_named_targets_of_make_exist(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for code in read_codes(page):
        for target in re.findall(r"^(?:[A-Z]+=\S+ )*make (\w+)", code):
            assert target in targets, f"{page.name}: `{code}`"


@each_page
def test_named_extras_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for code in read_codes(page):
        for names in re.findall(r"(?<!\w)'?\.\[([\w,-]+)\]", code):
            assert set(names.split(",")) <= set(project["optional-dependencies"]), code
    assert set(OURS) == set(project["scripts"])


@each_page
def test_linked_files_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@each_page
def test_python_blocks_use_names_that_exist(page: Path) -> None:
    for block in read_blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("deepfake_detect"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {alias.name}"


def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a short video of a public-domain portrait, under the name that the README gives it."""
    monkeypatch.chdir(tmp_path)
    face = skimage.data.astronaut()[:256, 96:352]
    with av.open("my clip.mp4", "w") as file:
        stream = file.add_stream("libx264", 8, width=256, height=256, pix_fmt="yuv420p")
        for _ in range(8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(face, "rgb24")))
        file.mux(stream.encode())
    assert cv2.VideoCapture("my clip.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 8
    (block,) = read_blocks(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {})
    verdict, score = capsys.readouterr().out.rsplit(maxsplit=1)
    assert verdict in ("likely real", "undecided") and 0 <= int(score) <= 100


def test_the_example_report_is_of_the_included_model() -> None:
    """img/make-example-report.py makes it again after a change of the model."""
    report = (ROOT / "docs" / "example-report.html").read_text(encoding="utf-8")
    assert hash_file(ROOT / "weights" / "deepfake-detector.onnx") in report
    assert "Likely fake" in report and len(report) < 5e6
    assert not re.search(r"(src|href)=.https?:", report)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@each_page
def test_numbers_have_their_command_beside_them(page: Path) -> None:
    """A table that is mostly numbers is in a section that says how they were measured."""
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
            command = rf"{SCRIPT}|-m benchmarks\.\w+|\bmake \w+"
            assert re.search(command, section), f"{page.name}: {title}"


def test_every_script_and_benchmark_is_named() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in (*SCRIPTS, *BENCHMARKS):
        names = (path.name, f"benchmarks.{path.stem}")
        assert path.stem == "__init__" or any(name in text for name in names), path.name


def test_the_words_of_a_verdict_are_defined_once() -> None:
    from deepfake_detect import result

    words = (result.FAKE, result.REAL, result.UNDECIDED, result.NO_FACE, result.NOT_CHECKED)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \*\*([a-z ]+)\*\* \|", text, re.MULTILINE)[:5] == list(words)


def test_these_tests_see_what_is_not_there(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    script = SCRIPTS[0].name
    for code, test in (
        ("03-other.py", test_named_python_files_exist),
        ("python -m benchmarks.other", test_named_python_files_exist),
        (f"{script} --no-such", test_commands_of_our_scripts_are_valid),
        (f"python {script} --seed x", test_commands_of_our_scripts_are_valid),
        ("--no-such 3", test_named_options_exist),
        ("KILLS=2 make tea", test_named_targets_of_make_exist),
        ("pip install -e '.[tea]'", test_named_extras_exist),
    ):
        for text in (f"Say `{code}`.", f"```\n{code}  # --\n```\n"):
            page.write_text(text)
            with pytest.raises((AssertionError, pytest.fail.Exception)):
                test(page)
    page.write_text("![x](img/none.png)")
    with pytest.raises(AssertionError):
        test_linked_files_exist(page)
    page.write_text("```python\nfrom deepfake_detect import Tea\n```\n")
    with pytest.raises(AssertionError):
        test_python_blocks_use_names_that_exist(page)
    page.write_text("## Speed\n\n| a | b |\n|---|---|\n| x | 1.5 |\n| y | 3 |\n")
    with pytest.raises(AssertionError):
        test_numbers_have_their_command_beside_them(page)
