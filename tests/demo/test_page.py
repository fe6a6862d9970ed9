# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: upload, translate, download, what cannot be used, two visitors at once.

Needs gradio and selenium, and chromium with its driver; skips, saying what lacks.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import setups
from bad_uploads import bad_uploads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of gradio and selenium are not ours
]
PATIENCE = float(os.environ.get("CONTOURDIFF_PATIENCE", 120))  # seconds
UPLOAD_MB = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what: Callable[[], object]):
    """The first true value of what may take a while."""
    end = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.1)
    return value


class Served(NamedTuple):
    """A page that the command serves.

    Attributes:
      run: the folder of what it offers.
      place: of all that it writes.
    """

    url: str
    run: Path
    place: Path

    @property
    def sessions(self) -> list[Path]:
        """Folders of visitors."""
        return [path for path in self.place.glob(".*.contourdiff_demo/*") if path.is_dir()]


@pytest.fixture(scope="module")
def served(store_path, tmp_path_factory) -> Iterator[Served]:
    """The command with a small network; SIGTERM ends it, and leaves nothing of its folder."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("no gradio; pip install '.[demo-test]'")
    small = {"channels": (8, 16), "attention": (False, True), "head_width": 8, "groups": 4}
    run = setups.drawing(tmp_path_factory.mktemp("runs") / "mr", store_path, **small)
    place, url = tmp_path_factory.mktemp("place"), f"http://127.0.0.1:{(port := free_port())}"
    command = ["demo", f"--run={run}", f"--port={port}", f"--upload_mb={UPLOAD_MB}"]
    with subprocess.Popen(
        [sys.executable, "-m", "contourdiff_jax", *command],
        env=os.environ | {"TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout.readline().startswith(url)
            yield Served(url, run, place)
        finally:
            server.terminate()
        assert server.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not any("contourdiff" in path.name or "gradio" in path.name for path in place.iterdir())


@pytest.fixture
def visit(served) -> Iterator[Callable[[], "Visitor"]]:
    """() -> a new visitor, with a browser of their own."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("no selenium; pip install '.[demo-test]'")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("no chromium with chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    visitors = []

    def come() -> Visitor:
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1100"):
            options.add_argument(f"--{argument}")
        visitors.append(Visitor(webdriver.Chrome(options, Service(programs[1]))))
        visitors[-1].browser.get(served.url)
        visitors[-1].reads("Give an image")
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.browser.quit()


class Visitor(NamedTuple):
    """A browser, and what someone does with it."""

    browser: object

    def find(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    @property
    def status(self) -> str:
        areas = self.find("#status textarea")
        return areas[0].get_property("value") if areas else ""

    def reads(self, words: str) -> str:
        """The status once it holds these words."""
        return eventually(lambda: self.status if words in self.status else "")

    def send(self, path: Path) -> None:
        if dismissed := self.find(
            "button[aria-label='Remove this file'], button[aria-label='Clear']"
        ):
            dismissed[0].click()
            self.reads("Give an image")
        eventually(lambda: self.find("input[type=file]"))[0].send_keys(str(path))

    def choose(self, preset: str) -> None:
        self.find(f"input[type=radio][value={preset}]")[0].click()

    def translate(self) -> None:
        def enabled():
            return [b for b in self.find("button.primary") if b.is_enabled()]

        eventually(enabled)[0].click()

    def links(self) -> list[str]:
        found = (link.get_attribute("href") for link in self.find("a[download]"))
        return [link for link in found if link and "/out/" in link]

    def asked_for(self) -> set[str]:
        """Every host that the browser has asked for something."""
        logged = (
            json.loads(line["message"])["message"] for line in self.browser.get_log("performance")
        )
        urls = (
            m["params"]["request"]["url"]
            for m in logged
            if m["method"] == "Network.requestWillBeSent"
        )
        return {re.sub(r"^(\w+://[^/]*).*", r"\1", url) for url in urls if url.startswith("http")}


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
        return reply.read()


def test_from_upload_to_download(served, visit, head, tmp_path):
    """What is downloaded is what the command writes; nothing is asked of other hosts."""
    visitor = visit()
    visitor.send(head)
    assert "ct" in visitor.reads("look like")
    visitor.choose("ct")
    visitor.reads("ready to translate")
    visitor.translate()
    visitor.reads("Translated")
    links = eventually(visitor.links)
    (image,) = (link for link in links if link.endswith(".nii.gz"))
    (sidecar,) = (link for link in links if link.endswith(".json"))
    setups.translate(served.run, head, tmp_path / "out", preset="ct")
    (written,) = (tmp_path / "out").glob("*.nii.gz")
    assert fetched(image) == written.read_bytes()
    assert "not for diagnosis" in json.loads(fetched(sidecar))["notice"]
    assert visitor.find("#notice")[0].text.startswith("Synthetic images, not for diagnosis.")
    assert visitor.find("#wipe img")
    assert visitor.asked_for() == {served.url}
    visitor.browser.quit()
    eventually(lambda: not served.sessions)
    with pytest.raises(urllib.error.HTTPError):
        fetched(image)


def test_bad_uploads_are_told_on_the_page(visit, tmp_path):
    """Some of each kind; what is refused leaves no picture, and a good one is taken after it."""
    (tmp_path / "made").mkdir()
    given = bad_uploads(tmp_path / "made")
    visitor = visit()
    visitor.choose("ct")
    for name in ("text.nii.gz", "slip.zip", "bomb.zip", "nan.nii", "rtstruct.zip", "setup.exe"):
        data, word = given[name]
        (tmp_path / name).write_bytes(data)
        visitor.send(tmp_path / name)
        line = visitor.reads(word)
        assert "\n" not in line and str(tmp_path) not in line and "/tmp" not in line
        assert not visitor.find("button.primary")[0].is_enabled()


def test_two_visitors_at_once(served, visit, head):
    """Both finish; each has links of their own, and one's folder stays when the other has gone."""
    first, second = visit(), visit()
    for visitor in (first, second):
        visitor.choose("ct")
        visitor.send(head)
    for visitor in (first, second):
        visitor.reads("ready to translate")
        visitor.translate()
    for visitor in (first, second):
        visitor.reads("Translated")
    ours, theirs = (set(eventually(visitor.links)) for visitor in (first, second))
    assert len(ours) == len(theirs) == 2 and not ours & theirs
    first.browser.quit()
    eventually(lambda: not any(Path(link.partition("file=")[2]).exists() for link in ours))
    assert all(fetched(link) for link in theirs)
