"""The page of `eoid-predict --serve`: over HTTP, with gradio's client and in headless Chromium."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference import page as page_module
from student.inference.detector import Detector
from student.inference.serve import ActionEncoder, RequestFilter, listen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_listening(monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed")
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(InputError, match=f"--port: expected a free port .*:{port}"):
            listen("127.0.0.1", port).__enter__()
    # The port of a server that has just ended is free.
    with listen("127.0.0.1", port):
        pass
    for host in ("no such host", "x" * 300, "192.0.2.1"):
        with pytest.raises(InputError, match="--host"):
            listen(host, 0).__enter__()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--serve: .*gradio.*pip install '\.\[demo\]'"):
        listen("127.0.0.1", 0).__enter__()


@pytest.mark.parametrize(
    ("method", "path", "length", "status"),
    [
        ("GET", "/", None, 200),
        ("GET", "/assets/index-x.js", None, 200),
        ("POST", "/gradio_api/upload", "10000000", 200),
        ("POST", "/gradio_api/upload", "1000000000", 413),
        ("POST", "/gradio_api/queue/join", "100", 200),
        ("POST", "/gradio_api/queue/join", "10000000", 413),
        ("POST", "/gradio_api/queue/join", None, 411),
        ("POST", "/gradio_api/upload", None, 411),
        ("GET", "/gradio_api/file=/tmp/file.png", None, 200),
        ("GET", "/gradio_api/file=https://example.org/x.png", None, 404),
        ("GET", "/gradio_api/file=file:///etc/passwd", None, 404),
        ("GET", "/gradio_api/proxy=https://example.org", None, 404),
        ("POST", "/gradio_api/process_recording", "10", 404),
        ("POST", "/gradio_api/run/predict", "10", 404),
        ("GET", "/monitoring", None, 404),
        ("GET", "/docs", None, 404),
    ],
)
def test_only_requests_of_the_page_are_served(method, path, length, status):
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def request():
        headers = [] if length is None else [(b"content-length", length.encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        sent = []

        async def send(message):
            sent.append(message)

        await RequestFilter(page)(scope, None, send)
        return sent[0]["status"]

    assert asyncio.run(request()) == status


@pytest.fixture
def encoder(text_run, text_cache):
    reopen = partial(Detector.open, text_run, "cpu", None, None, None)
    return ActionEncoder(reopen(None), text_cache, reopen)


def test_further_actions_come_from_a_process_of_the_builder(
    encoder, write_new_prompts, sentences, tmp_path, monkeypatch
):
    words = []

    def run(command, **options):
        words.extend(command)
        write_new_prompts({"juggle": ("juggling", {"ball": sentences.embeddings[0]})}, "prompts.h5")
        return subprocess.CompletedProcess(command, 0, "", "")

    known = encoder.open("", tmp_path)
    assert not words
    monkeypatch.setattr(subprocess, "run", run)
    detector = encoder.open(" --device=pulling: chair\n\n pushing over \n", tmp_path)
    assert words[3] == "prompts"
    assert words[5:7] == ["--add=--device=pulling: chair", "--add=pushing over"]
    assert detector.vocabulary.num_interactions == known.vocabulary.num_interactions + 1
    assert page_module._added_actions(known, detector) == ["juggle"]


@pytest.mark.slow
def test_errors_of_further_actions(encoder, toy_detector, text_cache, cache_path, tmp_path):
    # The cache was written by hand: its CLIP cannot be loaded.
    with pytest.raises(InputError, match=r"^--clip-model: expected the cache's CLIP") as raised:
        encoder.open("pulling: chair", tmp_path)
    assert str(text_cache) not in str(raised.value)
    with pytest.raises(InputError, match=r"^expected objects of the cache"):
        encoder.open("pulling: unicorn", tmp_path)
    with pytest.raises(InputError, match="at most 1000 characters"):
        encoder.open("x" * 1001, tmp_path)
    with pytest.raises(InputError, match="--verb-head text for --cache, found a linear one"):
        ActionEncoder(toy_detector, text_cache, None)
    with pytest.raises(InputError, match="found another's"):
        ActionEncoder(encoder.open("", tmp_path), cache_path, None)


@pytest.fixture(scope="module")
def start_page(tmp_path_factory, toy_checkpoint):
    """`start_page(*words)` serves the untrained student's page; gives process and address."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    processes = []

    def start(*words):
        folder = tmp_path_factory.mktemp("page")
        environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_ALLOWED_PATHS": "/"}
        command = [sys.executable, "-m", "student.inference.cli", toy_checkpoint, "--serve"]
        with (folder / "err").open("w") as err:
            process = subprocess.Popen(
                [*map(str, command), "--port", "0", "--device", "cpu", *words],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=environment,
                cwd=Path(__file__).parents[3],
            )
        processes.append(process)
        line = process.stdout.readline()
        assert line.startswith("page at http://127.0.0.1:"), (folder / "err").read_text()
        return process, line.split()[2], folder

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(start_page):
    """Address of a page with threshold 0."""
    return start_page("--threshold", "0", "--top", "7")[1]


@pytest.fixture(scope="module")
def client(page, tmp_path_factory):
    from gradio_client import Client

    folder = tmp_path_factory.mktemp("client")
    return Client(page, verbose=False, analytics_enabled=False, download_files=folder)


def ask(client, file, threshold=0.0, top=7):
    """Status text, file of the drawing, rows of the table and JSON of an uploaded file."""
    from gradio_client import handle_file

    status, drawn, clip, table, value = client.predict(
        handle_file(str(file)), threshold, top, api_name="/predict"
    )
    return status["value"], drawn["value"] or clip["value"], table, value


@pytest.mark.slow
def test_an_upload_gives_the_detectors_result(client, toy_detector, write_image):
    file = write_image("some picture.png", size=(200, 150))
    text, drawn, table, value = ask(client, file)
    expected = toy_detector(file, threshold=0, top=7).to_dict()
    assert value == {**expected, "image": value["image"]} and "/" not in value["image"]
    assert text.startswith("7 interactions")
    with Image.open(drawn) as image:
        assert max(image.size) >= 512
    scores = [float(row[0]) for row in table["data"]]
    assert scores == pytest.approx([one["score"] for one in expected["interactions"]], abs=0.005)
    # The sliders work on the kept detections of this client's session.
    for threshold, top in ((0.0, 3), (0.9999, 7)):
        *_, value = client.predict(threshold, top, api_name="/top")
        expected = toy_detector(file, threshold=threshold, top=top).to_dict()
        assert value["interactions"] == expected["interactions"]


@pytest.mark.slow
def test_a_clip_gives_a_drawn_clip(client, write_clip):
    pytest.importorskip("trackers", reason="trackers is not installed")
    text, drawn, table, (settings, *lines) = ask(client, write_clip("some clip.mp4", 6), top=2)
    assert drawn.endswith(".mp4") and Path(drawn).stat().st_size > 1000
    assert "/" not in settings["video"] and settings["every"] == 1
    assert [line["frame"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert text.startswith(f"{len(table['data'])} interaction") and table["data"]
    # The sliders change pictures only.
    assert client.predict(0.5, 3, api_name="/top")[0].get("value") is None


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    Image.effect_noise((100, 100), 50).save(folder / "cut.png")
    broken = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(broken[: len(broken) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("root:x:0:0")
    Image.new("L", (10_000, 10_000)).save(folder / "large.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("RGB", (9000, 1)).save(folder / "thin.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cut.png", "cut.png: expected a whole image"),
        ("empty.png", "empty.png: expected a picture or a video"),
        ("text.jpg", "text.jpg: expected a picture or a video, found another kind of file"),
        ("large.png", "at most 64 megapixels, found 10000 x 10000 pixels"),
        ("bomb.png", "bomb.png: expected an image of at most"),
        ("thin.png", "expected sides of at most"),
    ],
)
def test_bad_files_give_a_sentence_and_the_page_stays(client, bad_files, write_image, name, text):
    found, drawn, _, value = ask(client, bad_files / name)
    assert text in found and "/" not in found and "\n" not in found
    assert (drawn, value) == (None, None)
    assert ask(client, write_image("good.png"))[3]["interactions"]


@pytest.mark.slow
def test_failed_requests_are_one_line_each(start_page):
    import httpx

    _, address, folder = start_page()
    values = ([None, "x", 5], [None, 0, None], [], ["x", 0, 5], [{"path": "/etc/passwd"}, 0, 5])
    with httpx.Client(base_url=address, timeout=60) as http:
        config = http.get("/config").json()
        (function,) = [one["id"] for one in config["dependencies"] if one["api_name"] == "predict"]
        for data in values:
            body = {"data": data, "fn_index": function, "session_hash": "attack"}
            assert http.post("/gradio_api/queue/join", json=body).status_code == 200
            with http.stream("GET", "/gradio_api/queue/data?session_hash=attack") as events:
                assert any('"success":false' in line for line in events.iter_lines())
    lines = (folder / "err").read_text().splitlines()
    assert len(lines) == len(values)
    assert all(line.startswith("warning: page: a request failed (") for line in lines)


@pytest.mark.slow
def test_no_path_of_a_request_is_read(page, tmp_path):
    import httpx

    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    with httpx.Client(base_url=page, timeout=60) as http:
        config = http.get("/config").json()
        (function,) = [one["id"] for one in config["dependencies"] if one["api_name"] == "predict"]
        for path in (str(secret), f"{tmp_path}/x/../secret.png", "https://example.org/x.png"):
            meta = {"_type": "gradio.FileData"}
            for further in ({}, {"url": path}, {"url": f"file://{secret}"}, {"is_stream": True}):
                data = {"path": path, "orig_name": "x.png", "meta": meta, **further}
                body = {"data": [data, 0, 5], "fn_index": function, "session_hash": "attack"}
                assert http.post("/gradio_api/queue/join", json=body).status_code == 200
                with http.stream("GET", "/gradio_api/queue/data?session_hash=attack") as events:
                    lines = [line[6:] for line in events.iter_lines() if line.startswith("data: ")]
                (done,) = [json.loads(line) for line in lines if "process_completed" in line]
                if done["success"]:
                    _, text, *_, value = done["output"]["data"]
                    assert text["value"] == "expected an uploaded file, found another"
                    assert value is None
                assert str(tmp_path) not in json.dumps(done)
            answer = http.get(f"/gradio_api/file={path}")
            assert answer.status_code in (403, 404)
        # Names of uploads lead nowhere else.
        named = {"files": ("../../escaped.png", secret.read_bytes())}
        (stored,) = http.post("/gradio_api/upload", files=named).json()
        assert ".." not in stored and "eoid-page-" in stored
        assert http.get("/").status_code == 200


@pytest.mark.slow
def test_ctrl_c_ends_without_message_and_leaves_nothing(start_page):
    process, address, folder = start_page()
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        assert list(folder.glob("eoid-page-*"))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert (folder / "err").read_text() == ""
    assert [one.name for one in folder.iterdir()] == ["err"]


class Browser:
    """Headless Chromium, spoken to in the DevTools protocol over two pipes."""

    def __init__(self, folder, width):
        inside, self._out = os.pipe()
        self._in, outside = os.pipe()
        options = (
            "--headless --no-sandbox --disable-gpu --no-first-run --disable-extensions"
            " --disable-background-networking --disable-component-update --disable-sync"
            f" --remote-debugging-pipe --user-data-dir={folder} --window-size={width},900"
        )
        # Chromium reads file descriptor 3 and writes 4.
        shell = f'exec "$0" "$@" 3<&{inside} 4>&{outside}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, CHROMIUM, *options.split()],
            pass_fds=(inside, outside),
            stderr=subprocess.DEVNULL,
        )
        os.close(inside)
        os.close(outside)
        self.requests, self._number, self._buffer, self._session = [], 0, b"", None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def evaluate(self, code):
        found = self("Runtime.evaluate", expression=code, returnByValue=True)["result"]
        return found.get("value")

    def wait(self, code, seconds=120):
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(code)):
            assert time.monotonic() < end, (code, self.evaluate("document.body.innerText"))
            time.sleep(0.2)
        return value

    def upload(self, file):
        root = self("DOM.getDocument")["root"]["nodeId"]
        found = self("DOM.querySelector", nodeId=root, selector="input[type=file]")
        self("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(file)])

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)


TEXT = "document.body.innerText"
SET_SLIDER = """
const slider = document.querySelectorAll("input[type=range]")[1];
slider.value = 3;
slider.dispatchEvent(new Event("input", {bubbles: true}));
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_uploads_moves_a_slider_and_sees_the_result(
    page, bad_files, write_image, tmp_path, width
):
    browser = Browser(tmp_path / "user", width)
    try:
        browser("Page.navigate", url=page)
        browser.wait("document.querySelector('input[type=file]') !== null")
        browser.upload(write_image("some.png", size=(200, 150)))
        browser.wait(f"{TEXT}.includes('7 interactions with a score')")
        drawn = "document.querySelector('.drawn img')"
        browser.wait(f"{drawn} && {drawn}.naturalWidth >= 512")
        browser.evaluate(SET_SLIDER)
        browser.wait(f"{TEXT}.includes('3 interactions with a score')")
        assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        browser.evaluate("document.querySelector('[aria-label=Clear]').click()")
        browser.wait("document.querySelector('input[type=file]') !== null")
        browser.upload(bad_files / "text.jpg")
        browser.wait(f"{TEXT}.includes('text.jpg: expected a picture or a video')")
        assert browser.evaluate(drawn) is None
        outside = [url for url in browser.requests if not url.startswith((page, "data:", "blob:"))]
        assert len(browser.requests) > 20 and outside == []
    finally:
        browser.close()
