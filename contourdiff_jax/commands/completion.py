# SPDX-License-Identifier: Apache-2.0
"""Print what lets a shell complete commands, flags, their values and files.

What is printed knows the flags of this version: print it again after an update. Bash and fish look
for it where the example puts it (fish: ~/.config/fish/completions/contourdiff.fish), zsh reads it
from ~/.zshrc: source <(contourdiff completion --shell=zsh).

Example:
    contourdiff completion --shell=bash > ~/.local/share/bash-completion/completions/contourdiff
"""

import importlib
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags

from contourdiff_jax import config as configuration
from contourdiff_jax import config_files
from contourdiff_jax.commands import COMMANDS, required_flags
from contourdiff_jax.training.checkpoint import BEST, LAST

# Libraries that complete for a program, such as argcomplete, know argparse, click and their like.
SHELLS = ("bash", "zsh", "fish")
BASH = r"""_contourdiff() {
    local IFS=$'\n' current=${COMP_WORDS[COMP_CWORD]} flag= before= flags= values=
    # Bash takes the = between a flag and its value for a word, zsh does not.
    if [[ $current == --*=* ]]; then
        flag=${current%%=*} current=${current#*=} before=$flag=
    elif [[ $current == = ]]; then
        flag=${COMP_WORDS[COMP_CWORD-1]} current=
    elif [[ ${COMP_WORDS[COMP_CWORD-1]} == = ]]; then
        flag=${COMP_WORDS[COMP_CWORD-2]}
    elif (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "@COMMANDS" -- "$current"))
        return
    fi
    case ${COMP_WORDS[1]} in
@FLAGS
    esac
    case ${COMP_WORDS[1]}$flag in
@VALUES
    esac
    if [[ -z $flag && $current == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$current"))
        [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
        return
    fi
    COMPREPLY=($(compgen -P "$before" -W "$values" -- "$current"))
    if [[ -z $values || $flag == --config ]]; then
        [[ -z $before ]] && compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen -P "$before" -f -- "$current"))
    fi
}
complete -F _contourdiff contourdiff
"""


class Flag(NamedTuple):
    """A flag as a shell completes it.

    Attributes:
      takes: whether a value follows; others are true, or false as --noFLAG.
      values: those that there are; where there are none, files are completed.
      text: what it says of itself.
    """

    takes: bool
    values: Sequence[str]
    text: str


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("shell", None, SHELLS, "that completes", flag_values=values)


def main(values: flags.FlagValues) -> int:
    required_flags.check(values, "completion", ("shell",))
    print(script(values.shell), end="")
    return 0


def script(shell: str) -> str:
    """What the shell is to read."""
    commands = {name: _flags(module) for name, module in COMMANDS.items()}
    if shell == "fish":
        return _fish(commands)
    beginning = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return beginning + _bash(commands)


def _flags(module: str) -> dict[str, Flag]:
    """The flags of a command, and where it has --config the fields that it changes."""
    values = flags.FlagValues()
    importlib.import_module(module).define_flags(values)
    found = {name: _flag(values[name]) for name in sorted(values)}
    if "checkpoint" in found and values["checkpoint"].default == LAST:  # not a folder to import
        found["checkpoint"] = found["checkpoint"]._replace(values=(LAST, BEST))
    if "config" in found:
        found["config"] = found["config"]._replace(values=tuple(config_files.names()))
        for field in configuration.flat(configuration.default()):
            names = configuration.RULES.get(field, configuration.FREE).names
            found[f"config.{field}"] = Flag(True, tuple(filter(None, map(str, names))), "")
    return found


def _flag(flag: flags.Flag) -> Flag:
    values = getattr(flag.parser, "enum_values", ())
    return Flag(not flag.boolean, tuple(values), " ".join(flag.help.split()))


def _bash(commands: Mapping[str, Mapping[str, Flag]]) -> str:
    """A function of bash, which zsh runs too; its words are divided by line breaks."""
    flags_of, values_of = [], []
    for command, own in commands.items():
        words = [w for n, flag in own.items() for w in ([f"{n}="] if flag.takes else [n, f"no{n}"])]
        listed = "\n".join(f"--{word}" for word in [*words, "help"])
        flags_of.append(f"    {command}) flags={shlex.quote(listed)} ;;")
        for name, flag in own.items():
            if flag.values:
                listed = "\n".join(flag.values)
                values_of.append(f"    {command}--{name}) values={shlex.quote(listed)} ;;")
    text = BASH.replace("@COMMANDS", "\n".join([*commands, "--help", "--version"]))
    return text.replace("@FLAGS", "\n".join(flags_of)).replace("@VALUES", "\n".join(values_of))


def _fish(commands: Mapping[str, Mapping[str, Flag]]) -> str:
    lines = []
    for command, own in commands.items():
        lines.append(f"complete -c contourdiff -f -n __fish_use_subcommand -a {command}")
        for name, flag in own.items():
            said = f"complete -c contourdiff -n '__fish_seen_subcommand_from {command}'"
            about = f" -d {_quoted(flag.text)}" if flag.text else ""
            if not flag.takes:
                lines += [f"{said} -l {name}{about}", f"{said} -l no{name}"]
            elif flag.values:
                files = "-rF" if name == "config" else "-x"
                lines.append(f"{said} -l {name} {files} -a '{' '.join(flag.values)}'{about}")
            else:
                lines.append(f"{said} -l {name} -rF{about}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text in single quotes, as fish reads them."""
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"
