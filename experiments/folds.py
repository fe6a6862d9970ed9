# SPDX-License-Identifier: Apache-2.0
"""The heads of 001_heads by folds, and the stores made of them when they are asked for.

Scripts find this file with `sys.path.append(str(Path(__file__).parents[1]))`; label maps are those
of $CONTOURDIFF_DATA.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from commands import contourdiff

RENDERER = Path(__file__).parent / "001_heads/render_heads.py"
KINDS = ("mr", "ct")


def other(kind: str) -> str:
    """The modality that is translated to the one of `kind`."""
    (found,) = set(KINDS) - {kind}
    return found


@dataclasses.dataclass(frozen=True)
class Fold:
    """Heads of one fold, with the CT of those that are trained on, for pairs.

    Attributes:
      place: folder of all that is made of it.
      number: of the fold.
      grid: flags of prepare.
    """

    place: Path
    number: int
    grid: tuple[str, ...]

    def __post_init__(self):
        if not self.heads.exists():
            labels = Path(os.environ["CONTOURDIFF_DATA"]) / "nifti/synthseg_labels"
            argv = [sys.executable, RENDERER, "--pairs", f"--fold={self.number}"]
            subprocess.run([*argv, f"--labels={labels}", f"--out={self.heads}"], check=True)

    @property
    def heads(self) -> Path:
        return self.place / "heads"

    def trained_on(self, kind: str) -> Path:
        """Images of a modality of the heads that are trained on, in pairs."""
        return self.heads / {"mr": "train_mr", "ct": "pairs_ct"}[kind]

    def store(self, target: str, sees: str) -> tuple[str, ...]:
        """The flags of train that name the stores of a target.

        Args:
          sees: contours, pairs or unpaired.
        """
        # CycleGAN has one run for both directions, and CT of heads that are in no MR of its.
        if sees == "unpaired":
            mr = self._prepared("mr", self.heads / "train_mr", "mr")
            ct = self._prepared("ct_of_others", self.heads / "train_ct", "ct")
            return f"--store={mr}", f"--source_store={ct}"
        if sees == "contours":
            return (f"--store={self._prepared(target, self.trained_on(target), target)}",)
        source = other(target)
        pairs = (f"--pairs={self.trained_on(source)}", f"--pairs_preset={source}")
        place = self._prepared(f"{target}_of_{source}", self.trained_on(target), target, *pairs)
        return (f"--store={place}",)

    def _prepared(self, name: str, source: Path, preset: str, *flags: str) -> Path:
        place = self.place / "stores" / name
        given = (f"--source={source}", f"--out={place}", f"--preset={preset}", "--validation=0")
        contourdiff("prepare", *given, *self.grid, *flags, done=place)
        return place
