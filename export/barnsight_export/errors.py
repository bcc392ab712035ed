"""What can go wrong offline, drawn once; `exit_code` is the sysexits(3) code a command ends with.

    ExportError                    70  a network could not be trained, exported or judged
    ├── ExportUsageError           64  the command line asks for something that does not exist
    ├── DataMissingError           66  a file or folder is not there
    ├── DataError                  65  a file is there, and it is not what its name says
    ├── ParityError                65  an exported network does not compute what its source computes
    ├── RequirementMissingError    69  a library or system component is not installed
    └── OutputError                73  a file or folder cannot be made or written

Engine errors (`barnsight_engines.errors`) pass through with exit codes of their own.
A message names what failed, the value and the next step.
"""

from __future__ import annotations

import os


class ExportError(Exception):
    """The root: something failed offline in a way that Barnsight names."""

    exit_code = os.EX_SOFTWARE


class ExportUsageError(ExportError):
    """The options contradict each other or name something that does not exist."""

    exit_code = os.EX_USAGE


class DataMissingError(ExportError):
    """A file or folder that was named does not exist."""

    exit_code = os.EX_NOINPUT


class DataError(ExportError):
    """A file exists and is damaged or of another kind; the message gives file and line."""

    exit_code = os.EX_DATAERR


class ParityError(ExportError):
    """An exported network's numbers differ from those of the network it was made from."""

    exit_code = os.EX_DATAERR


class RequirementMissingError(ExportError):
    """A library or system component that this command needs is not installed."""

    exit_code = os.EX_UNAVAILABLE


class OutputError(ExportError):
    """A result cannot be written where it was asked for."""

    exit_code = os.EX_CANTCREAT
