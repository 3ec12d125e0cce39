"""
The page of a recording: in a real browser, as a user has it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from observe import seen_jobs

from parallel import Registry, gather, record, task, using
from parallel.observe.timeline import page

pytestmark = pytest.mark.browser

LONG = 30  # seconds; only a deadlock takes so long
COLUMNS = ["id", "task", "pool", "lane", "created", "queued", "started", "ended", "state", "attempt", "items", "parent"]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1400,1000"
)


def table(count: int) -> dict[str, Any]:
    """A recording of so many calls, on four threads and four processes, one of which dies; each hundredth fails."""
    rows: list[tuple[int, ...]] = []
    for number in range(count):
        turn, lane = divmod(number, 8)
        start = 1000 * turn + 100 * lane
        state = 1 if number % 100 == 99 else 0
        times = (start // 2, start // 2, start, start + 900)
        rows.append((number + 1, number % 5, lane // 4, lane, *times, state, 1, 1, -1))
    return {
        "version": 1,
        "title": "python <shop>.py",
        "python": "3.11.7",
        "cpus": 8,
        "began": 1.79e9,
        "duration": rows[-1][7] + 100,
        "tasks": [f"shop.images:{name}" for name in ("load", "resize", "store", "index", "mail")],
        "pools": [
            {"name": "io", "kind": "thread", "max_workers": 4},
            {"name": "heavy", "kind": "process", "max_workers": 4},
        ],
        "lanes": [
            {"name": f"worker {lane}", "pool": lane // 4, "process": 0, "began": -1, "ended": -1} for lane in range(8)
        ],
        "calls": dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)),
        "dropped": 0,
        "errors": {str(row): f"ValueError: </script> {row}" for row in range(99, count, 100)},
        "links": [[row - 5, row, "then"] for row in range(9, count, 10)],
        "marks": [{"at": 500, "kind": "worker_died", "lane": 6, "text": "killed by SIGKILL"}],
    }


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window, with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        one = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield one
        one.quit()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """
    Open a page, given its text, in the browser; at the end, nothing may have been complained of there.

    `$SCREENSHOTS` is the folder where a picture of it is kept then.
    """

    def show(text: str) -> Any:
        file = tmp_path / "run.html"
        file.write_text(text, encoding="utf-8")
        chromium.get(file.as_uri())
        return chromium

    yield show
    if "SCREENSHOTS" in os.environ:
        chromium.save_screenshot(str(Path(os.environ["SCREENSHOTS"], f"{request.node.name}.png")))
    assert chromium.get_log("browser") == []


def ask(browser: Any, what: str) -> Any:
    """Return what the page's own object says."""
    return browser.execute_script(f"return window.timeline.{what}")


def press(browser: Any, selector: str) -> None:
    """Click something on the page."""
    browser.find_element("css selector", selector).click()
    browser.execute_script("timeline.draw()")


def text_of(browser: Any, selector: str) -> str:
    """Return what is to be read there."""
    found: str = browser.find_element("css selector", selector).text
    return found


def click_call(browser: Any, row: int) -> None:
    """Click a call's bar, where it is on the screen."""
    from selenium.webdriver import ActionChains

    spot = ask(browser, f"spotOf({row})")
    canvas = browser.find_element("id", "lanes")
    x, y = spot["x"] - canvas.size["width"] / 2, spot["y"] - canvas.size["height"] / 2
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()


def test_a_real_run(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """All that was called is there: in threads and processes, in chains, failed, and with a worker that has died."""
    file = tmp_path / "real.html"
    with record(file), Registry({"pools": {"io": {"kind": "thread"}, "heavy": {"kind": "process"}}}) as one, using(one):
        gather(*(task(pool="io")(seen_jobs.double)(number) for number in range(20))).result(LONG)
        gather(*(task(pool="heavy")(seen_jobs.double)(number) for number in range(20))).result(LONG)
        chain = task(pool="io")(seen_jobs.double)(1).then(task(pool="heavy")(seen_jobs.double))
        assert chain.result(LONG) == 4
        assert task(pool="io")(seen_jobs.fail)(7).exception(LONG)
        assert task(pool="heavy")(seen_jobs.die)().exception(LONG)
    browser = opened(file.read_text(encoding="utf-8"))
    assert ask(browser, "bars") == 44
    assert "44\ncalls" in text_of(browser, "#figures")
    assert "2\nfailed" in text_of(browser, "#figures")
    assert "worker died" in text_of(browser, "#figures")
    assert "ValueError: no 7" in text_of(browser, "#failed")
    assert "SIGKILL" in text_of(browser, "#failed")


def test_nothing_was_called(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """The page says so, and is one all the same."""
    file = tmp_path / "empty.html"
    with record(file):
        pass
    browser = opened(file.read_text(encoding="utf-8"))
    assert ask(browser, "bars") == 0
    assert "0\ncalls" in text_of(browser, "#figures")


def test_bars_and_tables(opened: Callable[[str], Any]) -> None:
    """Each call is a bar, each task a line; a title and errors may hold whatever they like."""
    browser = opened(page(table(1000)))
    assert browser.title == "python <shop>.py | parallel"
    assert (ask(browser, "bars"), ask(browser, "drawn") > 0) == (1000, True)
    assert "ValueError: </script> 99" in text_of(browser, "#failed")
    assert text_of(browser, "#verdict").startswith("Too few workers: all 4 of pool 'heavy'")
    assert len(browser.find_elements("css selector", "#tasks tbody tr")) == 10  # five tasks in two pools
    assert len(browser.find_elements("css selector", "#slowest tbody tr")) == 50


def test_zoom(opened: Callable[[str], Any]) -> None:
    """In, out, and to the whole: by buttons, keys and the wheel."""
    from selenium.webdriver import ActionChains, Keys

    browser = opened(page(table(1000)))
    whole = ask(browser, "view")

    def span() -> float:
        browser.execute_script("timeline.draw()")
        first, last = ask(browser, "view")
        return float(last - first)

    press(browser, "#in")
    closer = span()
    assert closer == pytest.approx((whole[1] - whole[0]) * 0.6)
    drawn = ask(browser, "drawn")
    browser.find_element("tag name", "body").send_keys("+++")
    assert span() == pytest.approx(closer * 0.6**3)
    assert ask(browser, "drawn") < drawn
    press(browser, "#out")
    assert span() == pytest.approx(closer * 0.6**2)
    before = span()
    canvas = browser.find_element("id", "lanes")
    ActionChains(browser).key_down(Keys.CONTROL).scroll_from_origin(_origin(canvas), 0, -300).key_up(
        Keys.CONTROL
    ).perform()
    assert span() < before
    press(browser, "#fit")
    assert ask(browser, "view") == pytest.approx(whole)


def _origin(element: Any) -> Any:
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    return ScrollOrigin.from_element(element)


def test_search(opened: Callable[[str], Any]) -> None:
    """For a task, an error, a state or a call; Enter goes from one to the next, Escape ends it."""
    from selenium.webdriver import Keys

    browser = opened(page(table(1000)))
    field = browser.find_element("id", "search")
    field.send_keys("resize")
    assert text_of(browser, "#found") == "200 of 1,000 calls"
    field.send_keys(Keys.ENTER)
    assert ask(browser, "selected") == 1
    assert "shop.images:resize" in text_of(browser, "#details")
    field.send_keys(Keys.ENTER)
    assert ask(browser, "selected") == 6
    field.clear()
    field.send_keys("resize", Keys.SHIFT, Keys.ENTER)
    assert ask(browser, "selected") == 996, "the last one"
    field.send_keys(Keys.NULL)
    for text, count in [("</SCRIPT> 199", 1), ("failed", 10), ("1000", 1), ("nothing of that kind", 0)]:
        field.clear()
        field.send_keys(text)
        assert ask(browser, "matches") == count, text
    field.send_keys(Keys.ESCAPE)
    assert ask(browser, "matches") is None


def test_a_call(opened: Callable[[str], Any]) -> None:
    """Who clicks one reads its facts, and goes on along its chain."""
    browser = opened(page(table(100)))
    click_call(browser, 9)
    assert ask(browser, "selected") == 9
    details = text_of(browser, "#details")
    assert "shop.images:mail" in details
    assert "ran\n900 µs" in details
    press(browser, "#details button.link")
    assert ask(browser, "selected") == 4
    assert "is followed by" in text_of(browser, "#details")
    press(browser, "#slowest tbody tr")
    assert ask(browser, "selected") not in (-1, 4)


def test_light_and_dark(opened: Callable[[str], Any]) -> None:
    """A button changes from one to the other."""
    browser = opened(page(table(100)))
    colours = set()
    for _ in range(2):
        body = browser.find_element("tag name", "body")
        colours.add(body.value_of_css_property("background-color"))
        press(browser, "#theme")
    assert len(colours) == 2


def test_many_calls(opened: Callable[[str], Any]) -> None:
    """A hundred thousand are there within three seconds."""
    browser = opened(page(table(100_000)))
    assert ask(browser, "bars") == 100_000
    assert ask(browser, "readyAfter") < 3000
    assert ask(browser, "drawn") < 20_000, "what is in the same pixel is drawn once"


def test_it_loads_nothing(opened: Callable[[str], Any]) -> None:
    """No address is in it, and the browser would load none."""
    text = page(table(10))
    assert "http://" not in text
    assert "https://" not in text
    browser = opened(text)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_threads_are_named(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """A lane has the name of its thread."""
    file = tmp_path / "named.html"
    with record(file), Registry({"pools": {"io": {"kind": "thread", "max_workers": 1}}}) as one, using(one):
        name = task(pool="io")(threading.current_thread)().result(LONG).name
    browser = opened(file.read_text(encoding="utf-8"))
    assert name in text_of(browser, "#slowest")
