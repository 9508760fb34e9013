"""Test 08: the HTTP API, protection from strangers, and the deletion of visitors' files."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
from conftest import ROOT, assert_stops, run_script
from media import frame, write_clip
from pages import FAKE, REAL, Server, clips, open_page, write_endless_video  # noqa: F401

from deepfake_detect.web import jobs

SECRET = "nobody may read this"
BOUNDARY = "a-boundary"
MB = 10**6


class Answer(NamedTuple):
    status: int
    text: str
    headers: http.client.HTTPMessage

    @property
    def json(self) -> dict:
        return json.loads(self.text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a page with the HTTP API, and limits of 2 MB per upload and 20 MB in total."""
    home = tmp_path_factory.mktemp("http")
    (home / "secret.txt").write_text(SECRET)
    options = ["--api", "--upload-limit", 2, "--kept-limit", 20]
    with open_page(home, *options) as server:
        yield server


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=600)


def ask(
    server: Server, target: str, method: str = "GET", body: str | bytes = b"", **headers: str
) -> Answer:
    """Send a request with exactly this target, which a browser would change."""
    connection = connect(server)
    connection.request(method, target, body or None, headers)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return Answer(answer.status, text, answer.headers)


def wrap(name: str, content: bytes, field: str = "file") -> bytes:
    """Return the body of a form with a file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    return f"{head}\r\n".encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def send(server: Server, name: str, content: bytes, target: str = "/check", **more: str) -> Answer:
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return ask(server, target, "POST", wrap(name, content), **kind, **more)


def send_half(server: Server, name: str, content: bytes) -> http.client.HTTPConnection:
    """Send half of an upload and keep the connection open."""
    body = wrap(name, content)
    connection = connect(server)
    connection.putrequest("POST", "/check")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    return connection


def list_kept(server: Server) -> list[str]:
    """List the visitors' files that the page keeps."""
    return sorted(path.name for path in server.folder.rglob("*") if path.name != "lock")


def wait_until(done: Callable[[], bool]) -> None:
    """Wait until `done` returns True; the test runner limits the time."""
    while not done():
        time.sleep(0.1)


def is_idle(server: Server) -> bool:
    return ask(server, "/health").json["waiting"] == 0


def find_phase(server: Server, job: str) -> str:
    """Request the phase of a job, as its page does."""
    (state,) = ask(server, "/jobs", "POST", json.dumps({"ids": [job]})).json["jobs"]
    return state["phase"]


# --- Programs -------------------------------------------------------------------------------------


def test_check_answers_the_json_of_06_and_keeps_nothing(server: Server, tmp_path: Path) -> None:
    ran = run_script("06-detect-deepfake.py", FAKE, "--json", cwd=tmp_path)
    (expected,) = json.loads(ran.stdout)
    answer = send(server, FAKE.name, FAKE.read_bytes())
    assert answer.status == 200
    for key in ("verdict", "p_fake", "interval_95", "sha256", "model_sha256", "tracks", "schema"):
        assert answer.json[key] == expected[key], key
    assert answer.json["file"] == FAKE.name
    assert list_kept(server) == []


@pytest.mark.long
def test_two_clients_at_once_receive_their_own_answers(server: Server) -> None:
    sent = [REAL, FAKE, REAL, FAKE]
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda clip: send(server, clip.name, clip.read_bytes()), sent))
    verdicts = [answer.json["verdict"] for answer in answers]
    assert verdicts == ["likely real", "likely fake"] * 2
    assert list_kept(server) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video at all",
        b"#EXTM3U\nhttp://127.0.0.1/x.ts\n",
        b"\0\0\0\x20ftypisom" + bytes(99),
    ],
)
def test_other_files_are_answered_with_reason_and_advice(server: Server, content: bytes) -> None:
    answer = send(server, "../../x.mp4", content)
    assert answer.status == 422
    assert answer.json["file"] == "x.mp4" and answer.json["verdict"] == "not checked"
    assert answer.json["reason"] and answer.json["advice"] and answer.json["error"]
    assert str(server.folder) not in answer.text
    assert list_kept(server) == []


def test_request_without_a_file_is_refused(server: Server) -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    assert (
        ask(server, "/check", "POST", wrap("a", b"a", "other"), **{"Content-Type": kind})[0] == 400
    )
    assert ask(server, "/check", "POST", b"{}", **{"Content-Type": "application/json"})[0] == 400
    assert ask(server, "/check", "POST", b"no form", **{"Content-Type": kind})[0] == 400
    two = wrap("a", b"a")[: -len(f"--{BOUNDARY}--\r\n")] + wrap("b", b"b")
    assert ask(server, "/check", "POST", two, **{"Content-Type": kind})[0] == 400
    assert ask(server, "/check")[0] == 405
    assert list_kept(server) == []


def test_too_large_upload_is_refused_with_and_without_its_length(server: Server) -> None:
    large = bytes(2 * MB + 20_000)
    assert send(server, "large.mp4", large).status == 413
    connection = connect(server)
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    body = wrap("large.mp4", large)
    chunks = (body[at : at + 65536] for at in range(0, len(body), 65536))
    try:
        connection.request("POST", "/check", chunks, kind, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused during the upload
    assert list_kept(server) == [] and is_idle(server)


@pytest.mark.long
def test_aborted_upload_leaves_nothing(server: Server) -> None:
    halves = [send_half(server, "half.mp4", bytes(MB)) for _ in range(3)]
    time.sleep(0.5)
    for half in halves:
        half.close()
    assert send(server, REAL.name, REAL.read_bytes()).status == 200
    assert list_kept(server) == [] and is_idle(server)


@pytest.mark.long
def test_disconnected_client_cancels_its_check(server: Server, tmp_path: Path) -> None:
    endless = write_endless_video(tmp_path / "endless.mp4").read_bytes()
    connection = connect(server)
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/check", wrap("endless.mp4", endless), kind)
    wait_until(lambda: list_kept(server) != [])
    connection.close()
    wait_until(lambda: list_kept(server) == [])
    assert is_idle(server)


@pytest.mark.long
def test_total_size_of_uploads_is_limited(server: Server) -> None:
    halves = [send_half(server, "half.mp4", bytes(1_990_000)) for _ in range(10)]
    wait_until(lambda: send(server, REAL.name, REAL.read_bytes()).status == 503)
    for half in halves:
        half.close()
    wait_until(lambda: send(server, REAL.name, REAL.read_bytes()).status == 200)


def test_phases_follow_each_other_and_the_verdict_comes_before_the_copy(
    server: Server, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "long.mp4", [frame((180, 60))] * 150, 0.04)
    job = send(server, clip.name, clip.read_bytes(), "/files").json["id"]
    seen: dict[str, dict] = {}
    while "Done" not in seen:
        (state,) = ask(server, "/jobs", "POST", json.dumps({"ids": [job]})).json["jobs"]
        seen.setdefault(state["phase"], state)
    phases = [phase for phase in seen if phase in ("Looking for faces", "Drawing the marked copy")]
    assert phases == ["Looking for faces", "Drawing the marked copy"]
    assert "verdict" not in seen["Looking for faces"]
    assert seen["Drawing the marked copy"]["verdict"] == seen["Done"]["verdict"]
    assert all(0 <= (state.get("share") or 0) <= 1 for state in seen.values())
    assert ask(server, f"/jobs/{job}", "DELETE").status == 204


def test_openapi_describes_every_address_and_answer(server: Server) -> None:
    described = ask(server, "/openapi.json").json
    assert set(described["paths"]) == {"/check", "/health", "/version"}
    version = ask(server, "/version").json
    assert described["info"]["version"] == version["version"]
    result = send(server, REAL.name, REAL.read_bytes()).json
    assert result["model_sha256"] == version["model_sha256"]
    failure = send(server, "torn.mp4", b"torn").json
    for name, got in (("Result", result), ("Failure", failure)):
        schema = described["components"]["schemas"][name]
        assert set(schema["required"]) <= set(got)
        assert set(schema["properties"]) <= set(got)


def test_api_is_off_by_default(tmp_path: Path) -> None:
    with open_page(tmp_path) as server:
        assert send(server, REAL.name, REAL.read_bytes()).status == 404
        assert ask(server, "/openapi.json").status == ask(server, "/version").status == 404
        assert ask(server, "/health").status == 200


def test_other_computers_need_the_token(tmp_path: Path) -> None:
    with open_page(tmp_path, "--api", "--host", "0.0.0.0") as shown:
        assert len(shown.token) >= 16  # cannot be guessed
        server = shown._replace(address=shown.address.replace("0.0.0.0", "127.0.0.1"))
        for target in ("/", "/version", "/static/page.js", "/?token=wrong", "/card"):
            assert ask(server, target).status == 401, target
        assert send(server, REAL.name, REAL.read_bytes()).status == 401
        assert ask(server, "/health").status == 200
        bearer = {"Authorization": f"Bearer {shown.token}"}
        assert ask(server, "/version", **bearer).status == 200
        assert send(server, REAL.name, REAL.read_bytes(), **bearer).status == 200
        opened = ask(server, f"/?token={shown.token}")
        assert opened.status == 303 and opened.headers["Location"] == "/"
        cookie = opened.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert ask(server, "/", Cookie=cookie.split(";")[0]).status == 200


@pytest.mark.long
def test_token_may_come_from_the_environment(tmp_path: Path) -> None:
    with open_page(tmp_path, "--api", DEEPFAKE_DETECT_TOKEN="of my own") as server:
        assert ask(server, "/version").status == 401
        assert ask(server, "/version", Authorization="Bearer of my own").status == 200


# --- Protection from strangers --------------------------------------------------------------------


def test_files_on_the_disk_are_not_served(server: Server) -> None:
    secret, up = str(server.folder.parents[1] / "secret.txt"), "../" * 12
    planted = server.folder / "planted"
    planted.mkdir()
    for name in ("report.html", "marked.mp4", "upload"):
        (planted / name).symlink_to(secret)
    names = [secret, f"{up}{secret}", f"{up}etc/passwd", "/etc/passwd", f"file://{secret}"]
    names += [urllib.parse.quote(secret, safe=""), "..%2f" * 12 + "etc/passwd"]
    names += ["%2e%2e/" * 12 + "etc/passwd", "..\\" * 12 + "etc\\passwd", "%00", "a%0d%0ab"]
    names += ["planted/report.html", "planted/marked.mp4", "planted/upload", "lock", "../lock"]
    ways = ("", "static/", "results/", "results/planted/", "jobs/", "examples/", "file=", "card/")
    for target in (f"/{way}{name}" for way in ways for name in names):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "TRACE"):
            answer = ask(server, target, method)
            refused = answer.status in (400, 404, 405) or (method, answer.status) == ("DELETE", 204)
            assert refused, (method, target, answer.status)
            assert SECRET not in answer.text and "root:" not in answer.text, (method, target)
    assert planted.is_dir()
    for path in planted.iterdir():
        path.unlink()
    planted.rmdir()


@pytest.mark.parametrize(
    "question", [b"", b"[]", b"null", b"{", b"[" * 99_000, b'{"ids": 5}', b'{"ids": [[], {}, 1]}']
)
def test_invalid_requests_are_answered(server: Server, question: bytes) -> None:
    for target in ("/jobs", "/jobs/left", "/examples"):
        assert ask(server, target, "POST", question).status in (200, 204, 400, 404)
    assert ask(server, "/jobs", "POST", b" " * 200_000).status == 413


def test_requests_from_other_sites_are_refused(server: Server) -> None:
    port = server.address.rsplit(":", 1)[1]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::1]"):
        assert ask(server, "/", Host=host).status in (400, 404), host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}"):
        for target in ("/", "/jobs", "/files", "/check"):
            assert ask(server, target, "POST", Origin=origin).status == 404, (origin, target)
    assert ask(server, "/", Origin=server.address).status == 200
    raw = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(raw.encode())
        assert b" 200 " not in connection.recv(100)


def test_every_answer_restricts_the_browser_to_this_server(server: Server) -> None:
    job = send(server, REAL.name, REAL.read_bytes(), "/files").json["id"]
    results = [f"/results/{job}/{name}" for name in ("article.html", "report.html", "marked.mp4")]
    wait_until(lambda: is_idle(server))
    for target in ("/", "/nothing", "/static/page.js", "/jobs", *results):
        answer = ask(server, target)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "http" not in policy, target
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in ask(server, results[1]).headers["Content-Security-Policy"]
    part = ask(server, results[2], Range="bytes=10-19")
    assert part.status == 206 and part.headers["Content-Range"].startswith("bytes 10-19/")
    ask(server, f"/jobs/{job}", "DELETE")
    assert list_kept(server) == []
    assert ask(server, results[1]).status == 404


@pytest.mark.long
def test_proxy_in_the_environment_is_not_used(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.1)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY")
        with open_page(tmp_path, "--api", **dict.fromkeys(names, address)) as server:
            assert send(server, REAL.name, REAL.read_bytes()).status == 200
        with pytest.raises(TimeoutError):
            proxy.accept()


# --- Deletion -------------------------------------------------------------------------------------


@pytest.mark.long
def test_old_results_are_deleted_even_if_files_vanish_meanwhile(tmp_path: Path) -> None:
    with open_page(tmp_path, "--api", "--keep-minutes", 0.02) as server:
        stray = [server.folder / "stray.bin", server.folder / "stray" / "deep.bin"]
        stray[1].parent.mkdir()
        for path in stray:
            path.write_bytes(b"1")
            os.utime(path, (1, 1))
        os.utime(stray[1].parent, (1, 1))
        job = send(server, REAL.name, REAL.read_bytes(), "/files").json["id"]
        stop = threading.Event()

        def churn() -> None:  # like an upload that ends at the wrong moment
            while not stop.is_set():
                (server.folder / "vanishing").write_bytes(b"1")
                (server.folder / "vanishing").unlink(missing_ok=True)

        with ThreadPoolExecutor(1) as other:
            other.submit(churn)
            try:
                wait_until(lambda: not any(path.exists() for path in stray))
                wait_until(lambda: find_phase(server, job) == "Deleted")
            finally:
                stop.set()
        wait_until(lambda: list_kept(server) == [])


@pytest.mark.long
def test_start_deletes_only_the_files_of_killed_pages(tmp_path: Path) -> None:
    with open_page(tmp_path / "home") as killed, open_page(tmp_path / "home") as alive:
        (killed.folder / "visitor").mkdir()
        (killed.folder / "visitor" / "upload").write_text(SECRET)
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait()
        other = tmp_path / "home" / "tmp" / "deepfake-page-link"
        other.symlink_to(tmp_path, target_is_directory=True)
        with open_page(tmp_path / "home"):
            assert not killed.folder.exists()
            assert alive.folder.exists() and other.is_symlink()
        assert ask(alive, "/health").status == 200


def test_start_keeps_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own, left = (tmp_path / f"deepfake-page-{name}" for name in ("notes", "qa_3xyz8"))
    for folder in (own, left):
        folder.mkdir()
    (own / "notes.txt").write_text("mine")
    for folder in (own, left):
        os.utime(folder, (0, 0))
    with jobs.open_folder():
        assert not left.exists() and list(own.iterdir()) == [own / "notes.txt"]


@pytest.mark.long
def test_page_stopped_during_a_check_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    endless = write_endless_video(tmp_path / "endless.mp4").read_bytes()
    with open_page(tmp_path / "home") as server:
        for _ in range(3):
            assert send(server, "endless.mp4", endless, "/files").status == 202
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait() == 130
        assert not server.folder.exists()


# --- The start ------------------------------------------------------------------------------------


def test_port_in_use_is_reported_with_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run_script("08-web-page.py", "--no-open-browser", "--port", port, cwd=tmp_path)
    assert_stops(ran, "--port", str(port))


def test_address_of_another_computer_is_reported_with_the_option(tmp_path: Path) -> None:
    ran = run_script("08-web-page.py", "--no-open-browser", "--host", "192.0.2.1", cwd=tmp_path)
    assert_stops(ran, "--host 192.0.2.1")


@pytest.mark.parametrize("option", ["--port=99999", "--port=-5", "--keep-minutes=0", "--host=a b"])
def test_setting_out_of_range_is_rejected(tmp_path: Path, option: str) -> None:
    ran = run_script("08-web-page.py", "--no-open-browser", option, cwd=tmp_path)
    assert_stops(ran, option.split("=")[0])


def test_unusable_model_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    for model in ("bad.onnx", "missing.onnx"):
        options = ["--no-open-browser", "--port", 0, "--model", model]
        assert_stops(run_script("08-web-page.py", *options, cwd=tmp_path), model)
    assert not list((tmp_path).glob("deepfake-page-*"))


@pytest.mark.long
def test_practice_models_and_unmeasured_models_are_marked(tmp_path: Path) -> None:
    model = onnx.load(ROOT / "weights" / "deepfake-detector.onnx")
    for entry in model.metadata_props:
        if entry.key == "training":
            entry.value = json.dumps({"practice": True})
    onnx.save(model, tmp_path / "toy.onnx")
    with open_page(tmp_path, "--model", "toy.onnx") as server:
        page = ask(server, "/").text
    assert 'class="warning"' in page and "toy.onnx" in page and "was not measured" in page
    with open_page(tmp_path) as server:
        page = ask(server, "/").text
    assert 'class="warning"' not in page and "in 100" in page


@pytest.mark.long
@pytest.mark.parametrize("module", ["numpy", "starlette.routing", "uvicorn"])
def test_ctrl_c_during_the_start_prints_one_line(tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-X", "importtime", ROOT / "08-web-page.py", "--no-open-browser"]
    command += ["--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not process.stderr.readline().rstrip().endswith(module):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.glob("deepfake-page-*"))


# --- docs/api.md ----------------------------------------------------------------------------------


def read_blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("curl"), reason="There is no curl.")
def test_curl_examples_in_docs_work(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(REAL.read_bytes())
    first, with_token = read_blocks("bash")
    with open_page(tmp_path, "--api") as server:
        ran = run_shell(first, server, tmp_path)
    checked, version, health, described = map(
        json.loads, ran.stdout.replace("}{", "}\n{").split("\n")
    )
    assert (
        checked["verdict"] == "likely real" and version["model_sha256"] == checked["model_sha256"]
    )
    assert health["status"] == "ok" and described["openapi"] == "3.1.0"
    token = {"DEEPFAKE_DETECT_TOKEN": "a-long-one"}
    with open_page(tmp_path, "--api", **token) as server:
        ran = run_shell(with_token, server, tmp_path, **token)
    assert json.loads(ran.stdout)["verdict"] == "likely real"


def run_shell(
    commands: str, server: Server, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    commands = commands.replace("http://127.0.0.1:7860", server.address)
    return subprocess.run(
        ["sh", "-ec", commands],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.long
def test_python_examples_in_docs_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(REAL.read_bytes())
    Path("notes.txt").write_text("not media")
    for block in read_blocks("python"):
        exec(compile(block, "api.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.count("clip.mp4 likely real") == 1 and "notes.txt not checked" in said
    assert "Looking for faces" in said
    assert (
        Path("report.html").stat().st_size > 10_000 and Path("marked.mp4").stat().st_size > 10_000
    )
