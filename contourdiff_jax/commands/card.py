# SPDX-License-Identifier: Apache-2.0
"""Write a run's model card: one page of Markdown on what it is, what for, and where it fails.

It says what data a model was trained on, how, under which licences it stands, what it is for, what
it costs, how it scores and where it is known to fail, as far as the run, the store (--store) and
the evaluations named after the flags tell. No name of a subject or a file is on it. What nobody
stated says so.

Example:
  contourdiff card --run=runs/mr --store=stores/mr --out=card.md scores
"""

from absl import flags

from contourdiff_jax.errors import InputError
from contourdiff_jax.reports.card import card

# ----------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff card`."""
    for name, text in (
        ("run", "Folder of a run."),
        ("store", "Store that it was trained on."),
        ("out", "The .md file to write."),
        ("licence", "Of the run's weights, as their owner states it."),
        ("data_licence", "Of the training data, as their owner states it."),
        ("use", "What the model is for, in place of the usual words."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a card of that name.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command on the evaluations named after the flags."""
    for name in ("run", "out"):
        if values[name].value is None:
            raise InputError(f"--{name} is required, see `contourdiff card --help`")
    written = card(
        values.run,
        values.out,
        arguments,
        store=values.store,
        licence=values.licence,
        data_licence=values.data_licence,
        use=values.use,
        overwrite=values.overwrite,
    )
    print(written)
    return 0
