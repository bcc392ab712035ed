"""The command `barnsight`: thin, each command calls one module.

    barnsight run                                    follow the configured cameras until stopped
    barnsight replay clip.mp4 --out DIR              the same pipeline over a file, as fast as it goes
    barnsight config check | show | schema
    barnsight camera probe pen-3                     or an address: rtsp://10.0.0.13/stream1
    barnsight db check | repair
    barnsight engine list | build | verify | activate | rollback
    barnsight doctor                                 what this machine lacks

Every error is one line on standard error. Exit codes are those of sysexits(3); 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from barnsight_engines.errors import EngineError
from barnsight_engines.manifest import BUILT, RUNTIMES
from barnsightd.config import (
    CameraConfig,
    Credentials,
    IngestConfig,
    SiteConfig,
    SourceAddress,
    check_references,
    load_config,
    mask,
)
from barnsightd.errors import BarnsightError, ConfigError, UsageError

if TYPE_CHECKING:
    from barnsightd.models import ModelFolder

DEFAULT_CONFIG = Path("/etc/barnsight/barnsight.yaml")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in arguments
    # Small matrix products lose more to waking threads than they gain, all the more beside the networks' own threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        args = _parser().parse_args([argument for argument in arguments if argument != "--debug"])
        return int(args.command(args))
    except (BarnsightError, EngineError) as error:
        return _report(error, str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_IOERR
    except Exception as error:  # noqa: BLE001 - the last resort: one line instead of a traceback
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
        return _report(error, text, os.EX_SOFTWARE, debug)


def _report(error: BaseException, text: str, exit_code: int, debug: bool) -> int:
    if debug:
        print(mask("".join(traceback.format_exception(type(error), error, error.__traceback__))), file=sys.stderr)
    for line in text.splitlines() if isinstance(error, ConfigError) else [" ".join(text.split())]:
        print(f"barnsight: error: {mask(line)}", file=sys.stderr)
    return exit_code


def _parser() -> _Parser:
    parser = _Parser(prog="barnsight", description="Every animal in the barn segmented, tracked and remembered.")
    parser.add_argument("--version", action="version", version=f"barnsight {version('barnsight')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str, *, to: Any = commands, config: bool = True) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = to.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        if config:
            command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="site file")
        return command

    def add_group(name: str, text: str) -> Any:
        return commands.add_parser(name, help=text).add_subparsers(required=True, metavar="ACTION")

    add("run", _run, "follow the configured cameras until stopped")

    replay = add("replay", _replay, "run the same pipeline over a video, GIF or folder of pictures", config=False)
    replay.add_argument("source", type=Path, metavar="FILE")
    replay.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for tracks, masks and records")
    replay.add_argument("--models", type=Path, default=Path("engines/nano"), metavar="DIR", help="model set")
    replay.add_argument("--species", default="pig", help="concept to look for (default: pig)")
    replay.add_argument("--fps", type=_positive(float), help="frames a second, where the source does not say")
    replay.add_argument("--threads", type=_positive(int), help="CPU threads of the networks")
    replay.add_argument("--masks", action=argparse.BooleanOptionalAction, default=True, help="write masks.jsonl")
    replay.add_argument("--annotate", action="store_true", help="write a video with the tracks drawn in")

    config = add_group("config", "check, show or describe the configuration")
    add("check", _config_check, "check every configuration file; changes nothing", to=config)
    add("show", _config_show, "print the settings in force, credentials masked", to=config)
    schema = add("schema", _config_schema, "print the JSON schema of a file", to=config, config=False)
    schema.add_argument("file", choices=("site", "camera"), nargs="?", default="camera")

    camera = add_group("camera", "try a camera")
    probe = add("probe", _camera_probe, "connect to a camera and describe its video", to=camera)
    probe.add_argument("source", metavar="NAME|URL", help="a configured camera, or an address without password")
    probe.add_argument("--credential", metavar="NAME|FILE", help="credential that holds user:password for the URL")
    probe.add_argument("--timeout", type=_positive(float), default=10.0, metavar="SECONDS")

    database = add_group("db", "check or repair the store")
    for name, run, text in (
        ("check", _db_check, "read everything that is stored; changes nothing"),
        ("repair", _db_repair, "set damaged parts aside and rebuild what can be rebuilt"),
    ):
        command = add(name, run, text, to=database)
        command.add_argument("path", type=Path, nargs="?", metavar="DIR", help="store (default: as configured)")
        command.add_argument("--json", action="store_true", help="print one JSON object")

    engine = add_group("engine", "build, certify and choose the networks")
    for name, run, text in (
        ("list", _engine_list, "show every model set, the active one and the certificates of its engines"),
        ("build", _engine_build, "build a set's TensorRT engines on this machine and certify them"),
        ("verify", _engine_verify, "load a set as the service does and tell how near it comes to its golden answers"),
        ("activate", _engine_activate, "verify a set, then make it the active one"),
        ("rollback", _engine_rollback, "make the set active that was active before"),
    ):
        command = add(name, run, text, to=engine)
        command.add_argument("--models", type=Path, metavar="DIR", help="folder of sets (default: as configured)")
        if name in ("build", "activate"):
            command.add_argument("set", metavar="SET", help="name of a set, or a folder elsewhere that holds one")
        if name == "verify":
            command.add_argument("set", metavar="SET", nargs="?", default="active", help="name (default: active)")
        if name in ("verify", "activate"):
            command.add_argument("--runtime", choices=RUNTIMES, help="inference runtime (default: as configured)")
        if name == "build":
            command.add_argument("--runtime", choices=BUILT, default=BUILT[0], help="default: %(default)s")
            command.add_argument("--batches", type=_batches, metavar="MIN,USUAL,MAX", help="default: 1,8,20")
            command.add_argument("--workspace-mb", type=_positive(int), help="most that a layer may use (default: all)")
        if name != "rollback":
            command.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = add("doctor", _doctor, "check what this machine has and what it lacks")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _positive(kind: type[float]) -> Any:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
        return value

    return number


def _batches(text: str) -> tuple[int, int, int]:
    from barnsight_engines.tensorrt_builder import parse_batches

    try:
        return parse_batches(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(args: argparse.Namespace) -> int:
    from barnsightd.app import run_service

    return run_service(args.config)


def _replay(args: argparse.Namespace) -> int:
    from barnsightd.replay import replay

    return replay(
        args.source,
        args.out,
        models=args.models,
        species=args.species,
        fps=args.fps,
        masks=args.masks,
        annotate=args.annotate,
        threads=args.threads,
    )


def _config_check(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    for warning in config.warnings:
        print(f"barnsight: warning: {warning}", file=sys.stderr)
    if problems := check_references(config):
        raise ConfigError("\n".join(map(str, problems)))
    print(f"{args.config}: ok, cameras: {', '.join(camera.name for camera in config.cameras)}")
    return os.EX_OK


def _config_show(args: argparse.Namespace) -> int:
    print(load_config(args.config).to_yaml(), end="")
    return os.EX_OK


def _config_schema(args: argparse.Namespace) -> int:
    model = SiteConfig if args.file == "site" else CameraConfig
    print(json.dumps(model.model_json_schema(), indent=2))
    return os.EX_OK


def _camera_probe(args: argparse.Namespace) -> int:
    if "://" not in args.source and not Path(args.source).exists():
        camera = load_config(args.config).camera(args.source)
        address, ingest = camera.source, camera.ingest
    else:
        address, ingest = _probe_address(args.source, args.credential, args.config), IngestConfig()
    from barnsightd.ingest.probe import probe

    print(probe(address, args.timeout, ingest))
    return os.EX_OK


def _probe_address(source: str, credential: str | None, config: Path) -> SourceAddress:
    """The address to try; a password on the command line would be visible to every user of the machine."""
    if mask(source) != source:
        raise UsageError(
            f"the address {mask(source)} holds credentials, which `ps` shows to everyone; "
            "write user:password to a file (chmod 600) and give --credential FILE"
        )
    folder = config.absolute().parent / "credentials"
    if credential is not None:
        folder = Path(credential).absolute().parent if Path(credential).is_file() else folder
        scheme, _, rest = source.partition("://")
        source = f"{scheme}://${{credential:{Path(credential).name}}}@{rest}"
    try:
        return SourceAddress.parse(source, Credentials(folder))
    except ValueError as error:
        raise UsageError(f"the address {error}") from None


def _store_path(args: argparse.Namespace) -> Path:
    return args.path or load_config(args.config).site.storage.path


def _db_check(args: argparse.Namespace) -> int:
    from barnsightd.store.repair import check

    return _show(check(_store_path(args)), args.json)


def _db_repair(args: argparse.Namespace) -> int:
    from barnsightd.store.repair import repair

    return _show(repair(_store_path(args)), args.json)


def _engine_list(args: argparse.Namespace) -> int:
    return _show(_model_folder(args).sets(), args.json)


def _engine_build(args: argparse.Namespace) -> int:
    from barnsight_engines.tensorrt_builder import BATCHES, BuildSettings, Built

    def report(built: Built) -> None:
        size_mb = built.size_bytes / 1e6
        print(f"{built.file.name}: {built.layers} layers, {size_mb:.0f} MB, {built.seconds:.0f} s", file=sys.stderr)

    folder = _model_folder(args)
    settings = BuildSettings(
        batches=args.batches or BATCHES,
        workspace_bytes=args.workspace_mb and args.workspace_mb * 1_000_000,
        timing_cache=folder.path / f"{args.runtime}-timing.cache",
    )
    return _show(folder.build(args.set, settings, args.runtime, report), args.json)


def _engine_verify(args: argparse.Namespace) -> int:
    return _show(_model_folder(args).verify(args.set, _runtime(args)), args.json)


def _engine_activate(args: argparse.Namespace) -> int:
    folder = _model_folder(args)
    report = folder.activate(args.set, _runtime(args))
    print(
        f"active: {report.model_set}; point models.path at {folder.active}, then restart the service", file=sys.stderr
    )
    return _show(report, args.json)


def _engine_rollback(args: argparse.Namespace) -> int:
    print(f"active: {_model_folder(args).rollback()}; restart the service")
    return os.EX_OK


def _model_folder(args: argparse.Namespace) -> ModelFolder:
    from barnsightd.models import ModelFolder

    return ModelFolder(args.models or load_config(args.config).site.models.path.parent)


def _runtime(args: argparse.Namespace) -> str:
    """As asked for; else as configured, where a configuration is needed to find the sets anyway."""
    if args.runtime or args.models:
        return args.runtime or "auto"
    return load_config(args.config).site.models.runtime


def _doctor(args: argparse.Namespace) -> int:
    from barnsightd.doctor import examine

    return _show(examine(args.config), args.json)


class _Report(Protocol):
    """What a command found: text for people, JSON for machines."""

    @property
    def exit_code(self) -> int: ...

    def to_json(self) -> str: ...


def _show(report: _Report, as_json: bool) -> int:
    print(report.to_json() if as_json else report)
    return report.exit_code
