"""The command `barnsight-export`: everything that is made offline, before a daemon runs.

    barnsight-export simulate --seed 7 --species pig --animals 8 --seconds 20 --fps 6 --out DIR
    barnsight-export serve DIR/clip.mp4
    barnsight-export train detector --recipe nano --data DIR --out DIR
    barnsight-export distill --data DIR --format videos --student nano --teacher FILE --out DIR
    barnsight-export export --preset nano --checkpoint FILE --out engines/nano
    barnsight-export quantize engines/nano --precision int8 --data DIR --out DIR
    barnsight-export build --models DIR
    barnsight-export certify --models DIR
    barnsight-export evaluate tracking --truth DIR/gt.txt --tracks tracks.txt --json
    barnsight-export params --preset orin --json

Each command is a module of `barnsight_export.commands` with `add_parser(subparsers)` and `run(args) -> int`.
What is heavy, PyTorch above all, is imported inside `run`. Exit codes are those of sysexits(3).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from barnsight_engines.errors import EngineError
from barnsight_export.errors import ExportError, ExportUsageError, RequirementMissingError

COMMANDS = ("simulate", "serve", "train", "distill", "export", "quantize", "build", "certify", "evaluate", "params")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExportUsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in arguments
    try:
        args = _parser().parse_args([argument for argument in arguments if argument != "--debug"])
        return int(import_module(f"barnsight_export.commands.{args.command}").run(args))
    except (ExportError, EngineError) as error:
        return _report(error, str(error), error.exit_code, debug)
    except ModuleNotFoundError as error:
        text = f"{error.name} is not installed; run `make install-dev` in the clone, or `pip install '.[export]'`"
        return _report(error, text, RequirementMissingError.exit_code, debug)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_IOERR
    except Exception as error:  # noqa: BLE001 - the last resort: one line instead of a traceback
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
        return _report(error, text, os.EX_SOFTWARE, debug)


def _parser() -> _Parser:
    parser = _Parser(prog="barnsight-export", description="Make, train, export and judge what Barnsight runs.")
    parser.add_argument("--version", action="version", version=f"barnsight {version('barnsight')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        import_module(f"barnsight_export.commands.{command}").add_parser(subparsers)
    return parser


def _report(error: BaseException, text: str, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    print(f"barnsight-export: error: {' '.join(text.split())}", file=sys.stderr)
    return exit_code
