"""Tests of the command line: settings, ranges, signals, streams and environment."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detect import cli

SCRIPT = "03-prepare-fake-real-dataset.py"


@dataclass(frozen=True)
class Settings:
    folder: Path = Path("frames")  # a folder
    rate: cli.Positive | None = None  # above 0
    share: cli.Share = 0.5  # 0 to 1
    pair: Annotated[tuple[float, float], cli.Between(0, 1)] = (0.5, 0.1)  # each 0 to 1
    workers: Annotated[cli.Count | None, cli.MACHINE] = None  # processes


NUMBERS = st.floats() | st.integers(-3, 3)


@given(name=st.sampled_from(["rate", "share", "workers"]), value=NUMBERS)
def test_number_out_of_range_is_rejected(name: str, value: float) -> None:
    positive = sys.float_info.min, sys.float_info.max
    low, high = {"rate": positive, "share": (0, 1), "workers": (1, float("inf"))}[name]
    settings = Settings(**{name: value})
    if low <= value <= high:
        cli.check_ranges(settings)
    else:
        with pytest.raises(ValueError, match=f"--{name}"):
            cli.check_ranges(settings)


@pytest.mark.parametrize("pair", [(0.5, 3.0), (-0.1, 0.5), (float("nan"), 0.5)])
def test_each_number_of_a_pair_is_checked(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="--pair"):
        cli.check_ranges(Settings(pair=pair))


def test_result_settings_exclude_folders_and_machine() -> None:
    settings = cli.settings_of_result(Settings(workers=3))
    assert settings == {"rate": None, "share": 0.5, "pair": [0.5, 0.1]}
    assert settings == json.loads(json.dumps(settings))


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """Write a script that starts and ends like the numbered ones, without heavy imports."""
    path = tmp_path / "tool.py"
    path.write_text(
        f"""import os, sys
sys.path.append({str(ROOT)!r})
from deepfake_detect import start

start.prepare(__name__)
import json, time
from deepfake_detect import cli

def main(seed: int = 0, wait: bool = False):
    print("begun", flush=True)
    if wait:
        time.sleep(60)
    if seed < 0:
        raise ValueError(f"--seed is {{seed}} détect😀")

cli.run(main)
"""
    )
    return path


def run_shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("library", ["json", "keras"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_during_imports_prints_one_sentence(
    name: str, library: str, tool: Path, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("import deepfake_detect.keras_setup\n")
    loading = "import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
    (tmp_path / f"{library}.py").write_text(loading)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, tool], **pipes) as run:
        assert run.stdout.readline() == "loading\n"
        run.send_signal(getattr(signal, name))
        _, said = run.communicate()
    assert run.returncode == 130
    assert said.count("\n") == 1 and "tool.py" in said


@pytest.mark.parametrize("way", ["-P", "-I", "PYTHONSAFEPATH=1"])
def test_script_finds_its_package(way: str) -> None:
    option = way if way.startswith("-") else ""
    variables = dict([way.split("=")]) if "=" in way else {}
    command = f"unset PYTHONPATH; exec '{sys.executable}' {option} '{ROOT / SCRIPT}' --version"
    run = run_shell(command, **variables)
    assert run.returncode == 0 and run.stdout.count(".") == 2, run.stderr


@pytest.mark.long
@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("0*.py")))
def test_link_to_a_script_finds_its_package(script: str, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(ROOT / script)
    run = run_shell(f"unset PYTHONPATH; exec '{sys.executable}' -I '{link}' --version")
    assert run.returncode == 0 and run.stdout.count(".") == 2, run.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full"])
@pytest.mark.parametrize(("arguments", "code"), [("--help", 0), ("--seed -1", 1), ("", 0)])
def test_closed_streams_do_not_cause_a_traceback(
    closed: str, arguments: str, code: int, tool: Path
) -> None:
    run = run_shell(f"exec '{sys.executable}' '{tool}' {arguments} {closed}")
    assert run.returncode == (1 if "full" in closed else code), run.stderr
    assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr


def test_output_does_not_go_into_a_file_opened_later(tool: Path) -> None:
    tool.write_text(
        tool.read_text().replace(
            "    if wait",
            f"    open({str(tool.with_name('file'))!r}, 'w')\n"
            "    print('x', file=sys.stderr); os.write(1, b'x'); os.write(2, b'x')\n    if wait",
        )
    )
    run = run_shell(f"exec '{sys.executable}' '{tool}' <&- >&- 2>&-")
    assert run.returncode == 0 and tool.with_name("file").read_text() == ""


@pytest.mark.parametrize("columns", ["1", "5", "0", "x", "80"])
def test_help_works_at_any_width(columns: str, tool: Path) -> None:
    run = run_shell(f"exec timeout 100 '{sys.executable}' '{tool}' --help", COLUMNS=columns)
    assert run.returncode == 0 and "--seed" in run.stdout


@pytest.mark.parametrize(
    "variables",
    [
        {
            "TQDM_MININTERVAL": "abc",
            "TQDM_NCOLS": "x",
            "TQDM_ASCII": "1",
            "MPLBACKEND": "nonsense",
            "PYTHONIOENCODING": "ascii",
        },
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_foreign_environment_variables_are_ignored(variables: dict[str, str], tool: Path) -> None:
    tool.write_text(
        tool.read_text().replace("import json", "import tqdm, matplotlib.pyplot\nimport json")
    )
    run = run_shell(f"exec '{sys.executable}' '{tool}' --seed -1", **variables)
    assert run.returncode == 1 and run.stderr.startswith("tool.py: --seed is -1"), run.stderr


@pytest.mark.long
def test_user_configuration_of_keras_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(
        json.dumps({"floatx": "float16", "backend": "torch", "image_data_format": "channels_first"})
    )
    program = "import deepfake_detect.keras_setup, keras; from keras import config; "
    program += "print(keras.backend.backend(), config.floatx(), config.image_data_format())"
    run = run_shell(
        f"exec '{sys.executable}' -c '{program}'",
        HOME=str(tmp_path),
        PYTHONPATH=str(ROOT),
        KERAS_BACKEND="jax",
        TF_USE_LEGACY_KERAS="1",
    )
    assert run.stdout == "tensorflow float32 channels_last\n", run.stderr


def test_closed_pipe_does_not_cause_a_traceback(tool: Path) -> None:
    tool.write_text(
        tool.read_text().replace("    if wait", "    print('x\\n' * 100_000)\n    if wait")
    )
    run = run_shell(f"'{sys.executable}' '{tool}' | head -n 1")
    assert run.stdout == "begun\n" and run.stderr == ""


def test_second_ctrl_c_ends_the_run_at_once(tool: Path) -> None:
    hanging = "import threading\n    threading.Thread(target=time.sleep, args=(600,)).start()"
    tool.write_text(tool.read_text().replace("    print", f"    {hanging}\n    print", 1))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, tool, "--wait"], **pipes) as run:
        assert run.stdout.readline() == "begun\n"
        run.send_signal(signal.SIGINT)
        assert "stopped" in run.stderr.readline()
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=500)
    assert run.returncode == 130 and "Traceback" not in said


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_facts("a\nb", [("", "c\x1b[2J"), ("", "inv\u202egnp.exe")], "python x.py")
    said = capsys.readouterr().out
    assert said.count("\n") == 4 and "\x1b" not in said and "\u202e" not in said
    assert said.splitlines()[-1].split() == ["next", "python", "x.py"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory"),
        (ValueError("a\n b"), "a b"),
        (ValueError(), "ValueError"),
        (ValueError("\x1b[2J\u202egnp.exe"), "gnp.exe"),
        (FileNotFoundError(2, "No such file", "x.png"), "x.png: No such file"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_error_is_one_line(error: Exception, words: str) -> None:
    described = cli.describe_error(error)
    assert words in described and described.isprintable()
