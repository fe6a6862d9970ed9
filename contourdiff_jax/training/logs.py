# SPDX-License-Identifier: Apache-2.0
"""The logs of a run: stats.jsonl, pictures of samples, and sinks where they are asked for.

stats.jsonl is the record, one JSON object a line. clu.metric_writers has the same verbs as `Logs`,
but needs TensorFlow.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms
from contourdiff_jax.training.sinks import Sinks

FORM = {  # of a line
    "step?": int,
    "images": int,
    **dict.fromkeys(("seconds?", "images_per_second?", "learning_rate?"), float),
    **dict.fromkeys(("loss?", "heldout_loss?"), float),
    "heldout_loss_t?": tuple[float, ...],
}


class Logs:
    """Writes the logs of one run.

    Args:
      run: the run's folder.
      step: the step that training resumes from; later lines, which will be written again, are cut
        off.
      log_to: names of sinks that are told, too.

    Attributes:
      seconds: that training took up to that step.

    Raises:
      InputError: what cannot be written, here and in every method.
    """

    def __init__(self, run: Path, step: int = 0, log_to: Iterable[str] = ()):
        self.run = Path(run)
        self._stats = self.run / "stats.jsonl"
        self.seconds = 0.0
        with self._writing():
            if self._stats.exists():
                lines = self._stats.read_bytes().splitlines(keepends=True)
                kept = [line for line in lines if _fields(line).get("step", step + 1) <= step]
                if len(kept) < len(lines):
                    with disk.whole(self._stats) as partial:
                        partial.write_bytes(b"".join(kept))
                self.seconds = max(
                    (_fields(line).get("seconds", 0.0) for line in kept), default=0.0
                )
            self._file = self._stats.open("a")
        self._sinks = Sinks(self.run, log_to)

    def write_scalars(self, step: int, images: int, scalars: dict) -> None:
        """Append a line {'step', 'images', **scalars}; values are floats or lists of floats."""
        with self._writing():
            self._file.write(json.dumps({"step": step, "images": images} | scalars) + "\n")
        self._sinks.numbers(images, {n: v for n, v in scalars.items() if isinstance(v, float)})

    def write_image(self, images: int, picture: np.ndarray) -> Path:
        """Write a grey picture [H, W] uint8 as samples/<images>.png."""
        path = self.run / "samples" / f"{images:09d}.png"
        with self._writing(), disk.whole(path) as partial:
            Image.fromarray(picture).save(partial, "png")
        self._sinks.picture(images, picture)
        return path

    def flush(self) -> None:
        with self._writing():
            self._file.flush()

    def store(self) -> None:
        """Close the file and open it again: a bucket mounted as a folder stores it when closed."""
        with self._writing():
            self._file.close()
            self._file = self._stats.open("a")

    def close(self) -> None:
        with self._writing():
            self._file.close()
        self._sinks.close()

    def _writing(self) -> contextlib.AbstractContextManager:
        return disk.writing(
            self.run, "; checkpoints so far are intact, and the same command resumes"
        )


def _fields(line: bytes) -> dict:
    """What a line says; nothing where it is damaged, as one that a killed run was writing."""
    try:
        return forms.checked(forms.parsed(line), FORM)
    except InputError:
        return {}
