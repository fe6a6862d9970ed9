# SPDX-License-Identifier: Apache-2.0
"""The one exception that users are meant to see."""


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
