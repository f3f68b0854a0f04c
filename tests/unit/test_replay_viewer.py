"""The replay page in headless Chromium: it loads, plays, jumps, and shows what was recorded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tapes

from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.envs.scene import LEGEND, LETTERS, THEMES, Scene, fleet_scene
from flextopo.train.compare import check
from flextopo.train.config import ComparisonConfig
from flextopo.train.replay import Recording
from flextopo.train.replay_page import Written, write_replay

browsers = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'flextopo[dev]'"
)
CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium", allow_module_level=True)

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONFIG = ComparisonConfig(servers="2*rtx4090,2*a100", workload=tapes.BUSY)
NAMES = ("kubernetes", "greedy-cost")
SEED = 1_000_003

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_replay(CONFIG, NAMES, SEED, tmp_path_factory.mktemp("page") / "replay.html")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browsers.sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path, written: Written) -> Iterator[Open]:
    """Open a page in a browser of its own; what it says or asks for fails the test."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_(
        path: Path = written.path, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> Any:
        context = chromium.launch_persistent_context(
            str(tmp_path / f"profile{len(contexts)}"),
            executable_path=str(CHROMIUM),
            args=ARGUMENTS,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        )
        contexts.append(context)
        page = context.pages[0]
        address = path.as_uri()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url == address else wrong.append(f"request {r.url}"))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def clock(time_s: int) -> str:
    hours, rest = divmod(time_s, 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def shown_clock(page: Any) -> str:
    return str(page.inner_text("#clock"))


def scrub(page: Any, time_s: int) -> None:
    page.fill("#time", str(time_s))


def wait_until(page: Any, condition: str) -> None:
    """Wait for a condition; the page's own security policy forbids playwright's way to."""
    look = f"const look = () => ({condition}) ? done() : requestAnimationFrame(look)"
    page.evaluate(f"new Promise(done => {{ {look}; look(); }})")


def held(recording: Recording, time_s: float, rank: float = math.inf) -> tuple[Any, Any]:
    """Return pods and uses of all GPUs at a moment, played from the frames."""
    pods, uses = np.full(32, -1), np.zeros(32, int)
    for frame in recording.frames:
        if frame.moment <= (time_s, rank):
            for gpu, pod, use in frame.changes:
                pods[gpu], uses[gpu] = pod, use
    return pods, uses


def test_it_loads(open_page: Open, written: Written) -> None:
    page = open_page()
    assert page.title() == "kubernetes and greedy-cost: flextopo replay"
    assert page.locator("main section").count() == 2
    assert page.locator("main h2").all_inner_texts() == list(NAMES)
    assert shown_clock(page) == "00:00:00"
    assert page.inner_text("#status") == f"difference 0 of {len(written.found)}"
    assert page.locator("#legend li").count() == len(LEGEND) + 1
    text = page.inner_text("body")
    for words in (CONFIG.servers, str(SEED), "previous, next difference", *LOSS_TERMS):
        assert words in text
    for canvas in page.locator("canvas").all():
        assert canvas.get_attribute("aria-label")
        colours = canvas.evaluate(
            "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height)"
            ".data.buffer)).size"
        )
        assert colours > 3


def test_states_are_those_recorded_wherever_it_jumps(open_page: Open, written: Written) -> None:
    page = open_page()
    times = random.Random(0).choices(range(86_401), k=25)
    for time_s in (*times, 86_400, 0):
        scrub(page, time_s)
        assert shown_clock(page) == clock(time_s).replace("24:00:00", "day 1, 00:00:00")
        labels = [c.get_attribute("aria-label") for c in page.locator(".cluster canvas").all()]
        for label, recording in zip(labels, written.recordings, strict=True):
            free = int((held(recording, time_s)[0] < 0).sum())
            frame = [frame for frame in recording.frames if frame.time_s <= time_s][-1]
            assert f"{free} of 32 GPUs free" in label
            assert f"online {frame.online_wait}, batch {frame.batch_wait}" in label


def layout(scene: Scene, width: float, height: float) -> tuple[int, float]:
    """Return columns and scale of a canvas of that size."""
    wide, high = scene.tile_width + scene.gap, scene.tile_height + scene.gap
    for columns in range(1, len(scene.node_model) + 1):
        rows = math.ceil(len(scene.node_model) / columns)
        scale = width / (columns * wide - scene.gap)
        if abs(scale - height / (rows * high - scene.gap)) < 0.01 * scale:
            return columns, scale
    raise AssertionError((width, height))


PIXELS = """(canvas, points) => {
  const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return points.map(([x, y]) => {
    const at = 4 * (x + y * canvas.width);
    return [...all.slice(at, at + 3)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pixels_are_the_scenes(open_page: Open, written: Written, scheme: str) -> None:
    page = open_page(scheme=scheme)
    page.keyboard.press("n")
    difference = written.found[0]
    page.keyboard.press(".")  # away from a decision, whose marks cover cells
    while page.locator(".decision:not(.past)").count():
        page.keyboard.press(".")
    time_s = int(page.input_value("#time"))
    assert time_s >= difference.moment[0]
    scene = fleet_scene(check(CONFIG))
    for canvas, recording in zip(
        page.locator(".cluster canvas").all(), written.recordings, strict=True
    ):
        size = canvas.evaluate("c => [c.width, c.height]")
        columns, scale = layout(scene, *size)
        points = []
        for node, model in enumerate(scene.node_model):
            left, top = (x - scene.gap for x in scene.origin(node, columns))
            for x, y, *_ in scene.tiles[model].gpus:
                points.append([round((left + x + 2) * scale), round((top + y + 2) * scale)])
        pixels = canvas.evaluate(PIXELS, points)
        for pixel, use in zip(pixels, held(recording, time_s)[1], strict=True):
            assert tuple(pixel) == getattr(LEGEND[LETTERS[use]], scheme)


def test_keys_jump_to_every_difference(open_page: Open, written: Written) -> None:
    page = open_page()
    count = len(written.found)
    assert count > 3
    for i, difference in enumerate(written.found):
        page.keyboard.press("n")
        assert shown_clock(page) == clock(difference.moment[0])
        assert page.inner_text("#status") == f"difference {i + 1} of {count}: {difference.about}"
        for at, recording in enumerate(written.recordings):
            choice = recording.choices.get(difference.moment)
            decision = page.locator(".decision").nth(at)
            if choice is None:
                continue
            assert choice.reason in decision.inner_text()
            assert f"online/{choice.pod} fits nowhere" in decision.inner_text()
            if choice.chosen is not None:
                shown = choice.shown[choice.chosen]
                row = decision.locator("tr.taken").inner_text().split()
                assert row[0] == str(shown.node)
                assert f"{shown.cost_gpu_s / 3600:.2f}" in row
    page.keyboard.press("p")
    assert shown_clock(page) == clock(written.found[-2].moment[0])
    page.click("#next-difference")
    assert shown_clock(page) == clock(written.found[-1].moment[0])


def test_arrows_walk_the_decisions(open_page: Open, written: Written) -> None:
    page = open_page()
    moments = sorted({m for recording in written.recordings for m in recording.choices})
    for moment in moments[:6]:
        page.keyboard.press("ArrowRight")
        assert shown_clock(page) == clock(moment[0])
        assert page.locator(".decision:not(.past)").count() > 0
    page.keyboard.press("ArrowLeft")
    assert shown_clock(page) == clock(moments[4][0])
    before = page.inner_text(".total")
    page.keyboard.press("End")
    assert shown_clock(page) == "day 1, 00:00:00"
    assert page.inner_text(".total") != before
    page.keyboard.press("Home")
    assert shown_clock(page) == "00:00:00"


def test_the_account_ends_at_the_metrics(open_page: Open, written: Written) -> None:
    page = open_page()
    page.keyboard.press("End")
    for at, recording in enumerate(written.recordings):
        side = page.locator("main section").nth(at)
        total = sum(recording.frames[-1].loss_gpu_s) / 3600
        assert side.locator(".total").inner_text().startswith(f"{total:.2f} GPU-h lost")
        terms = [float(text) for text in side.locator(".figure").all_inner_texts()]
        assert terms == pytest.approx([x / 3600 for x in recording.frames[-1].loss_gpu_s], abs=0.01)


def test_it_plays_and_pauses(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("+")
    assert page.input_value("#speed") == "3600"
    page.keyboard.press("-")
    assert page.input_value("#speed") == "900"
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Pause"
    wait_until(page, "Number(document.getElementById('time').value) > 60")
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Play"
    stands = shown_clock(page)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert shown_clock(page) == stands
    page.select_option("#speed", "14400")
    scrub(page, 86_000)
    page.click("#play")
    wait_until(page, "document.getElementById('play').textContent === 'Play'")
    assert shown_clock(page) == "day 1, 00:00:00"


def test_a_drag_on_the_strip_scrubs(open_page: Open) -> None:
    page = open_page()
    box = page.locator("#strip").bounding_box()
    middle = box["x"] + box["width"] / 2
    page.mouse.click(middle, box["y"] + 20)
    assert abs(int(page.input_value("#time")) - 43_200) <= 86_400 / box["width"]


def test_the_focus_is_visible_and_buttons_have_names(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("n")
    for _ in range(8):
        page.keyboard.press("Tab")
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none"
    for button in page.locator("button").all():
        assert button.get_attribute("aria-label") or button.inner_text()
    page.focus("#next-difference")
    page.keyboard.press("Space")  # presses the button; does not play as well
    assert page.inner_text("#play") == "Play"
    assert "difference 2 of" in page.inner_text("#status")


def test_a_gpu_under_the_pointer_is_explained(open_page: Open, written: Written) -> None:
    page = open_page()
    page.keyboard.press("End")
    box = page.locator(".cluster canvas").first.bounding_box()
    fleet = check(CONFIG)
    scene, numa = fleet_scene(fleet), fleet.models[0].gpu_numa[0]
    _, scale = layout(scene, box["width"], box["height"])
    x, y, w, h = scene.tiles[0].gpus[0]
    page.mouse.move(box["x"] + (x + w / 2) * scale, box["y"] + (y + h / 2) * scale)
    pod = int(held(written.recordings[0], 86_400)[0][0])
    said = page.inner_text(".caption >> nth=0")
    assert said.startswith(f"node 0 (rtx4090), socket 0, NUMA node {numa}, GPU 0: ")
    assert ("free" if pod < 0 else f"/{pod}, ") in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window_in_both_colour_schemes(
    open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(width=width, height=844, scheme=scheme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb({}, {}, {})".format(*THEMES[scheme]["page"])
    for key in ("", "n", "n", "n", "End"):
        if key:
            page.keyboard.press(key)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#status").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_one_selector_alone(open_page: Open, tmp_path: Path) -> None:
    alone = write_replay(CONFIG, ("godel",), SEED, tmp_path / "one" / "alone.html")
    assert alone.found == ()
    page = open_page(alone.path)
    assert page.locator("main section").count() == 1
    assert not page.locator("#next-difference").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("tr.taken").count() == 1
    page.keyboard.press("n")
    assert page.inner_text("#status") == ""


def test_a_day_of_100_servers_is_light(
    open_page: Open, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = ComparisonConfig(servers="100*rtx4090")
    large = write_replay(config, NAMES, 2_000_004, tmp_path / "large.html")
    assert large.size_bytes == large.path.stat().st_size < 5_000_000
    assert len(large.recordings[0].frames) > 1000
    page = open_page(large.path)
    wait_until(page, "performance.getEntriesByName('first-contentful-paint').length > 0")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    record_property("first_paint_ms", paint)
    print(f"first paint after {paint:.0f} ms, {large.size_bytes / 1e6:.2f} MB")
