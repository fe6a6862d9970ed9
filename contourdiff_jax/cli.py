# SPDX-License-Identifier: Apache-2.0
"""The command line: `contourdiff <command> --flag=value`.

Commands are imported when they are called, so that help is instant.
Exit status: 0 all done, 1 some inputs failed and are listed, 2 nothing done, 3 a fault of the
program, 128 and more ended by a signal.
"""

import ast
import contextlib
import importlib
import inspect
import os
import sys
import textwrap
from pathlib import Path

from contourdiff_jax import __version__
from contourdiff_jax.commands import COMMANDS
from contourdiff_jax.errors import InputError, tell
from contourdiff_jax.runtime import signals

DEFAULTS = "defaults in brackets; what has none is off, or as its text says"  # of flags
WIDTH = 100  # of help
NO_READER = 141  # what a shell has for a process that writes where no one reads


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if argv is None:
        argv = sys.argv
    _mend_streams()
    name = argv[1] if len(argv) > 1 else "--help"
    with signals.raised() as asked:
        try:
            status = _do(name, argv[1:])
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader of our output has gone
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, stays open to the end
            return NO_READER
        except (signals.Asked, Exception) as error:
            if not asked:
                return tell(error, f"{name}: ")
            # Libraries may have made another error of it. Threads at work are not waited for.
            by = signals.name(asked[0])
            tell(f"{name}: ended by {by}; what was saved stands, and the same command goes on")
            os._exit(128 + asked[0])


def _mend_streams() -> None:
    """Let closed streams lead nowhere, and characters that an encoding lacks be escaped."""
    # The next file to be opened would else be taken for standard output.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115, stays open to the end
        getattr(sys, stream).reconfigure(errors="backslashreplace")


def _do(name: str, argv: list[str]) -> int:
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"contourdiff {__version__}")
        return 0
    if name not in COMMANDS:
        return tell(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")
    return _run(name, argv)


def _run(name: str, argv: list[str]) -> int:
    from absl import flags

    _keep_compiled()
    _use_cores(argv)
    # ml_collections reads the overrides of --config from here.
    sys.argv = argv
    command = importlib.import_module(COMMANDS[name])
    values = flags.FlagValues()
    wants_help = any(a in ("--help", "-h", "-help") for a in argv[1:])
    try:
        command.define_flags(values)
        arguments = [] if wants_help else values(argv)[1:]
    except flags.Error as error:
        raise InputError(_one_line(error)) from None
    except InputError:
        raise
    except Exception as error:  # a configuration file is a program, and can fail as one
        raise InputError(f"--config: {_one_line(error)}") from None
    _check(values, arguments)
    if wants_help:
        print(_command_help(name, command, values))
        return 0
    if len(inspect.signature(command.main).parameters) > 1:
        return command.main(values, arguments)
    if arguments:
        raise InputError(f"unexpected {arguments[0]!r}; settings are given as --flag=value")
    return command.main(values)


def _check(values, arguments: list[str]) -> None:
    """Raise InputError for what no flag takes: nothing at all, and numbers that are none."""
    # Fields of a configuration, which may be empty, it checks itself.
    names = [name for name in values if values[name].present and "." not in name]
    given = {f"--{name}": values[name].value for name in names}
    for name, value in [*given.items(), *(("a path", argument) for argument in arguments)]:
        if value == "" or (isinstance(value, str) and "\0" in value):
            raise InputError(f"{name}: empty, or with a zero in it; give a value, or leave it out")
        if isinstance(value, int | float) and not abs(value) < 2**63:
            raise InputError(f"{name}={value}: must be a finite number of usual size")


def _keep_compiled() -> None:
    """Keep what is compiled for the next start, where the environment does not say otherwise.

    What is found again is of the same program, version of jax and kind of device; CPUs are told
    apart by their instructions.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(caches, "contourdiff_jax", "xla")
    with contextlib.suppress(OSError):  # a home that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def _use_cores(argv: list[str]) -> None:
    """Make each core of a CPU a device, where the environment does not say otherwise.

    Many an operation keeps one core busy and no more; slices shared among cores keep all of them so
    (experiments/017_speed). Of several processes each is a device.
    """
    told = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", "")
    if told or any(argument.startswith("--coordinator") for argument in argv):
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    os.environ["JAX_NUM_CPU_DEVICES"] = str(cores)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "Translate medical images between modalities with contour-conditioned diffusion.",
        "",
        "usage: contourdiff <command> [--flag=value ...]",
        "",
    ]
    lines += [f"  {name:<{width}}  {_summary(module)}" for name, module in COMMANDS.items()]
    lines += ["", "`contourdiff <command> --help` shows a command's flags and an example."]
    lines += ["", *__doc__.splitlines()[-2:]]
    return "\n".join(lines)


def _summary(module: str) -> str:
    """First line of a module's docstring, read without running the module."""
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_bytes())).splitlines()[0]


def _command_help(name: str, command, values) -> str:
    """The docstring of a command and its flags, in groups where it has GROUPS of them."""
    lines = [inspect.cleandoc(command.__doc__), "", f"flags of contourdiff {name}, {DEFAULTS}:"]
    for title, names in getattr(command, "GROUPS", {"": list(values)}).items():
        lines += ["", f"{title}:"] if title else []
        for flag in map(values.__getitem__, names):
            default = "" if flag.default is None or flag.name == "config" else f" [{flag.default}]"
            text = f"  --{flag.name}: {flag.help}{default}"
            lines.append(textwrap.fill(text, WIDTH, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _one_line(error: Exception) -> str:
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    # Of a KeyError, str gives the representation of its message.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    first, found, trace = text.partition("Traceback (most recent call last)")
    return " ".join(f"{first}{trace.strip().splitlines()[-1] if found else ''}".split())


if __name__ == "__main__":
    sys.exit(main())
