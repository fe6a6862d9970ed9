# SPDX-License-Identifier: Apache-2.0
"""Commands that signals end at random moments: nothing half made is left, and they go on."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from contourdiff_jax import cli
from contourdiff_jax.runtime import disk, signals

COMMAND = [sys.executable, "-m", "contourdiff_jax"]
TASKS = {
    "phantoms": "--out={out} --subjects=4 --size=48 --slices=6",
    "inspect": "{data}/train_mr --out={out}",
    "prepare": "--source={data}/train_mr --out={out} --preset=mr",
    "contours": "--store={store} --out={out}",
    "train": "--store={store} --workdir={out} --config={tiny_config} --config.train.images=160",
    "translate": "--run={run} --source={data}/test_ct --out={out} --preset=ct --steps=40",
    "evaluate": "--translated={translated} --truth={data}/test_mr --out={out}",
    "segment": "--train_images={data}/train_mr --train_labels={data}/train_mr_labels --preset=mr "
    "--test_images={data}/test_mr --test_labels={data}/test_labels --images=64 --seeds=2 "
    "--classes=1,3 --out={out}",
    "report": "{run} --out={out}/report.html",
    "card": "--run={run} --out={out}/card.md",
    "export": "--run={plain} --out={out}",
    "import": "--checkpoint={exported} --workdir={out}",
}
FIXTURES = {"data": "phantom_data", "store": "store_path", "run": "trained"}
MADE_BY = {"translated": "translate", "plain": "train", "exported": "export"}
# It fetches from the network; it does what the others do; it has done before one can interrupt it;
# tests/demo/test_page.py ends it.
ELSEWHERE = {"weights", "quickstart", "completion", "demo"}
FAST = {"phantoms", "prepare"}


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory) -> Path:
    """A configuration file of a small network that other programs know, too."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(
        "from contourdiff_jax import config\n\n\n"
        "def get_config():\n"
        "    ours = config.default()\n"
        "    ours.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)\n"
        "    ours.model.resample_convolution = True\n"
        "    ours.train.update(images=16, batch=4, log=4, evaluate=0, sample=0, checkpoint=8)\n"
        "    return ours\n"
    )
    return path


class World(dict):
    """What commands read, by its name in TASKS, made when it is asked for."""

    def __missing__(self, name: str) -> Path:
        if name in MADE_BY:
            path = self["made"].mktemp(name) / "out"
            argv = arguments(MADE_BY[name], self, path)
            subprocess.run(argv, check=True, capture_output=True)
        else:
            path = self["request"].getfixturevalue(FIXTURES.get(name, name))
        return self.setdefault(name, path)


@pytest.fixture(scope="module")
def world(request, tmp_path_factory) -> World:
    return World(request=request, made=tmp_path_factory)


def arguments(name: str, world: World, out: Path) -> list[str]:
    return [*COMMAND, name, *TASKS[name].replace("{out}", str(out)).format_map(world).split()]


def begun(process: subprocess.Popen) -> bool:
    """Whether it handles signals, as the status of a process says on Linux."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)


def ended(argv: list[str], number: int | None, delay: float) -> SimpleNamespace:
    """What becomes of a process that is sent a signal so many seconds after it has begun."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            while it.poll() is None and not begun(it):
                time.sleep(0.005)
            start = time.monotonic()
            if number is not None:
                time.sleep(delay)
                it.send_signal(number)
            _, said = it.communicate(timeout=200)
        finally:
            it.kill()
    return SimpleNamespace(status=it.returncode, said=said, seconds=time.monotonic() - start)


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if disk.is_partial(path) or path.name == ".lock"]


def test_every_command_is_interrupted_here():
    assert TASKS.keys() | ELSEWHERE == cli.COMMANDS.keys()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in TASKS]
)
def test_what_is_interrupted_leaves_nothing_half_made_and_goes_on(name, world, tmp_path):
    generator = np.random.default_rng(sorted(TASKS).index(name))
    whole = ended(arguments(name, world, tmp_path / "whole" / "out"), None, 0)
    assert whole.status == 0, whole.said
    argv = arguments(name, world, tmp_path / "cut" / "out")
    for number in (*signals.ASKING, signal.SIGKILL):
        found = ended(argv, number, generator.uniform(0, whole.seconds))
        told = [line for line in found.said.splitlines() if line.startswith("contourdiff: ")]
        if number != signal.SIGKILL:
            assert not re.search("Traceback|Exception ignored", found.said), found.said
            assert len(told) <= 1, found.said
            assert "at once" in found.said or not parts(tmp_path)
            # It was done before, and could not be done again, or was leaving as it was asked to.
            assert found.status in (0, 1, 2, 128 + number, -number), found.said
        if found.status in (0, 2):
            break
    last = ended(argv, None, 0)
    assert last.status == 0 or "exists already" in last.said, last.said
    assert not parts(tmp_path)


def test_a_second_interrupt_ends_a_command_at_once(tmp_path):
    """Even where Python itself is not asked, as while a network is compiled."""
    script = (
        "import sys, time\n"
        "from contourdiff_jax import cli\n"
        "from contourdiff_jax.runtime import signals\n"
        "def blocked(*_):\n"
        "    with signals.noted():\n"
        "        print('saving', flush=True)\n"
        "        while True:\n"
        "            time.sleep(1)\n"
        "cli._do = blocked\n"
        "cli.main(['contourdiff', 'train'])\n"
    )
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout.readline() == "saving\n"
        for number in (signal.SIGTERM, signal.SIGINT):
            it.send_signal(number)
            time.sleep(0.5)
            assert it.poll() is None  # is still noted
        it.send_signal(signal.SIGINT)
        _, said = it.communicate(timeout=10)
    assert it.returncode == 130
    assert said == "contourdiff: ended at once; what was saved stands\n"


def test_a_request_that_is_lost_is_made_again(tmp_path):
    """Python raises nothing out of a finaliser, for one; what is asked for happens all the same."""
    script = (
        "import os, signal, time\n"
        "from contourdiff_jax import cli\n"
        "from contourdiff_jax.runtime import signals\n"
        "signals.PATIENCE = 0.3\n"
        "class Lost:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "def swallow(*_):\n"
        "    Lost()\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "cli._do = swallow\n"
        "cli.main(['contourdiff', 'train'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 143
    assert "contourdiff: train: ended by SIGTERM" in ended.stderr.splitlines()[-1]
