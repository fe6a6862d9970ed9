# SPDX-License-Identifier: Apache-2.0
"""The commands: flags and printing, one file each."""

# In the order they are used; the modules have define_flags(values) and main(values[, arguments]).
# Those of many flags have GROUPS, {title: names}, in which help shows them.
COMMANDS = {
    "quickstart": "contourdiff_jax.commands.quickstart",
    "phantoms": "contourdiff_jax.commands.phantoms",
    "inspect": "contourdiff_jax.commands.inspect",
    "prepare": "contourdiff_jax.commands.prepare",
    "contours": "contourdiff_jax.commands.contours",
    "train": "contourdiff_jax.commands.train",
    "translate": "contourdiff_jax.commands.translate",
    "evaluate": "contourdiff_jax.commands.evaluate",
    "segment": "contourdiff_jax.commands.segment",
    "report": "contourdiff_jax.commands.report",
    "card": "contourdiff_jax.commands.card",
    "import": "contourdiff_jax.commands.importing",
    "export": "contourdiff_jax.commands.exporting",
    "weights": "contourdiff_jax.commands.weights",
    "demo": "contourdiff_jax.commands.demo",
    "completion": "contourdiff_jax.commands.completion",
}
