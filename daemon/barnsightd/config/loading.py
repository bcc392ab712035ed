"""From files to one frozen configuration, or to a list of all that is wrong, each with file, line and key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from barnsight_engines.errors import EngineError
from barnsight_engines.manifest import read_manifest
from barnsightd.config.address import Credentials, mask
from barnsightd.config.documents import DocumentError, Place, read_document
from barnsightd.config.models import CameraConfig, Settings, SiteConfig
from barnsightd.errors import ConfigError

_MAX_CAMERAS = 64
_Model = TypeVar("_Model", bound=Settings)


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule: file, line from 1 (0: the whole file), key, and the rule with the next step."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return mask(f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that was read; `name` is its path from the site's folder, as messages give it."""

    path: Path
    name: str
    lines: Mapping[Place, int] = field(default_factory=dict, repr=False, compare=False)

    def problem(self, place: Place, text: str) -> Problem:
        """What is wrong at `place`; a key that is missing takes the line of what should hold it."""
        known = next((place[:n] for n in range(len(place), -1, -1) if place[:n] in self.lines), None)
        return Problem(self.name, 0 if known is None else self.lines[known], ".".join(map(str, place)), text)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was configured; `files` are the site's and then the cameras', in the order of `cameras`."""

    site: SiteConfig
    cameras: tuple[CameraConfig, ...]
    files: tuple[ConfigFile, ...]
    warnings: tuple[Problem, ...] = ()

    def camera(self, name: str) -> CameraConfig:
        """The camera called `name`. Raises ConfigError where there is none."""
        names = [camera.name for camera in self.cameras]
        if name not in names:
            raise ConfigError(f"there is no camera {name!r}; {_known(name, names)}")
        return self.cameras[names.index(name)]

    def to_yaml(self) -> str:
        """Every setting in force, defaults included and credentials masked, as YAML documents."""
        return "---\n".join(
            yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None)
            for model in (self.site, *self.cameras)
        )


def load_config(path: Path) -> Config:
    """Read the site file and every `cameras.d/*.yaml` beside it; changes nothing.

    Raises ConfigError with one line per problem of all files: `cameras.d/pen-3.yaml:7: fps: must be …, got 0; …`.
    """
    folder = path.absolute().parent
    credentials = Credentials.beside(folder)
    site_file, site, problems = _read(ConfigFile(path, path.name), SiteConfig, credentials)
    paths: list[Path] = []
    try:
        paths = sorted(file for file in (folder / "cameras.d").iterdir() if not file.name.startswith("."))
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(Problem("cameras.d", 0, "", _unreadable(error)))
    cameras: list[CameraConfig] = []
    files = [site_file]
    warnings: list[Problem] = []
    for camera_path in paths:
        file = ConfigFile(camera_path, f"cameras.d/{camera_path.name}")
        if camera_path.suffix != ".yaml":
            problems.append(file.problem((), "is not read; rename it to end in .yaml, or move it elsewhere"))
            continue
        file, camera, found = _read(file, CameraConfig, credentials)
        problems.extend(found)
        if camera is not None:
            cameras.append(camera)
            files.append(file)
            problems.extend(_rules(camera, file))
            warnings.extend(_advice(camera, file))
    if not paths and not problems:
        problems.append(Problem("cameras.d", 0, "", "holds no camera; add cameras.d/<name>.yaml, one for each"))
    if len(paths) > _MAX_CAMERAS:
        problems.append(Problem("cameras.d", 0, "", f"holds {len(paths)} cameras; the most is {_MAX_CAMERAS}"))
    if problems or site is None:
        raise ConfigError("\n".join(map(str, problems)))
    return Config(site, tuple(cameras), tuple(files), tuple(warnings))


def check_references(config: Config) -> tuple[Problem, ...]:
    """What the configuration names and this machine does not have: model set, concepts, files."""
    site_file, *files = config.files
    try:
        concepts = list(read_manifest(config.site.models.path)[0].concepts.names)
    except EngineError as error:
        return (site_file.problem(("models", "path"), str(error)),)
    problems = []
    for camera, file in zip(config.cameras, files, strict=True):
        if camera.species not in concepts:
            text = f"is no concept of the model set, got {camera.species!r}; {_known(camera.species, concepts)}"
            problems.append(file.problem(("species",), text))
        places: tuple[tuple[Place, Path | None], ...] = (
            (("source",), camera.source.path),
            (("calibration", "scale"), camera.calibration.scale),
        )
        for place, path in places:
            if path is not None and not os.access(path, os.R_OK):
                problems.append(file.problem(place, f"{path} does not exist or may not be read; correct it"))
    return tuple(problems)


def _read(
    file: ConfigFile, model: type[_Model], credentials: Credentials
) -> tuple[ConfigFile, _Model | None, list[Problem]]:
    """The file with its lines, and its content as `model` or what is wrong with it."""
    try:
        document = read_document(file.path)
    except FileNotFoundError:
        where = Problem(str(file.path.absolute()), 0, "", "does not exist; name the site file with --config")
        return file, None, [where]
    except OSError as error:
        return file, None, [file.problem((), _unreadable(error))]
    except DocumentError as error:
        return file, None, [Problem(file.name, error.line, "", str(error))]
    file = ConfigFile(file.path, file.name, document.lines)
    context = {"credentials": credentials, "folder": file.path.absolute().parent}
    try:
        return file, model.model_validate(document.values, context=context), []
    except ValidationError as error:
        schema, found = model.model_json_schema(), error.errors()
        inside = {details["loc"][:n] for details in found for n in range(len(details["loc"]))}
        # What is wrong inside a group makes the group wrong: told once, where it is.
        problems = [_problem(file, schema, details) for details in found if details["loc"] not in inside]
        return file, None, sorted(problems, key=lambda problem: problem.line)


def _unreadable(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read; run as the service's user, or with sudo"
    return f"cannot be read: {error.strerror}"


def _rules(camera: CameraConfig, file: ConfigFile) -> Iterator[Problem]:
    """The rules that need more than one value."""
    if camera.name != file.path.stem:
        yield file.problem(("name",), f"must equal the file's name, {file.path.stem!r}, got {camera.name!r}")
    shortest, longest = camera.ingest.reconnect_min_s, camera.ingest.reconnect_max_s
    if longest < shortest:
        text = f"must be at least reconnect_min_s, {shortest:g}, got {longest:g}"
        yield file.problem(("ingest", "reconnect_max_s"), text)


def _advice(camera: CameraConfig, file: ConfigFile) -> Iterator[Problem]:
    """What works and could be safer."""
    if camera.source.has_inline_password:
        reference = f"${{credential:{camera.name}}}"
        yield file.problem(("source",), f"holds a password; better {reference}, with it in credentials/{camera.name}")


def _problem(file: ConfigFile, schema: dict[str, Any], details: ErrorDetails) -> Problem:
    """What pydantic found, in the words of the file."""
    kind, place = details["type"], tuple(part for part in details["loc"] if part != "[key]")
    if kind == "extra_forbidden":
        known = _schema_at(schema, place[:-1]).get("properties", {})
        return file.problem(place, f"is no setting; {_known(str(place[-1]), known)}")
    if kind == "missing" and isinstance(place[-1], int):
        place = place[:-1]  # Half a point.
    here = _schema_at(schema, place)
    if kind == "missing" and "prefixItems" not in here:
        return file.problem(place, f"is missing; add it: {_rule(here)}")
    if kind == "value_error":
        return file.problem(place, str(details["ctx"]["error"]))
    if kind == "string_pattern_mismatch":
        here = details["ctx"]
    text = f"{_rule(here)}, got {_shown(details['input'])}"
    if here.get("default") is not None:
        text += f"; remove the line for the default, {_shown(here['default'])}"
    return file.problem(place, text)


def _known(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """The nearest of `names`, or all of them."""
    nearest = get_close_matches(name, names, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(names) or 'none'}"


def _schema_at(schema: dict[str, Any], place: tuple[str | int, ...]) -> dict[str, Any]:
    """The part of a JSON schema that describes the value at `place`; references and `or null` are followed."""
    definitions, here = schema.get("$defs", {}), schema
    for part in (None, *place):
        if isinstance(part, int):
            here = here.get("items") or here.get("prefixItems", [{}])[0]
        elif part is not None:
            named = here.get("properties", {}) | {"": next(iter(here.get("patternProperties", {}).values()), {})}
            here = named.get(part) or named[""] or here.get("additionalProperties") or {}
        while "$ref" in here or "anyOf" in here:
            outer = {name: here[name] for name in ("default", "description") if name in here}
            inner = definitions[here["$ref"].rpartition("/")[2]] if "$ref" in here else here["anyOf"][0]
            here = inner | outer
    return here


def _rule(schema: dict[str, Any]) -> str:
    """What a value must be, in words, from its JSON schema."""
    if "enum" in schema:
        return f"must be one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return f"must be {schema['const']}"
    kind = schema.get("type")
    if kind in ("number", "integer"):
        noun = "a number" if kind == "number" else "a whole number"
        low, high = schema.get("minimum"), schema.get("maximum")
        return f"must be {noun}" if low is None else f"must be {noun} from {low:.10g} to {high:.10g}"
    if kind == "array":
        if "prefixItems" in schema:
            return "must be a point [x, y]"
        return f"must be a list of {schema['minItems']} to {schema['maxItems']} points [x, y]"
    if kind == "object":
        return "must be a mapping, lines of `key: value`"
    if "pattern" in schema:
        return f"must be text that matches {schema['pattern']}"
    return "must be text"


def _shown(value: object) -> str:
    """A value for a message: short, and no group or address, where secrets could lie."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return "an address" if "://" in value else repr(value if len(value) <= 60 else value[:57] + "…")
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)
