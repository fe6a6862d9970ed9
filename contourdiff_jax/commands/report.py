# SPDX-License-Identifier: Apache-2.0
"""Write one self-contained HTML page about training runs and evaluations.

Arguments are run folders (config.json, stats.jsonl, samples/), evaluation folders (metrics.json,
rows.csv, pictures) or metrics.json files. Evaluations come first, then runs, each in the order
given; above several evaluations of the same subjects stands their comparison, paired by subject.
Sections for which nothing was measured are left out. The figures are inside the page, and as PNG
files in a folder beside it.

Example:
  contourdiff report --out=report.html scores runs/mr
"""

from absl import flags

from contourdiff_jax.commands import required_flags
from contourdiff_jax.reports.page import report


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff report`."""
    flags.DEFINE_string("out", None, "The .html file to write.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a report of that name.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command on the run folders and evaluations named after the flags."""
    required_flags.check(values, "report", ("out",))
    print(report(values.out, arguments, overwrite=values.overwrite))
    return 0
