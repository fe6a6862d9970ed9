# SPDX-License-Identifier: Apache-2.0
"""Processes that do what they are asked in turn, each alone on the device while the others wait.

A script serves with `serve(actions)` where it is started with --serve, and asks with `Side`.
Questions and answers are lines of JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping


class Side:
    """A process of a script that serves.

    Args:
      script: the file.
      arguments: of `SCRIPT --serve ARGUMENT ..`.
    """

    def __init__(self, script: str, *arguments: str):
        command = [sys.executable, script, "--serve", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True)

    def begin(self, what: str, count: int = 1) -> None:
        """Ask, and do not wait."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says so
            print(json.dumps([what, count]), file=self.process.stdin, flush=True)

    def answer(self):
        """What it answers; RuntimeError where it could not, or is no more."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["value"]

    def ask(self, what: str, count: int = 1):
        self.begin(what, count)
        return self.answer()

    def close(self) -> None:
        """Returns once it has ended and its memory is free."""
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(actions: Mapping[str, Callable[[int], object]]) -> None:
    """Answer every question with the value of its action; of one without a value, its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        what, count = json.loads(line)
        began = time.perf_counter()
        try:
            value = actions[what](count)
            value = time.perf_counter() - began if value is None else value
            answer = {"value": value}
        except Exception as error:  # of memory, or of what a library lacks: the others go on
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        print(json.dumps(answer), file=answers, flush=True)
