"""The page of `eoid-predict --serve`: over HTTP, with gradio's client and in headless Chromium."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference.detector import Detector
from student.inference.page import MAX_QUEUE
from student.inference.serve import RequestFilter, listen

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def skip_without_gradio():
    # Importing it takes seconds, which the tests need not do.
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")


def test_listening(monkeypatch):
    skip_without_gradio()
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(InputError, match=f"--port: expected a free port .*:{port}"):
            listen("127.0.0.1", port)
    # The port of a server that has just ended is free.
    listen("127.0.0.1", port).close()
    for host in ("::1%nowhere", "x" * 300, "192.0.2.1"):
        with pytest.raises(InputError, match="--host"):
            listen(host, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--serve: .*gradio.*pip install '\.\[demo\]'"):
        listen("127.0.0.1", 0)


def test_a_taken_port_is_reported_before_pytorch_is_imported():
    skip_without_gradio()
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        words = ["eoid-predict", "toy", "--serve", "--port", str(port)]
        code = f"""
import sys
from student.inference.cli import main
sys.modules["torch"] = None
sys.argv = {words}
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "--port: expected a free port" in line


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

        posts = []
        await RequestFilter(page, 200 << 20, lambda: posts.append(path))(scope, None, send)
        assert posts == ([path] if method == "POST" and status == 200 else [])
        return sent[0]["status"]

    assert asyncio.run(request()) == status


class Served:
    """A page of the package's student with a text head, which all tests share.

    Attributes:
        address: its address.
        folder: of its temporary files.
        words: further options.
    """

    def __init__(self, folder, *words):
        self.folder, self._log = folder / "temporary", folder / "stderr"
        self.folder.mkdir()
        environment = {**os.environ, "TMPDIR": str(self.folder), "GRADIO_ALLOWED_PATHS": "/"}
        command = [sys.executable, "-m", "student.inference.cli", "toy-text", "--serve", "--port"]
        command += ["0", "--device", "cpu", "--threshold", "0", "--top", "100", *map(str, words)]
        with self._log.open("w") as err:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment, cwd=ROOT
            )
        line = self.process.stdout.readline()
        self.read = 0
        assert self.new_lines() == ["loading toy-text"]
        assert line.startswith("page at http://127.0.0.1:")
        self.address = line.split()[2]

    def new_lines(self):
        """What has been printed since the last call, without progress bars."""
        text = self._log.read_text()
        found, self.read = text[self.read :], len(text)
        lines = (line.rpartition("\r")[2] for line in found.split("\n"))
        return [line for line in lines if line and not re.match(r".*: +\d+% ", line)]

    def uploads(self):
        """Size of its uploads and drawings by name."""
        files = self.folder.glob("eoid-page-*/uploads/**/*")
        return {file.name: file.stat().st_size for file in files if file.is_file()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory, dataset_root):
    """A cache of the toy dataset's CLIP."""
    from teacher_cache.build import BuildConfig, build_cache

    out = tmp_path_factory.mktemp("cache") / "cache"
    config = BuildConfig(dataset_root, out, detector="toy", clip_model="toy", limit=1, device="cpu")
    build_cache(config)
    return out


@pytest.fixture(scope="module")
def pages():
    skip_without_gradio()
    served = []
    yield served
    for one in served:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def page(pages, cache, tmp_path_factory):
    # The test of Ctrl-C ends it.
    if not pages or pages[-1].process.poll() is not None:
        pages.append(Served(tmp_path_factory.mktemp("page"), "--cache", cache))
    pages[-1].new_lines()
    return pages[-1]


@pytest.fixture
def new_client(page, tmp_path):
    from gradio_client import Client

    return lambda: Client(
        page.address, verbose=False, analytics_enabled=False, download_files=tmp_path
    )


@pytest.fixture
def client(new_client):
    return new_client()


@pytest.fixture(scope="module")
def detector():
    return Detector.open("toy-text", "cpu")


def ask(client, file, threshold=0.0, top=7):
    """Status text, file of the drawing, rows of the table and JSON of an uploaded file."""
    from gradio_client import handle_file

    status, drawn, clip, table, value, _ = client.predict(
        handle_file(str(file)), threshold, top, api_name="/predict"
    )
    return status["value"], drawn["value"] or clip["value"], table, value


@pytest.mark.slow
def test_an_upload_gives_the_detectors_result(client, detector, write_image):
    file = write_image("some picture.png", size=(200, 150))
    text, drawn, table, value = ask(client, file)
    expected = detector(file, threshold=0, top=7).to_dict()
    assert value == {**expected, "image": value["image"]} and "/" not in value["image"]
    assert text.startswith("7 interactions")
    with Image.open(drawn) as image:
        assert max(image.size) >= 512
    scores = [float(row[0]) for row in table["data"]]
    assert scores == pytest.approx([one["score"] for one in expected["interactions"]], abs=0.005)
    # The sliders work on the kept detections of this client's session.
    for threshold, top in ((0.0, 3), (0.9999, 7)):
        *_, value = client.predict(threshold, top, api_name="/top")
        expected = detector(file, threshold=threshold, top=top).to_dict()
        assert value["interactions"] == expected["interactions"]


@pytest.mark.slow
def test_visitors_have_pictures_and_sliders_of_their_own(new_client, detector, write_image):
    visitors = [(new_client(), write_image(f"{seed}.png", seed=seed)) for seed in range(2)]
    for visitor, file in visitors:
        ask(visitor, file)
    for top in (3, 5):
        for number, (visitor, file) in enumerate(visitors):
            *_, value = visitor.predict(0.0, top + number, api_name="/top")
            expected = detector(file, threshold=0, top=top + number).to_dict()
            assert value["interactions"] == expected["interactions"]


@pytest.mark.slow
def test_a_sentence_adds_an_action(client, new_client, cache, dataset_root, tmp_path):
    from teacher_cache.maintenance.add_prompts import create_prompts_file

    file, top = dataset_root / "images/test2015/toy_test_00000001.jpg", 100
    action, prompts = "pulling: umbrella, chair", tmp_path / "prompts.h5"

    def found(interactions):
        return [one for one in interactions if one["action"] == "pull umbrella"]

    assert found(ask(client, file, top=top)[3]["interactions"]) == []
    assert client.predict(action, api_name="/actions")["value"] == "Added: pull."
    create_prompts_file(cache, prompts, [action], device="cpu")
    expected = Detector.open("toy-text", "cpu", prompts=prompts)(file, threshold=0, top=top)
    # The page says that it holds for everyone.
    for visitor in (client, new_client()):
        *_, table, value = ask(visitor, file, top=top)
        assert found(value["interactions"])
        assert value["interactions"] == expected.to_dict()["interactions"]
        assert "★ pull umbrella" in [row[1] for row in table["data"]]
    assert client.predict("", api_name="/actions")["value"] == ""
    assert found(ask(client, file, top=top)[3]["interactions"]) == []


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


class Visitor:
    """Speaks HTTP to a page, as a browser or an attacker might."""

    def __init__(self, address):
        import httpx

        # The server closes connections after its own errors.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=address, timeout=60, limits=limits)
        self.name = uuid4().hex
        functions = self.http.get("/config").json()["dependencies"]
        (self.predict,) = [one["id"] for one in functions if one["api_name"] == "predict"]

    def upload(self, name, content):
        (stored,) = self.http.post("/gradio_api/upload", files={"files": (name, content)}).json()
        return {"path": stored, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def join(self, data, **changes):
        body = {"data": data, "fn_index": self.predict, "session_hash": self.name, **changes}
        return self.http.post("/gradio_api/queue/join", json=body).status_code

    def result(self):
        events = f"/gradio_api/queue/data?session_hash={self.name}"
        with self.http.stream("GET", events) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        (done,) = [json.loads(line) for line in lines if "process_completed" in line]
        return done


@pytest.fixture
def visitor(page):
    visitor = Visitor(page.address)
    yield visitor
    visitor.http.close()


@pytest.mark.slow
def test_a_failed_request_is_one_line_at_most(page, visitor):
    import httpx

    values = ([None, "x", 5], [None, 0, None], [], ["x", 0, 5], [{"path": "/etc/passwd"}, 0, 5])
    for data in values:
        assert visitor.join(data) == 200
        assert not visitor.result()["success"]
    lines = page.new_lines()
    assert len(lines) == len(values)
    assert all(line.startswith("warning: page: a request failed (") for line in lines)
    for changes in (
        {"fn_index": 99},
        {"fn_index": -(10**99)},
        {"session_hash": None},
        {"trigger_id": "x"},
    ):
        assert visitor.join([None, 0, 5], **changes) >= 400
    join, upload = "/gradio_api/queue/join", "/gradio_api/upload"
    for address, kind, content in (
        (join, "application/json", b"{"),
        (join, "application/json", b"[" * 100_000),
        (upload, "application/json", b"{}"),
        (upload, "multipart/form-data; boundary=x", b"no boundary"),
    ):
        # The page may answer and close before it has read everything.
        with suppress(httpx.TransportError):
            visitor.http.post(address, content=content, headers={"Content-Type": kind})
    with suppress(httpx.TransportError):
        visitor.http.get("/gradio_api/queue/data?session_hash=unknown")
    assert visitor.http.get("/static/" + "x" * 3000).status_code == 500
    assert page.new_lines() == []


@pytest.mark.slow
def test_a_visitor_that_leaves_ends_the_prediction_of_a_clip(page, visitor, write_clip):
    pytest.importorskip("trackers", reason="trackers is not installed")

    def is_predicting():
        return any(name.startswith(".long.mp4.") for name in page.uploads())

    def wait(is_wanted):
        end = time.monotonic() + 60
        while not is_wanted():
            assert time.monotonic() < end
            time.sleep(0.05)

    clip = visitor.upload("long.mp4", write_clip("long.mp4", 700).read_bytes())
    other = Visitor(page.address)
    port = int(page.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as heartbeat:
        request = f"GET /gradio_api/heartbeat/{visitor.name} HTTP/1.1\r\nHost: page\r\n\r\n"
        heartbeat.sendall(request.encode())
        assert b"200 OK" in heartbeat.recv(1000)
        assert visitor.join([clip, 0, 5]) == 200
        wait(is_predicting)
        assert [other.join([None, 0, 5]) for _ in range(MAX_QUEUE + 1)] == [200] * MAX_QUEUE + [503]
    other.http.close()
    wait(lambda: not is_predicting())
    (line,) = page.new_lines()
    assert "long.mp4: interrupted" in line
    # Of the visitor's clip only the upload is left.
    assert [name for name in page.uploads() if "long" in name] == ["long.mp4"]


@pytest.mark.slow
def test_no_path_of_a_request_is_read(visitor, tmp_path):
    secret, http = tmp_path / "secret.png", visitor.http
    Image.new("RGB", (64, 64)).save(secret)
    for path in (str(secret), f"{tmp_path}/x/../secret.png", "https://example.org/x.png"):
        meta = {"_type": "gradio.FileData"}
        for further in ({}, {"url": path}, {"url": f"file://{secret}"}, {"is_stream": True}):
            data = {"path": path, "orig_name": "x.png", "meta": meta, **further}
            assert visitor.join([data, 0, 5]) == 200
            done = visitor.result()
            if done["success"]:
                _, text, *_, value = done["output"]["data"]
                assert text["value"] == "expected an uploaded file, found another"
                assert value is None
            assert str(tmp_path) not in json.dumps(done)
        assert http.get(f"/gradio_api/file={path}").status_code in (403, 404)
    # Names of uploads lead nowhere else.
    stored = visitor.upload("../../escaped.png", secret.read_bytes())["path"]
    assert ".." not in stored and "eoid-page-" in stored
    assert http.get("/").status_code == 200


class Browser:
    """Headless Chromium, spoken to in the DevTools protocol over two pipes."""

    def __init__(self, folder):
        inside, self._out = os.pipe()
        self._in, outside = os.pipe()
        options = (
            "--headless --no-sandbox --disable-gpu --no-first-run --disable-extensions"
            " --disable-background-networking --disable-component-update --disable-sync"
            f" --remote-debugging-pipe --user-data-dir={folder}"
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
        self.wait("document.querySelector('input[type=file]') !== null")
        root = self("DOM.getDocument")["root"]["nodeId"]
        found = self("DOM.querySelector", nodeId=root, selector="input[type=file]")
        self("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(file)])

    def resize(self, width):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)


TEXT = "document.body.innerText"
SET_SLIDER = """
(() => {
  const slider = document.querySelectorAll("input[type=range]")[1];
  slider.value = 3;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
})()
"""
# The right edges of everything, in elements that the browser shows.
WIDEST = """
Math.max(...[...document.querySelectorAll("main *")].filter((one) => one.checkVisibility())
  .map((one) => one.getBoundingClientRect().right))
"""
# Over which elements the progress is shown.
OBSERVE = """
const covered = new Set(), kinds = [".prose", "textarea", "[type=range]", "*"];
new MutationObserver(() => {
  for (const one of document.querySelectorAll(".progress-text")) {
    if (one.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) {
      covered.add(kinds.find((kind) => one.closest(".block").querySelector(kind)));
    }
  }
}).observe(document.body, {childList: true, subtree: true});
"""
BARS = """
[...document.querySelectorAll("main *")]
  .filter((one) => getComputedStyle(one).borderLeftWidth === "4px").length
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_uploads_moves_a_slider_and_sees_the_result(
    page, bad_files, write_image, write_clip, tmp_path
):
    browser = Browser(tmp_path / "user")
    try:
        browser.resize(390)
        browser("Page.navigate", url=page.address)
        browser.wait("document.querySelector('input[type=file]') !== null")
        browser.evaluate(OBSERVE)
        # A click is lost until the page is ready.
        click = "document.querySelector('button.secondary').click()"
        browser.wait(f"({click}, covered.has('textarea'))")
        browser.upload(write_image("some.png", size=(200, 150)))
        browser.wait(f"{TEXT}.includes(' interactions with a score')")
        drawn = "document.querySelector('.drawn img')"
        browser.wait(f"{drawn} && {drawn}.naturalWidth >= 512")
        # A value that is set while the page draws the result may be replaced.
        browser.wait(f"{TEXT}.includes('3 interactions with a score') || {SET_SLIDER}")
        browser.upload(write_clip("some.mp4", 4))
        browser.wait(f"{TEXT}.includes('s)') && document.querySelector('.clip video') !== null")
        for width in (390, 1280):
            browser.resize(width)
            browser.wait(f"{WIDEST} <= {width}")
        browser.upload(bad_files / "text.jpg")
        browser.wait(f"{TEXT}.includes('text.jpg: expected a picture or a video')")
        assert browser.evaluate(drawn) is None
        assert browser.evaluate(BARS) == 1
        assert browser.evaluate("[...covered]") == ["textarea", "*"]
        outside = [
            url for url in browser.requests if not url.startswith((page.address, "data:", "blob:"))
        ]
        assert len(browser.requests) > 20 and outside == []
    finally:
        browser.close()


@pytest.mark.slow
def test_ctrl_c_ends_without_message_and_leaves_nothing(page):
    port = int(page.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        assert list(page.folder.glob("eoid-page-*"))
        page.process.send_signal(signal.SIGINT)
        assert page.process.wait(60) == 130
    assert page.new_lines() == [] and list(page.folder.glob("eoid-page-*")) == []
