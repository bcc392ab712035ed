"""What can go wrong with a model set, drawn once; `exit_code` is the sysexits(3) code a command ends with.

EngineError                 70  an engine failed while running
├── ModelSetMissingError    66  the folder or a file of it is not there
├── ModelSetDataError       65  a file is damaged: wrong hash, truncated, not a model
├── ModelSetWriteError      73  a file of it cannot be written
├── ModelSetMismatchError   78  names, shapes, dtypes or schema are not what this version needs
└── RuntimeMissingError     69  the runtime that was asked for is not installed
"""

from __future__ import annotations

import os


class EngineError(Exception):
    """An engine failed; the message names the engine and the next step."""

    exit_code = os.EX_SOFTWARE


class ModelSetMissingError(EngineError):
    """The model set's folder, its manifest or one of its files does not exist."""

    exit_code = os.EX_NOINPUT


class ModelSetDataError(EngineError):
    """A file of the model set is damaged."""

    exit_code = os.EX_DATAERR


class ModelSetWriteError(EngineError):
    """A file of the model set cannot be written: disk full, or no permission."""

    exit_code = os.EX_CANTCREAT


class ModelSetMismatchError(EngineError):
    """The model set is whole, and it is not one that this program can run."""

    exit_code = os.EX_CONFIG


class RuntimeMissingError(EngineError):
    """The inference runtime is not installed on this machine."""

    exit_code = os.EX_UNAVAILABLE
