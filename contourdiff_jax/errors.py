# SPDX-License-Identifier: Apache-2.0
"""The one exception that users are meant to see, and how errors are told."""

import errno
import sys
import traceback

BAD_INPUT, UNEXPECTED = 2, 3  # exit statuses
FULL = (errno.ENOSPC, errno.EDQUOT)


class InputError(Exception):
    """What the user gave cannot be used.

    The message is one line that names the file or setting, says what is wrong and what to do
    about it. The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Text in one line: file names may hold line breaks, and bytes that are no text."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def tell(error: BaseException | str, command: str = "") -> int:
    """Prints why a command fails, in one line of standard error; returns its exit status.

    Any error but an InputError, what a system says of a file, and want of memory or of room on a
    disk, is a fault of the program: its traceback comes first.
    """
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        error = "not enough memory; a smaller batch takes less"
    if isinstance(error, OSError) and (error.filename or error.errno in FULL):
        where = "" if error.filename is None else f"{error.filename}: "
        error = f"{where}{error.strerror}"  # too long a name, for one
    expected = isinstance(error, InputError | str)
    if not expected:
        traceback.print_exception(error)
        error = (
            "this is a fault of contourdiff, not of your data; please report it, with the lines "
            "above and the command, where you got contourdiff from"
        )
    # In one line, whatever a file's own names hold.
    print(f"contourdiff: {command}{' '.join(str(error).splitlines())}", file=sys.stderr)
    return BAD_INPUT if expected else UNEXPECTED
