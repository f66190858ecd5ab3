"""The report in a real browser: Debian's Chromium, headless."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from evaluation.report.charts.palette import DARK, LIGHT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-extensions"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --enable-logging=stderr --hide-scrollbars --virtual-time-budget=10000 --dump-dom"
)
# The minimum width of Chromium's windows is 500, so a phone's page is in a frame and reports to it.
NARROWEST_WINDOW = 500
FRAME = """<!doctype html><title>frame</title><style>body {{ margin: 0 }}</style>
<script>addEventListener("message", (event) => {{
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = event.data;
  document.body.append(out);
}});</script>
<iframe src="{page}" style="width: {width}px; height: 800px; border: 0"></iframe>
"""
# Runs on the page when it is loaded and reports what it found.
PROBE = """
<script>
addEventListener("load", () => {
  const found = {};
  const root = document.documentElement;
  const shown = (element) => element.getClientRects().length > 0;
  found.width = innerWidth;
  found.overflow = root.scrollWidth - innerWidth;
  // Elements beyond the window have to be inside an element that scrolls.
  found.outside = [...document.body.querySelectorAll("*")]
    .filter((one) => shown(one) && one.getBoundingClientRect().right > innerWidth + 1)
    .filter((one) => !one.closest(".scroll, .chart.large, .gallery-images"))
    .map((one) => one.outerHTML.slice(0, 120));
  found.images = [...document.images].map((image) => image.complete && image.naturalWidth > 0);
  found.charts = [...document.querySelectorAll(".chart svg")]
    .map((svg) => svg.getBoundingClientRect().width);
  found.smallest = Math.min(...[...document.querySelectorAll("p, td, th, dd, li, figcaption")]
    .filter(shown).map((one) => parseFloat(getComputedStyle(one).fontSize)));
  found.ground = getComputedStyle(document.body).backgroundColor;
  const bar = document.querySelector(".chart [style*='--unseen']");
  found.unseen = bar && getComputedStyle(bar).fill;
  const table = document.querySelector("table.sortable");
  const rows = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const column = (place) => rows().map((row) => row.cells[place].textContent);
  table.closest("details").open = true;
  found.all = rows().length;
  const heads = table.tHead.querySelectorAll("button");
  heads[0].click();
  found.byName = column(0);
  heads[heads.length - 1].click();
  found.falling = column(heads.length - 1);
  heads[heads.length - 1].click();
  found.rising = column(heads.length - 1);
  found.sort = [...table.tHead.rows[0].cells].map((cell) => cell.getAttribute("aria-sort"));
  const input = document.querySelector(".search input");
  const type = (text) => {
    input.value = text;
    input.dispatchEvent(new Event("input"));
    return column(0);
  };
  found.found = type("unseen ki");
  found.counted = document.querySelector(".search output").textContent;
  found.none = type("unicorn").length;
  type("");
  const result = JSON.stringify(found);
  if (parent !== window) {
    parent.postMessage(result, "*");
  } else {
    const out = document.createElement("pre");
    out.id = "probe";
    out.textContent = result;
    document.body.append(out);
  }
});
</script>
"""


def probe_page(page, folder, width, *options):
    """The result of the probe on a page, and the browser's log."""
    probed = folder / "probed.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    opened = probed
    if width < NARROWEST_WINDOW:
        opened = folder / "frame.html"
        opened.write_text(FRAME.format(page=probed.as_uri(), width=width))
    user, size = f"--user-data-dir={folder / 'user'}", f"--window-size={width},900"
    done = subprocess.run(
        [CHROMIUM, *OPTIONS.split(), *options, user, size, opened.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (text,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(unescape(text)), done.stderr


def rgb(colour):
    return f"rgb({', '.join(str(value) for value in bytes.fromhex(colour[1:]))})"


@pytest.fixture(scope="module", params=[390, 1280])
def seen(request, report, tmp_path_factory):
    return *probe_page(report, tmp_path_factory.mktemp("browser"), request.param), request.param


def test_every_image_loads_and_nothing_is_wider_than_the_window(seen, report):
    found, log, width = seen
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["outside"] == []
    assert len(found["images"]) == report.read_text().count("<img") and all(found["images"])
    assert "CONSOLE" not in log
    # Panels fill a phone's window, or a third of a wide one.
    assert min(found["charts"]) > 300 and max(found["charts"]) < 460
    assert found["smallest"] >= 12
    assert (found["ground"], found["unseen"]) == (rgb(LIGHT["page"]), rgb(LIGHT["unseen"]))


def test_the_long_table_can_be_sorted_and_searched(seen, toy):
    found, _, _ = seen
    names = [name.removeprefix("★ ") for name in found["byName"]]
    assert names == sorted(names) and len(names) == found["all"] > 20
    for order, sign in (("falling", -1), ("rising", 1)):
        numbers = [float(value) for value in found[order] if value != "-"]
        assert numbers == sorted(numbers, key=lambda value: sign * value) and len(numbers) > 20
    assert found["sort"][-1] == "ascending" and set(found["sort"][:-1]) == {None}
    unseen = [name for name in found["byName"] if name.startswith("★ kick")]
    assert sorted(found["found"]) == sorted(unseen) and unseen
    assert found["counted"] == f"{len(unseen)} of {found['all']}"
    assert found["none"] == 0


def test_dark_windows_have_dark_pages_and_charts(report, tmp_path):
    dark = "--blink-settings=preferredColorScheme=0"
    found, log = probe_page(report, tmp_path, 1280, dark)
    assert (found["ground"], found["unseen"]) == (rgb(DARK["page"]), rgb(DARK["unseen"]))
    assert "CONSOLE" not in log
