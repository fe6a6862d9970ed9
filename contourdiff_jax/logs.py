# SPDX-License-Identifier: Apache-2.0
"""What a run says about itself: stats.jsonl, sample pictures and, where installed, TensorBoard.

clu.metric_writers has the same verbs but needs TensorFlow.
stats.jsonl is the record: one JSON object a line.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image


class Logs:
    """Writer for one run folder.

    Args:
      run: the run's folder.
      step: the step training resumes from; lines beyond it, which will be written again, are
        cut off.
    """

    def __init__(self, run: Path, step: int = 0):
        self.run = Path(run)
        self._stats = self.run / "stats.jsonl"
        if self._stats.exists():
            lines = self._stats.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step(line) <= step]
            if len(kept) < len(lines):
                self._stats.write_text("".join(kept))
        self._file = self._stats.open("a")
        self._board = _tensorboard(self.run / "tensorboard")

    def write_scalars(self, step: int, images: int, scalars: dict) -> None:
        """Append a line {'step', 'images', **scalars}; values are floats or lists of floats."""
        self._file.write(json.dumps({"step": step, "images": images} | scalars) + "\n")
        if self._board:
            for name, value in scalars.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, images)

    def write_image(self, images: int, picture: np.ndarray) -> Path:
        """Write a grey picture [H, W] uint8 as samples/<images>.png."""
        path = self.run / "samples" / f"{images:09d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        if self._board:
            self._board.add_image("samples", picture, images, dataformats="HW")
        return path

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the line a killed run was writing
        return float("inf")


def _tensorboard(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:  # the [tensorboard] extra is not installed
        return None
    return SummaryWriter(str(folder))
