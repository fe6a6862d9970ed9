# SPDX-License-Identifier: Apache-2.0
"""The tests that a device of another kind could fail, one by one: `pytest -m device`.

python suite.py [--small] RESULT WORK

--small runs those of tests/test_device.py alone. Warnings are no errors here: other versions of
libraries have other ones.
"""

import sys

import pytest
import results

TESTS = results.HERE.parents[1] / "tests"
# In this order: the first of these say most.
PLACES = ("test_device.py", "contours", "models/test_models.py", "training", "diffusion")


class Recorder:
    """Keeps what became of every test as soon as it is known."""

    def __init__(self, step: results.Step):
        self.step = step
        self.result = {"passed": 0, "skipped": 0, "failed": {}, "seconds": {}}

    def pytest_runtest_logreport(self, report) -> None:
        name = report.nodeid.removeprefix("tests/")
        if report.failed:
            lines = str(report.longrepr).splitlines()
            why = [line for line in lines if line.startswith("E ")] or lines[-1:]
            self.result["failed"][name] = "\n".join(why[:6])
        elif report.skipped:
            self.result["skipped"] += 1
        elif report.when == "call":
            self.result["passed"] += 1
        if report.when == "call":
            self.result["seconds"][name] = results.rounded(report.duration)
        results.keep(self.step.result, self.result)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.result["failed"][report.nodeid] = str(report.longrepr).splitlines()[-1]
            results.keep(self.step.result, self.result)


def main() -> int:
    step = results.arguments(__doc__)
    places = PLACES[:1] if step.small else PLACES
    given = ["-m", "device and not slow", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    given += ["-q", "--continue-on-collection-errors", f"--basetemp={step.work}/tests"]
    given += [f"--rootdir={TESTS.parent}", f"-c={TESTS.parent}/pyproject.toml"]
    return pytest.main([*given, *(str(TESTS / place) for place in places)], [Recorder(step)])


if __name__ == "__main__":
    sys.exit(main())
