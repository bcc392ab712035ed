"""Every error that Barnsight raises on purpose, drawn once, with the exit code each one ends a command with.

    BarnsightError                      70  internal error
    ├── UsageError                      64  the command line is wrong
    ├── ConfigError                     78  the configuration is wrong
    ├── MachineError                    69  the machine lacks what was asked of it
    ├── SourceError                     69  a camera, server or file cannot be read as video
    │   ├── SourceMissingError          66  the file or folder is not there
    │   ├── SourceDataError             65  it is there, and it is not video
    │   └── SourceAccessError           77  wrong or missing credentials, or no permission
    ├── PublishError                    69  the web address cannot be opened
    └── StoreError                      74  the store cannot be read or written
        ├── StoreAccessError            77  no permission
        └── StoreDataError              65  a record is damaged

Engine errors (`barnsight_engines.errors`) have their own tree with the same attribute `exit_code`.
Exit codes are those of BSD's sysexits(3). A message names what failed, the value and the next step; it never
holds a secret.
"""

from __future__ import annotations

import os


class BarnsightError(Exception):
    """The root: something failed in a way that Barnsight names."""

    exit_code = os.EX_SOFTWARE


class UsageError(BarnsightError):
    """The command line asks for something that does not exist."""

    exit_code = os.EX_USAGE


class ConfigError(BarnsightError):
    """A configuration file is missing, malformed or breaks a rule."""

    exit_code = os.EX_CONFIG


class MachineError(BarnsightError):
    """The machine has not the room that the configuration asks for."""

    exit_code = os.EX_UNAVAILABLE


class SourceError(BarnsightError):
    """A camera, stream or file cannot be opened or went silent."""

    exit_code = os.EX_UNAVAILABLE


class SourceMissingError(SourceError):
    """The file or folder named as a source does not exist."""

    exit_code = os.EX_NOINPUT


class SourceDataError(SourceError):
    """The source exists and is not video that can be decoded."""

    exit_code = os.EX_DATAERR


class SourceAccessError(SourceError):
    """The camera refused the credentials, or the file may not be read."""

    exit_code = os.EX_NOPERM


class PublishError(BarnsightError):
    """The address for metrics and status cannot be opened."""

    exit_code = os.EX_UNAVAILABLE


class StoreError(BarnsightError):
    """The store cannot be opened, read or written."""

    exit_code = os.EX_IOERR


class StoreAccessError(StoreError):
    """The store's folder may not be written."""

    exit_code = os.EX_NOPERM


class StoreDataError(StoreError):
    """A stored record is damaged."""

    exit_code = os.EX_DATAERR
