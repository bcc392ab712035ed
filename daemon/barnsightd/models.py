"""The folder of model sets: `<name>@<hash>` each, and two symbolic links that say which one is active.

    models/
    ├── nano@0f3c…              manifest, ONNX files, and per runtime a folder of engines with their certificate
    ├── orin@91ab…
    ├── active   -> orin@91ab…  what `models.path` names
    └── previous -> nano@0f3c…  where a rollback goes

A set comes in under a hidden name and is renamed once it is whole. A link is switched by renaming a new one over it,
so at every moment it names the old set or the new one; a rollback is one rename, of `previous` over `active`. A set
becomes active only after it was loaded here: hashes, tensors, certificate, golden answers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from barnsight_engines.certificate import Parity, read_certificate
from barnsight_engines.errors import EngineError, ModelSetMissingError
from barnsight_engines.files import sync_folder, unwritable
from barnsight_engines.loader import check_model_set, load_model_set
from barnsight_engines.manifest import BUILT, FILE_NAME, read_manifest
from barnsight_engines.tensorrt_builder import BuildSettings, Built, build_model_set
from barnsightd.errors import UsageError

ACTIVE = "active"
PREVIOUS = "previous"
HIDDEN = "."


@dataclass(frozen=True, slots=True)
class CertificateState:
    """Engines that one runtime has of a set: their verdict and the machine that they were certified on."""

    runtime: str
    verdict: str
    machine: str


@dataclass(frozen=True, slots=True)
class SetState:
    """One set of the folder; `fault` says why it cannot be used."""

    folder: str
    hash: str
    active: bool
    previous: bool
    certificates: tuple[CertificateState, ...]
    fault: str | None = None

    def __str__(self) -> str:
        mark = "*" if self.active else "-" if self.previous else " "
        built = ", ".join(f"{c.runtime} {c.verdict} ({c.machine})" for c in self.certificates)
        return f"{mark} {self.folder}: {self.fault or built or 'onnxruntime only'}"


@dataclass(frozen=True, slots=True)
class Listing:
    """Every set of a folder, by name."""

    sets: tuple[SetState, ...]

    @property
    def exit_code(self) -> int:
        """Listing succeeds, whatever it shows."""
        return os.EX_OK

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"sets": [asdict(state) for state in self.sets]})

    def __str__(self) -> str:
        return "\n".join(map(str, self.sets)) or "no model sets"


@dataclass(frozen=True, slots=True)
class Verification:
    """How near the engines of a set came to its golden answers on this machine, all of them near enough."""

    model_set: str
    runtime: str
    outputs: tuple[Parity, ...]

    @property
    def exit_code(self) -> int:
        """What is too far off raises an error instead."""
        return os.EX_OK

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        lines = [f"{self.model_set} on {self.runtime}: certified"]
        return "\n".join([*lines, *(f"  {parity.output}: {parity}" for parity in self.outputs)])


class ModelFolder:
    """The model sets in the folder `path`. Methods raise the engine errors of what they meet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def active(self) -> Path:
        """The link that `models.path` should name."""
        return self.path / ACTIVE

    def sets(self) -> Listing:
        """Every set; its manifest and certificates are read, its engines are not opened."""
        folders = sorted(path.parent for path in self.path.glob(f"[!{HIDDEN}]*/{FILE_NAME}"))
        return Listing(tuple(self._state(folder) for folder in folders if not folder.is_symlink()))

    def find(self, name: str) -> Path:
        """The folder of the set `name`: its whole name, or the beginning of it where that is enough."""
        names = [state.folder for state in self.sets().sets]
        found = [name] if name in names else [folder for folder in names if folder.startswith(name)]
        if not found:
            known = ", ".join(names) or "none"
            raise ModelSetMissingError(f"{self.path}: no model set '{name}'; it holds: {known}, or give a folder")
        if len(found) > 1:
            raise UsageError(f"{self.path}: '{name}' may be {' or '.join(found)}; write more of it")
        return self.path / found[0]

    def take(self, source: Path) -> Path:
        """Copy the set in the folder `source` to `<name>@<hash>`, whole or not at all; return where it is then."""
        manifest, set_hash = check_model_set(source)
        target = self.path / f"{manifest.name}@{set_hash}"
        if target.exists():
            return target
        coming = self.path / f"{HIDDEN}{target.name}"
        with _writing(target):
            try:
                shutil.rmtree(coming, ignore_errors=True)
                coming.mkdir(parents=True)
                for file in (FILE_NAME, *(entry.file for entry in manifest.files)):
                    _copy(source / file, coming / file)
                sync_folder(coming)
                coming.rename(target)
                sync_folder(self.path)
            finally:
                shutil.rmtree(coming, ignore_errors=True)
        return target

    def resolve(self, name: str) -> Path:
        """The set `name` of this folder, or the set in the folder `name` elsewhere, taken in."""
        elsewhere = Path(name)
        if (elsewhere / FILE_NAME).is_file() and elsewhere.resolve().parent != self.path.resolve():
            return self.take(elsewhere)
        return self.find(elsewhere.resolve().name if elsewhere.is_dir() else name)

    def build(self, name: str, settings: BuildSettings, runtime: str, report: Callable[[Built], None]) -> Verification:
        """Build the engines of a set for `runtime`, certify them and open them once as the service will."""
        folder = self.resolve(name)
        build_model_set(folder, settings, runtime, report)
        return self.verify(folder.name, runtime)

    def verify(self, name: str, runtime: str) -> Verification:
        """Load a set as the service does, and tell how near it came."""
        folder = self.path / ACTIVE if name == ACTIVE else self.find(name)
        with load_model_set(folder, runtime=runtime) as models:
            return Verification(f"{models.manifest.name}@{models.hash}", models.runtime, models.parity)

    def activate(self, name: str, runtime: str) -> Verification:
        """Load a set on `runtime`, then make it the active one; the one before becomes `previous`."""
        folder = self.resolve(name)
        verification = self.verify(folder.name, runtime)
        now = self._target(ACTIVE)
        if now == folder.name:
            return verification
        with _writing(self.active):
            if now is not None:
                self._link(PREVIOUS, now)
            self._link(ACTIVE, folder.name)
        return verification

    def rollback(self) -> str:
        """Make the previous set active again, by one rename; return its name. It is verified when it is loaded."""
        previous = self._target(PREVIOUS)
        if previous is None:
            raise ModelSetMissingError(f"{self.path / PREVIOUS}: nothing to go back to; run: barnsight engine activate")
        read_manifest(self.path / previous)
        with _writing(self.active):
            (self.path / PREVIOUS).replace(self.active)
            sync_folder(self.path)
        return previous

    def _target(self, link: str) -> str | None:
        path = self.path / link
        return path.readlink().name if path.is_symlink() else None

    def _link(self, name: str, target: str) -> None:
        """Switch the link `name` in one step."""
        fresh = self.path / f"{HIDDEN}{name}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(self.path / name)
        sync_folder(self.path)

    def _state(self, folder: Path) -> SetState:
        set_hash, fault, certificates = "", None, []
        try:
            _, set_hash = read_manifest(folder)
            for runtime in BUILT:
                if (folder / runtime).is_dir():
                    certificate = read_certificate(folder / runtime)
                    certificates.append(CertificateState(runtime, certificate.verdict, str(certificate.machine)))
        except EngineError as error:
            fault = str(error)
        return SetState(
            folder=folder.name,
            hash=set_hash,
            active=folder.name == self._target(ACTIVE),
            previous=folder.name == self._target(PREVIOUS),
            certificates=tuple(certificates),
            fault=fault,
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, target.open("xb") as copy:
        shutil.copyfileobj(original, copy)
        copy.flush()
        os.fsync(copy.fileno())
