"""Replays of clusters with a network: what is said of a gang is what happens, and the page shows it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tapes

from flextopo.train.compare import open_episode
from flextopo.train.config import ComparisonConfig
from flextopo.train.replay import Recording, differences, record
from flextopo.train.replay_decision import Choice, Shown, ShownSeat, describe
from flextopo.train.replay_page import GANG_COLUMNS, SHOWN_COLUMNS, page_data, write_replay

GANGS = ComparisonConfig(servers="16*a100@leaf4", workload=replace(tapes.BUSY, gang_share=0.6))
PLAIN = ComparisonConfig(servers="4*a100", workload=tapes.BUSY)
SEED = 1_000_003


@pytest.mark.parametrize("name", ["greedy-cost", "requeue-aware"])
def test_what_is_said_of_a_gang_happens(name: str) -> None:
    sim, selector = open_episode(GANGS, name, SEED)
    gangs = 0
    while (pod := sim.next_decision()) is not None:
        taken = selector.select(sim.state, pod)
        choice, _ = describe(selector, sim.state, pod, taken)
        before = sim.events.account[0].copy()
        sim.apply(taken)
        if taken is None or not taken.seats or choice.chosen is None:
            continue
        gangs += 1
        shown, live = choice.shown[choice.chosen], sim.state.arrays.live
        assert [seat.pod for seat in shown.seats] == list(sim.state.gang(pod))
        for seat in shown.seats:
            assert live[seat.pod]["node"] == seat.node
            assert live[seat.pod]["gpu_mask"] == seat.gpu_mask
            assert live[seat.pod]["level"] == seat.level
            assert (live[seat.pod]["deficit"] > 0) == (seat.below > 0)
        assert shown.below == max(seat.below for seat in shown.seats)
        assert shown.nodes == choice.nodes == tuple(seat.node for seat in taken.seats)
        assert len(shown.victim_nodes) == len(shown.victims) + len(shown.stopped)
        assert set(shown.victim_nodes[: len(shown.victims)]) <= set(shown.nodes)
        discarded = sim.events.account[0]["discarded"] - before["discarded"]
        assert discarded == shown.discarded_gpu_s
        assert sum(other.nodes == shown.nodes for other in choice.shown) >= 1
    assert gangs > 2


def test_only_pages_with_a_network_have_more_columns() -> None:
    for config, more in ((PLAIN, ()), (GANGS, GANG_COLUMNS)):
        sim, selector = open_episode(config, "greedy-cost", SEED)
        data = page_data(sim, [record(sim, selector)], [])
        assert data["shown_columns"] == SHOWN_COLUMNS + more
        assert ("network" in data) == bool(more)
        assert ("required_tier" in data["pods"]) == bool(more)
        assert bool(data["scene"]["leaves"]) == bool(more)
        rows = [row for choice in data["sides"][0]["choices"] for row in choice["shown"]]
        assert {len(row) for row in rows} == {len(data["shown_columns"])}


def test_gangs_on_other_servers_are_a_difference() -> None:
    def made(*nodes: int) -> Recording:
        seats = tuple(ShownSeat(i, node, 1, 0, 0) for i, node in enumerate(nodes))
        shown = Shown(nodes[0], (9,), (), 1, 0, 0, 1.0, 1, None, seats=seats)
        return Recording("a", choices={(5, 0): Choice(7, 0, 1, (shown,), 0, None, "")}, frames=[])

    def about(a: Recording, b: Recording) -> list[str]:
        for recording in (a, b):
            recording.frames = record_frames()
        return [difference.about for difference in differences(a, b)]

    assert about(made(0, 1), made(0, 1)) == []
    assert about(made(0, 1), made(0, 2)) == ["different nodes"]


def record_frames() -> list[Any]:
    from flextopo.train.replay import Frame

    return [Frame(5, 0, (), (0.0,) * 5, 0, 0)]


def test_the_page_shows_gangs(tmp_path: Path) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip(f"{chromium} is missing: apt-get install chromium")
    written = write_replay(GANGS, ("greedy-cost",), SEED, tmp_path / "gangs.html")
    (recording,) = written.recordings
    moment, choice = next(
        (moment, choice)
        for moment, choice in sorted(recording.choices.items())
        if choice.chosen is not None and choice.shown[choice.chosen].seats
    )
    assert choice.chosen is not None
    shown, wrong = choice.shown[choice.chosen], []
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(chromium), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(written.path.as_uri())
        page.fill("#time", str(moment[0]))
        while page.locator("table.seats").count() == 0 or page.locator(".decision.past").count():
            page.keyboard.press("ArrowRight")
        text = page.inner_text(".decision")
        servers = page.locator("table.seats tbody th").all_inner_texts()
        assert "fits nowhere as a whole" in text
        assert "within leaf" in text or "on one server" in text or "within block" in text
        assert "edge and number: one gang" in page.inner_text("#legend")
        assert all(server.isdigit() for server in servers)
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
        browser.close()
    assert wrong == []
    assert shown.seats
    data = written.path.read_text().split('id="recording">')[1].split("</script>")[0]
    assert json.loads(data)["network"]["leaf_names"] == [f"leaf {i}" for i in range(4)]
