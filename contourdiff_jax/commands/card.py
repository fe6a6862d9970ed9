# SPDX-License-Identifier: Apache-2.0
"""Write a run's model card: one page of Markdown on what it is, what for, and where it fails.

It says what data a model was trained on, how, under which licences it stands, what it is for, what
it costs, how it scores and where it is known to fail. All of that comes from the run, its store
(--store) and evaluations, whose folders are named after the flags. What none of them says is marked
"not stated". Names of subjects and files are not on the card.

Example:
  contourdiff card --run=runs/mr --store=stores/mr --out=card.md scores
"""

from absl import flags

from contourdiff_jax.commands import required_flags
from contourdiff_jax.reports.card import card


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
    flags.DEFINE_string(
        "checkpoint",
        "last",
        "Of the run: last, best (of held-out loss), or the step of another.",
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "Replace a card of that name.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command on the evaluations named after the flags."""
    required_flags.check(values, "card", ("run", "out"))
    names = ("store", "checkpoint", "licence", "data_licence", "use", "overwrite")
    options = {name: values[name].value for name in names}
    print(card(values.run, values.out, arguments, **options))
    return 0
