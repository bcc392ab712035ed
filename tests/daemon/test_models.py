"""The folder of model sets: sets come in whole, one is active, and one rename goes back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from barnsight_engines import loader
from barnsight_engines.certificate import Certificate, Machine
from barnsight_engines.errors import EngineError, ModelSetDataError, ModelSetMissingError
from barnsight_engines.manifest import EngineEntry, Manifest, read_manifest, sha256_of
from barnsight_engines.scripted_backend import ScriptedBackend, scripted_model_set
from barnsight_engines.tensorrt_builder import BuildSettings, Built
from barnsightd import cli
from barnsightd.errors import UsageError
from barnsightd.models import ModelFolder


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine files hold no network here: each answers zeros, as the golden files say."""

    def opened(folder: Path, built: Path, entry: EngineEntry, runtime: str, threads: int | None) -> ScriptedBackend:
        assert (folder / entry.file).is_file()
        outputs = zeros(entry.outputs)
        return ScriptedBackend(entry.spec, lambda _: outputs)

    monkeypatch.setattr(loader, "_open", opened)


def zeros(specs: Any) -> dict[str, NDArray[Any]]:
    return {spec.name: np.zeros([n or 1 for n in spec.shape], np.float32) for spec in specs}


def write_set(folder: Path, name: str, golden: float = 0.0) -> Path:
    """A whole model set without networks; `golden` is what its golden file says of every output."""
    folder.mkdir(parents=True)
    manifest = scripted_model_set([]).manifest
    engines = []
    for engine in manifest.engines:
        (folder / f"{engine.role}.onnx").write_text(f"{engine.role} of {name}")
        hashed = sha256_of(folder / f"{engine.role}.onnx")
        engines.append(engine.model_copy(update={"file": f"{engine.role}.onnx", "sha256": hashed}))
    arrays = zeros(spec for engine in engines for spec in engine.inputs)
    arrays |= {name: value + np.float32(golden) for name, value in zeros(s for e in engines for s in e.outputs).items()}
    np.savez(folder / "golden.npz", **arrays)  # type: ignore[arg-type]
    np.savez(folder / "concepts.npz", **{name: np.zeros((1, 1, 1), np.float32) for name in manifest.concepts.names})  # type: ignore[arg-type]
    files = {
        kind: getattr(manifest, kind).model_copy(
            update={"file": f"{kind}.npz", "sha256": sha256_of(folder / f"{kind}.npz")}
        )
        for kind in ("golden", "concepts")
    }
    whole: Manifest = manifest.model_copy(update={"name": name, "engines": tuple(engines), **files})
    (folder / "manifest.json").write_text(whole.model_dump_json())
    return folder


def hash_of(folder: Path) -> str:
    return read_manifest(folder)[1]


@pytest.fixture
def pig(tmp_path: Path) -> Path:
    return write_set(tmp_path / "usb" / "pig-set", "pig")


@pytest.fixture
def cow(tmp_path: Path) -> Path:
    return write_set(tmp_path / "usb" / "cow-set", "cow")


@pytest.fixture
def models(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models")


def links(models: ModelFolder) -> dict[str, str]:
    return {path.name: path.readlink().name for path in models.path.iterdir() if path.is_symlink()}


class TestActivation:
    """A set is taken in, loaded, and only then active."""

    def test_a_set_from_elsewhere_is_taken_in_under_its_hash(self, models: ModelFolder, pig: Path) -> None:
        report = models.activate(str(pig), "auto")
        assert report.model_set == f"pig@{hash_of(pig)}"
        assert links(models) == {"active": f"pig@{hash_of(pig)}"}
        assert (models.active / "manifest.json").read_bytes() == (pig / "manifest.json").read_bytes()
        assert sorted(path.name for path in models.path.iterdir()) == ["active", f"pig@{hash_of(pig)}"]

    def test_the_set_before_becomes_the_previous_one(self, models: ModelFolder, pig: Path, cow: Path) -> None:
        models.activate(str(pig), "auto")
        models.activate(str(cow), "auto")
        assert links(models) == {"active": f"cow@{hash_of(cow)}", "previous": f"pig@{hash_of(pig)}"}
        models.activate("pig", "auto")  # by the beginning of its name
        assert links(models) == {"active": f"pig@{hash_of(pig)}", "previous": f"cow@{hash_of(cow)}"}

    def test_the_active_set_again_changes_nothing(self, models: ModelFolder, pig: Path, cow: Path) -> None:
        models.activate(str(pig), "auto")
        models.activate(str(cow), "auto")
        before = links(models)
        models.activate(str(cow), "auto")
        assert links(models) == before

    def test_a_set_that_misses_its_golden_answers_is_not_activated(
        self, models: ModelFolder, pig: Path, tmp_path: Path
    ) -> None:
        models.activate(str(pig), "auto")
        wrong = write_set(tmp_path / "wrong", "wrong", golden=0.5)
        with pytest.raises(ModelSetDataError, match="output 'd4' is not the golden one"):
            models.activate(str(wrong), "auto")
        assert links(models) == {"active": f"pig@{hash_of(pig)}"}

    def test_a_damaged_set_does_not_come_in(self, models: ModelFolder, pig: Path) -> None:
        (pig / "encoder.onnx").write_text("damaged")
        with pytest.raises(ModelSetDataError, match=r"encoder\.onnx: SHA-256"):
            models.activate(str(pig), "auto")
        assert not models.path.exists()

    def test_a_copy_that_fails_leaves_nothing(
        self, models: ModelFolder, pig: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(EngineError, match=r"pig@[0-9a-f]{12}: cannot be written \(No space left on device\)"):
            models.activate(str(pig), "auto")
        assert list(models.path.iterdir()) == []

    def test_what_a_broken_copy_left_is_swept_away(self, models: ModelFolder, pig: Path) -> None:
        coming = models.path / f".pig@{hash_of(pig)}"
        coming.mkdir(parents=True)
        (coming / "encoder.onnx").write_text("half of it")
        models.activate(str(pig), "auto")
        assert not coming.exists()
        assert (models.active / "encoder.onnx").read_text() == "encoder of pig"


class TestRollback:
    """One rename, of the link `previous` over the link `active`."""

    def test_back_to_the_set_before(self, models: ModelFolder, pig: Path, cow: Path) -> None:
        models.activate(str(pig), "auto")
        models.activate(str(cow), "auto")
        assert models.rollback() == f"pig@{hash_of(pig)}"
        assert links(models) == {"active": f"pig@{hash_of(pig)}"}
        with pytest.raises(ModelSetMissingError, match="nothing to go back to"):
            models.rollback()

    def test_it_is_one_rename(self, models: ModelFolder, pig: Path, cow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        models.activate(str(pig), "auto")
        models.activate(str(cow), "auto")
        renames = []
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, to: renames.append((path.name, to.name)) or replace(path, to))
        models.rollback()
        assert renames == [("previous", "active")]

    def test_a_set_that_is_gone_is_not_gone_back_to(self, models: ModelFolder, pig: Path, cow: Path) -> None:
        models.activate(str(pig), "auto")
        models.activate(str(cow), "auto")
        (models.path / f"pig@{hash_of(pig)}" / "manifest.json").unlink()
        with pytest.raises(ModelSetMissingError):
            models.rollback()
        assert links(models)["active"] == f"cow@{hash_of(cow)}"


class TestNames:
    """A set is named by as much as is enough."""

    def test_an_unknown_one(self, models: ModelFolder, pig: Path) -> None:
        models.take(pig)
        with pytest.raises(ModelSetMissingError, match=rf"no model set 'cow'; it holds: pig@{hash_of(pig)}"):
            models.activate("cow", "auto")

    def test_an_ambiguous_one(self, models: ModelFolder, pig: Path, tmp_path: Path) -> None:
        other = write_set(tmp_path / "usb" / "piglet-set", "piglet")
        models.take(pig)
        models.take(other)
        with pytest.raises(UsageError, match=r"'pig' may be pig@[0-9a-f]{12} or piglet@[0-9a-f]{12}; write more of it"):
            models.activate("pig", "auto")

    def test_a_path_into_the_folder_itself(self, models: ModelFolder, pig: Path) -> None:
        taken = models.take(pig)
        assert models.resolve(str(taken)) == taken


class TestListing:
    """Every set, which one is active, and its certificates."""

    def test_sets_links_and_certificates(self, models: ModelFolder, pig: Path, cow: Path) -> None:
        models.activate(str(pig), "auto")
        models.activate(str(cow), "auto")
        built = models.path / f"cow@{hash_of(cow)}" / "tensorrt"
        built.mkdir()
        machine = Machine(runtime="tensorrt", version="10.3.0", device="Orin (8.7)")
        Certificate(model_set=hash_of(cow), machine=machine, reference="onnxruntime", verdict="pass", engines=()).write(
            built
        )
        listing = models.sets()
        assert str(listing).splitlines() == [
            f"* cow@{hash_of(cow)}: tensorrt pass (tensorrt 10.3.0, Orin (8.7))",
            f"- pig@{hash_of(pig)}: onnxruntime only",
        ]
        shown = json.loads(listing.to_json())["sets"]
        assert [(state["hash"], state["active"], state["previous"]) for state in shown] == [
            (hash_of(cow), True, False),
            (hash_of(pig), False, True),
        ]

    def test_a_set_with_a_fault_is_shown_with_it(self, models: ModelFolder, pig: Path) -> None:
        (models.take(pig) / "manifest.json").write_text("{")
        assert "manifest.json: not JSON" in str(models.sets())

    def test_no_folder(self, models: ModelFolder) -> None:
        assert str(models.sets()) == "no model sets"


class TestCommands:
    """`barnsight engine …`"""

    def test_from_a_stick_to_a_rollback(
        self, models: ModelFolder, pig: Path, cow: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        option = ["--models", str(models.path)]
        for source in (pig, cow):
            assert cli.main(["engine", "activate", str(source), *option]) == 0
        assert f"point models.path at {models.path}/active" in capsys.readouterr().err
        assert cli.main(["engine", "verify", *option, "--json"]) == 0
        verified = json.loads(capsys.readouterr().out)
        assert verified["model_set"] == f"cow@{hash_of(cow)}"
        assert {output["output"] for output in verified["outputs"]} >= {"d4", "boxes", "logits", "masks"}
        assert cli.main(["engine", "rollback", *option]) == 0
        assert capsys.readouterr().out == f"active: pig@{hash_of(pig)}; restart the service\n"
        assert cli.main(["engine", "list", *option]) == 0
        assert capsys.readouterr().out.startswith(f"  cow@{hash_of(cow)}: onnxruntime only\n* pig@")

    def test_the_folder_is_the_one_that_is_configured(
        self, tmp_path: Path, models: ModelFolder, pig: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "cameras.d").mkdir()
        (tmp_path / "cameras.d/pen-3.yaml").write_text("version: 1\nname: pen-3\nsource: rtsp://h/s\nspecies: pig\n")
        site = tmp_path / "barnsight.yaml"
        site.write_text("version: 1\nmodels: {path: models/active, runtime: onnxruntime}\n")
        assert cli.main(["engine", "activate", str(pig), "--config", str(site)]) == 0
        assert links(models) == {"active": f"pig@{hash_of(pig)}"}
        assert "on onnxruntime" not in capsys.readouterr().err

    def test_a_set_is_taken_in_built_and_opened_once(
        self, models: ModelFolder, pig: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def build(folder: Path, settings: BuildSettings, runtime: str, report: Callable[[Built], None]) -> None:
            calls.append((folder.name, settings, runtime))
            report(Built(folder / "encoder.engine", 14_000_000, 726, 3.6))

        calls: list[Any] = []
        monkeypatch.setattr("barnsightd.models.build_model_set", build)
        monkeypatch.setattr(loader, "_check_certificate", lambda *given: calls.append("certificate"))
        options = ["--batches", "1,2,4", "--workspace-mb", "500", "--models", str(models.path)]
        assert cli.main(["engine", "build", str(pig), *options]) == 0
        settings = BuildSettings((1, 2, 4), 500_000_000, models.path / "tensorrt-timing.cache")
        assert calls == [(f"pig@{hash_of(pig)}", settings, "tensorrt"), "certificate"]
        assert "encoder.engine: 726 layers, 14 MB, 4 s" in capsys.readouterr().err
        assert links(models) == {}, "building activates nothing"

    def test_batches_that_make_no_sense(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["engine", "build", "pig", "--batches", "8,1,20"]) == 64
        assert "three whole numbers that rise from 1 or more" in capsys.readouterr().err

    def test_a_failing_set_ends_with_65(
        self, models: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wrong = write_set(tmp_path / "wrong", "wrong", golden=0.5)
        assert cli.main(["engine", "activate", str(wrong), "--models", str(models.path)]) == 65
        (line,) = capsys.readouterr().err.splitlines()
        assert "engine 'encoder': output 'd4' is not the golden one" in line
        assert "largest difference 0.5" in line
