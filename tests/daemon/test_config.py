"""A site is written down, read, changed and reloaded; every slip of the pen gets its file, line and rule."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from barnsightd.config import (
    CameraConfig,
    Config,
    Credentials,
    SiteConfig,
    SourceAddress,
    check_references,
    diff,
    load_config,
    mask,
)
from barnsightd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "S3cret:p@ss/w#rd"

SITE = """\
version: 1
models: {path: models/nano}
"""
PEN = """\
version: 1
name: pen-3
source: rtsp://10.0.0.13/stream1
species: pig
roster: 12
fps: 6
zones:
  feeder: [[0.1, 0.0], [0.3, 0.0], [0.3, 0.2]]
tracking: {detect_every: 1, session_minutes: 60}
"""

WriteSite = Callable[..., Path]


@pytest.fixture
def write_site(tmp_path: Path) -> WriteSite:
    """Writes `barnsight.yaml` and cameras by name; returns the site file."""

    def write(site: str = SITE, **cameras: str) -> Path:
        folder = tmp_path / "cameras.d"
        folder.mkdir(exist_ok=True)
        for name, text in (cameras or {"pen_3": PEN}).items():
            (folder / f"{name.replace('_', '-')}.yaml").write_text(text)
        path = tmp_path / "barnsight.yaml"
        path.write_text(site)
        return path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.exit_code == 78
    return str(caught.value).splitlines()


def test_a_site_with_one_pen_is_read_with_its_defaults(write_site: WriteSite, tmp_path: Path) -> None:
    config = load_config(write_site())
    camera = config.camera("pen-3")

    assert config.site.models.path == tmp_path / "models/nano"
    assert config.site.web.host == "127.0.0.1"
    assert (camera.species, camera.fps, camera.tracking.max_objects) == ("pig", 6, 30)
    assert camera.zones["feeder"] == ((0.1, 0.0), (0.3, 0.0), (0.3, 0.2))
    assert camera.source.endpoint == ("10.0.0.13", 554)
    assert [file.name for file in config.files] == ["barnsight.yaml", "cameras.d/pen-3.yaml"]


def test_what_show_prints_reads_back_to_the_same_settings(write_site: WriteSite) -> None:
    shown = load_config(write_site()).to_yaml().split("---\n")
    assert diff(load_config(write_site()), load_config(write_site(shown[0], pen_3=shown[1]))).applied == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("fps: 6", "fps: 0", 6, "fps: must be a number from 1 to 60, got 0; remove the line for the default, 6"),
        ("fps: 6", "fps: six", 6, "fps: must be a number from 1 to 60, got 'six'"),
        ("fps: 6", 'fps: "6"', 6, "fps: must be a number from 1 to 60, got '6'"),
        ("fps: 6", "fps: true", 6, "fps: must be a number from 1 to 60, got true"),
        ("fps: 6", "fps: .nan", 6, "fps: must be a number from 1 to 60, got nan"),
        ("fps: 6", "fps: .inf", 6, "fps: must be a number from 1 to 60, got inf"),
        ("fps: 6", "fps:", 6, "fps: must be a number from 1 to 60, got nothing"),
        ("fps: 6", "ftp: 6", 6, "ftp: is no setting; did you mean 'fps'?"),
        ("roster: 12", "roster: -1", 5, "roster: must be a whole number from 0 to 500, got -1"),
        ("roster: 12", "roster: 1.5", 5, "roster: must be a whole number from 0 to 500, got 1.5"),
        ("version: 1", "version: 2", 1, "version: must be 1, got 2"),
        ("species: pig\n", "", 1, "species: is missing; add it: must be text that matches"),
        ("species: pig", "species: [pig]", 4, "species: must be text that matches"),
        ("name: pen-3", "name: pen-4", 2, "name: must equal the file's name, 'pen-3', got 'pen-4'"),
        ("name: pen-3", "name: no", 2, "name: must be text that matches ^[a-z0-9][a-z0-9-]{0,62}$, got false"),
        ("detect_every", "detect_evry", 9, "tracking.detect_evry: is no setting; did you mean 'detect_every'?"),
        ("{detect_every: 1, session_minutes: 60}", "1", 9, "tracking: must be a mapping"),
        ("0.2]]", "1.2]]", 8, "zones.feeder: must lie inside the image, 0 to 1, got the point [0.3, 1.2]"),
        (", [0.3, 0.2]", "", 8, "zones.feeder: must be a list of 3 to 64 points [x, y], got a list of 2"),
        ("[0.3, 0.2]", "[0.3]", 8, "zones.feeder.2: must be a point [x, y], got a list of 1"),
        ("[0.3, 0.2]", "[0.3, 0.2, 0.1]", 8, "zones.feeder.2: must be a point [x, y], got a list of 3"),
        ("[0.3, 0.2]", "[0.3, up]", 8, "zones.feeder.2.1: must be a number, got 'up'"),
        ("[0.3, 0.2]", "[0.2, 0.0]", 8, "zones.feeder: encloses no area"),
        ("[0.3, 0.2]", "[0.1, 0.0]", 8, "zones.feeder: names a point twice"),
        ("[0.3, 0.0]", "[0.3, 0.2], [0.3, 0.0], [0.1, 0.2]", 8, "zones.feeder: names a point twice"),
        ("[0.3, 0.0], [0.3, 0.2]", "[0.3, 0.2], [0.3, 0.0], [0.1, 0.2]", 8, "zones.feeder: crosses itself"),
        ("feeder:", "Feeder:", 8, "zones.Feeder: must be text that matches"),
        ("rtsp://", "http://", 3, "source: must be rtsp://, rtsps:// or the path of a video file"),
        ("10.0.0.13/", "10.0.0.13:99999/", 3, "source: must read rtsp://HOST[:PORT]/PATH"),
        ("10.0.0.13/", "/", 3, "source: must read rtsp://HOST[:PORT]/PATH"),
        ("rtsp://10.0.0.13/stream1", "12", 3, "source: must be text"),
        ("rtsp://", "rtsp://${password}@", 3, "source: holds '${' that is no credential"),
        ("rtsp://", "rtsp://${credential:pen-9}@", 3, "source: names the credential 'pen-9', which is not in"),
        ("fps: 6", "fps: 6\nfps: 7", 7, "fps: is given twice, first on line 6; remove one"),
        ("fps: 6", "tracking: {<<: {detect_every: 2}}", 6, "has a key that is a group or a merge"),
        ("fps: 6", "\tfps: 6", 6, "is indented with a tab; use spaces"),
        ("fps: 6", "fps: &six 6", 6, "uses an anchor or alias (& or *); write the value out"),
        ("fps: 6", "fps: [6", 7, "is not valid YAML:"),
        ("fps: 6", "6: fps", 6, "has the key 6, which is not a name"),
        ("fps: 6", "fps: !!python/object:os.system x", 6, "is not valid YAML: could not determine a constructor"),
        ("fps: 6", "fps: 2026-99-99", 6, "holds '2026-99-99'; put it in quotes"),
        ("fps: 6", 'fps: !!int ""', 6, "holds ''; put it in quotes"),
        ("fps: 6", "!!bool x: 6", 6, "holds 'x'; put it in quotes"),
        ("fps: 6", "fps: !!bool x", 6, "holds 'x'; put it in quotes"),
        ("fps: 6", "fps: !!timestamp x", 6, "holds 'x'; put it in quotes"),
        ("fps: 6", "fps: " + "[" * 30 + "]" * 30, 6, "is nested deeper than 16 levels"),
        ("fps: 6", "fps: \x01", 6, "holds the character '\\x01'; remove it"),
    ],
)
def test_each_slip_is_named_with_its_line(write_site: WriteSite, old: str, new: str, line: int, message: str) -> None:
    assert old in PEN
    first, *others = problems(write_site(pen_3=PEN.replace(old, new, 1)))
    assert first.startswith(f"cameras.d/pen-3.yaml:{line}: {message}")
    assert not others


def test_everything_wrong_in_all_files_is_told_at_once(write_site: WriteSite) -> None:
    site = write_site(
        SITE + "web: {port: 70000}\nstorge: {}\n",
        pen_1=PEN.replace("pen-3", "pen-1").replace("fps: 6", "fps: 99"),
        pen_2="",
        pen_3=PEN.replace("reconnect", "") + "ingest: {reconnect_min_s: 30, reconnect_max_s: 5}\n",
    )
    assert problems(site) == [
        "barnsight.yaml:3: web.port: must be a whole number from 0 to 65535, got 70000; "
        "remove the line for the default, 9108",
        "barnsight.yaml:4: storge: is no setting; did you mean 'storage'?",
        "cameras.d/pen-1.yaml:6: fps: must be a number from 1 to 60, got 99; remove the line for the default, 6",
        "cameras.d/pen-2.yaml: is empty",
        "cameras.d/pen-3.yaml:10: ingest.reconnect_max_s: must be at least reconnect_min_s, 30, got 5",
    ]


def test_a_file_that_is_no_yaml_file_of_ours_is_refused(write_site: WriteSite, tmp_path: Path) -> None:
    site = write_site()
    (tmp_path / "cameras.d/pen-4.yml").write_text(PEN)
    (tmp_path / "cameras.d/.pen-5.yaml.swp").write_bytes(b"\x00 an editor's, not ours")
    (tmp_path / "cameras.d/pen-6.yaml").write_bytes(b"version: 1\nname: pen-\xff\n")
    (tmp_path / "cameras.d/pen-7.yaml").write_text("#" * 1_000_001)
    (tmp_path / "cameras.d/pen-8.yaml").mkdir()
    (tmp_path / "cameras.d/pen-9.yaml").write_text("- a list\n")

    assert problems(site) == [
        "cameras.d/pen-4.yml: is not read; rename it to end in .yaml, or move it elsewhere",
        "cameras.d/pen-6.yaml:2: is not UTF-8 text; save the file as UTF-8",
        "cameras.d/pen-7.yaml: is larger than 1 MB; this is no configuration file",
        "cameras.d/pen-8.yaml: cannot be read: Is a directory",
        "cameras.d/pen-9.yaml:1: must be a mapping, lines of `key: value`, got a list of 1",
    ]


def test_a_site_needs_its_file_and_a_camera(write_site: WriteSite, tmp_path: Path) -> None:
    assert problems(tmp_path / "nowhere.yaml")[0].endswith("does not exist; name the site file with --config")
    site = write_site()
    (tmp_path / "cameras.d/pen-3.yaml").unlink()
    assert problems(site) == ["cameras.d: holds no camera; add cameras.d/<name>.yaml, one for each"]


def test_a_folder_of_cameras_that_may_not_be_read_is_not_called_empty(
    write_site: WriteSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    site = write_site()
    monkeypatch.setattr(Path, "iterdir", forbidden)  # the tests may run as root, who may read everything
    assert problems(site) == ["cameras.d: cannot be read; run as the service's user, or with sudo"]


@settings(deadline=None, derandomize=True)
@given(text=st.text(max_size=200))
def test_no_text_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "barnsight.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore")
    with pytest.raises(ConfigError, match=r"barnsight\.yaml"):
        load_config(path)


class TestCredentials:
    """Passwords stay in files of their own and come out only by `reveal`."""

    @pytest.mark.parametrize(
        ("source", "content", "revealed"),
        [
            ("rtsp://${credential:pen-3}@h/s", f"admin:{PASSWORD}", "rtsp://admin:S3cret%3Ap%40ss%2Fw%23rd@h/s"),
            ("rtsp://admin:${credential:pen-3}@h/s", PASSWORD, "rtsp://admin:S3cret%3Ap%40ss%2Fw%23rd@h/s"),
            ("rtsp://h/s?token=${credential:pen-3}", PASSWORD, "rtsp://h/s?token=S3cret%3Ap%40ss%2Fw%23rd"),
            ("${credential:pen-3}", "rtsp://admin:x%40y@h:8554/s", "rtsp://admin:x%40y@h:8554/s"),
        ],
    )
    def test_a_reference_is_filled_in_and_never_shown(
        self, write_site: WriteSite, tmp_path: Path, source: str, content: str, revealed: str
    ) -> None:
        self.write(tmp_path, content)
        config = load_config(write_site(pen_3=PEN.replace("rtsp://10.0.0.13/stream1", source)))

        assert config.cameras[0].source.reveal() == revealed
        assert f"source: {source}" in config.to_yaml()
        assert not config.warnings
        self.assert_hidden(config)

    def test_systemd_s_folder_comes_first(
        self, write_site: WriteSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(tmp_path, "old:one")
        managed = tmp_path / "run"
        managed.mkdir()
        (managed / "pen-3").write_text("new:one\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(managed))
        site = write_site(pen_3=PEN.replace("rtsp://", "rtsp://${credential:pen-3}@"))
        assert load_config(site).cameras[0].source.reveal() == "rtsp://new:one@10.0.0.13/stream1"

    def test_a_password_in_the_file_works_with_a_warning(self, write_site: WriteSite) -> None:
        source = "rtsp://admin:S3cret%3Ap%40ss@"
        config = load_config(write_site(pen_3=PEN.replace("rtsp://", source)))
        assert config.cameras[0].source.reveal().startswith(source)
        assert [str(warning) for warning in config.warnings] == [
            "cameras.d/pen-3.yaml:3: source: holds a password; better ${credential:pen-3}, with it in credentials/pen-3"
        ]
        self.assert_hidden(config)

    @pytest.mark.parametrize(
        ("content", "mode", "message"),
        [
            ("S3cret", 0o640, "must hold user:password"),
            ("", 0o640, "must hold one line"),
            ("a:S3cret\nb:S3cret", 0o640, "must hold one line"),
            ("a:" + "S3cret" * 1000, 0o640, "must hold one line of UTF-8 text of at most 4 kB"),
            ("a:S3cret", 0o644, "which everyone can read; run: chmod 640"),
        ],
    )
    def test_a_bad_credential_is_told_without_its_content(
        self, write_site: WriteSite, tmp_path: Path, content: str, mode: int, message: str
    ) -> None:
        self.write(tmp_path, content, mode)
        (problem,) = problems(write_site(pen_3=PEN.replace("rtsp://", "rtsp://${credential:pen-3}@")))
        assert message in problem
        assert "S3cret" not in problem

    @pytest.mark.parametrize(
        "wrong",
        [
            "source: rtsp://admin:S3cret/w@10.0.0.13/stream1",
            "source: rtsp://admin:S3cret#w@10.0.0.13/stream1",
            "source: rtsp://admin:S3cret w@10.0.0.13/stream1",
            "source: rtmp://admin:S3cret@10.0.0.13/stream1",
            "source: {user: admin, password: S3cret}",
            "source: [rtsp, S3cret]",
            "sourcs: rtsp://admin:S3cret@10.0.0.13/stream1\nsource: rtsp://h/s",
            "source: rtsp://h/s\nroster: rtsp://admin:S3cret@10.0.0.13/stream1",
            "source: rtsp://h/s\nroster: rtsp://h/s?password=S3cret&x=1",
            "source: rtsp://admin:S3cret@h/s\nsource: rtsp://admin:S3cret@h/s",
            'source: "rtsp://admin:S3cret@h/s',
            "source: rtsp://admin:S3cret'w@h:port/s",
            "source: rtsp://h/s\nspecies: 'rtsp://admin:S3cret w@h/s'",
        ],
    )
    def test_no_error_quotes_a_password(self, write_site: WriteSite, wrong: str) -> None:
        text = f"version: 1\nname: pen-3\n{wrong}\n"
        assert "S3cret" not in "\n".join(problems(write_site(pen_3=text)))

    def write(self, folder: Path, content: str, mode: int = 0o640) -> None:
        path = folder / "credentials/pen-3"
        path.parent.mkdir()
        path.write_text(content + "\n")
        path.chmod(mode)

    def assert_hidden(self, config: Config) -> None:
        camera = config.cameras[0]
        shown = (config.to_yaml(), repr(config), str(camera), f"{camera.source}", camera.model_dump_json())
        assert not [text for text in shown if re.search(r"S3cret|x%40y|w%23rd", text)]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("rtsp://a:b@h/s", "rtsp://***@h/s"),
        ("cannot open 'rtsp://a:b/c@h/s' now", "cannot open 'rtsp://***@h/s' now"),
        ("rtsp://a:b@h/s and rtsps://c:d@h", "rtsp://***@h/s and rtsps://***@h"),
        ("rtsp://h/user=admin&password=b&channel=1", "rtsp://h/user=admin&password=***&channel=1"),
        ("rtsp://h:554/user=admin_password=b_channel=1_stream=0.sdp", "rtsp://h:554/user=admin_password=***"),
        ("rtsp://h/v?user_password=b&psw=c&x=1", "rtsp://h/v?user_password=***&psw=***&x=1"),
        ("rtsp://h/v?loginuse=a&loginpas=b", "rtsp://h/v?loginuse=a&loginpas=***"),
        ("rtsp://h/v?auth=b&access_token=c&pwd=d", "rtsp://h/v?auth=***&access_token=***&pwd=***"),
        ("rtsp://h/a_password=${credential:pen-3}_x=1.sdp", "rtsp://h/a_password=${credential:pen-3}_x=1.sdp"),
        ("rtsp://${credential:pen-3}@h/s", "rtsp://${credential:pen-3}@h/s"),
        ("rtsp://h/s", "rtsp://h/s"),
        ("mail a@b", "mail a@b"),
    ],
)
def test_masking(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    ("written", "credential", "said", "told"),
    [
        (
            "rtsp://admin:p%40ss%2Fword@h/s",
            "",
            "rtsp://admin:p%40ss%2Fword@h/s refused p@ss/word, also p%40ss%2Fword",
            "rtsp://***@h/s refused ***, also ***",
        ),
        (
            "${credential:pen-3}",
            "rtsp://192.168.1.1:7447/AbCdEfSecretToken",
            "rtsp://192.168.1.1:7447/AbCdEfSecretToken: no AbCdEfSecretToken",
            "rtsp://192.168.1.1:7447/***: no ***",
        ),
        (
            "rtsp://h/user=a_password=${credential:pen-3}_channel=1.sdp",
            "SEC/RET",
            "no /user=a_password=SEC%2FRET_channel=1.sdp, no /user=a_password=SEC/RET_channel=1.sdp",
            "no /***, no /***",
        ),
        ("rtsp://h/live/stream1", "", "rtsp://h/live/stream1: no stream1", "rtsp://h/live/stream1: no stream1"),
    ],
    ids=["a password", "a whole address", "a part of the path", "nothing"],
)
def test_what_an_address_hides_is_taken_out_of_what_others_say(
    tmp_path: Path, written: str, credential: str, said: str, told: str
) -> None:
    (tmp_path / "pen-3").write_text(credential)
    (tmp_path / "pen-3").chmod(0o600)
    assert SourceAddress.parse(written, Credentials(tmp_path)).mask(said) == told


def test_a_file_or_folder_is_a_source_too(tmp_path: Path) -> None:
    assert SourceAddress.parse("clips/pen.mp4", folder=tmp_path).path == tmp_path / "clips/pen.mp4"
    assert SourceAddress.parse("/srv/a b.mp4").path == Path("/srv/a b.mp4")
    assert SourceAddress.parse("file:///srv/a%20b.mp4").path == Path("/srv/a b.mp4")
    assert SourceAddress.parse("rtsps://10.0.0.13/s").endpoint == ("10.0.0.13", 322)
    assert SourceAddress.parse("rtsp://[fe80::1]:8554/s").endpoint == ("fe80::1", 8554)
    with pytest.raises(ValueError, match="names the credential 'x'"):
        SourceAddress.parse("${credential:x}", Credentials(tmp_path))


def test_what_is_named_must_be_there(write_site: WriteSite, tmp_path: Path) -> None:
    site = write_site(
        pen_3=PEN.replace("rtsp://10.0.0.13/stream1", "clips/pen.mp4").replace("species: pig", "species: pigs")
        + "calibration: {scale: pens/pen-3.homography.yaml}\n"
    )
    (problem,) = map(str, check_references(load_config(site)))
    assert problem.startswith("barnsight.yaml:2: models.path: ")
    assert "No such file" in problem

    write_manifest(tmp_path / "models/nano")
    assert [str(problem) for problem in check_references(load_config(site))] == [
        "cameras.d/pen-3.yaml:4: species: is no concept of the model set, got 'pigs'; did you mean 'pig'?",
        f"cameras.d/pen-3.yaml:3: source: {tmp_path}/cameras.d/clips/pen.mp4 "
        "does not exist or may not be read; correct it",
        f"cameras.d/pen-3.yaml:10: calibration.scale: {tmp_path}/cameras.d/pens/pen-3.homography.yaml "
        "does not exist or may not be read; correct it",
    ]


def write_manifest(folder: Path) -> None:
    file = {"file": "some.npz", "sha256": "0" * 64}
    engine = {**file, "precision": "fp32", "inputs": [], "outputs": []}
    folder.mkdir(parents=True)
    manifest = {
        "schema_version": 1,
        "name": "test",
        "preset": "nano",
        "image_size": [320, 320],
        "grid": [20, 20],
        "mask_size": [80, 80],
        "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "concepts": {**file, "names": ["pig", "cow"]},
        "behaviors": [],
        "thresholds": {"score": 0.5, "nms_iou": 0.5},
        "engines": [{**engine, "role": role} for role in ("encoder", "detector")],
        "golden": file,
        "trained_on": "nothing",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_reload_applies_cameras_and_says_what_waits_for_a_restart(write_site: WriteSite, tmp_path: Path) -> None:
    pens = {f"pen_{n}": PEN.replace("pen-3", f"pen-{n}") for n in (1, 2, 3)}
    old = load_config(write_site(**pens))
    (tmp_path / "cameras.d/pen-1.yaml").unlink()
    changed = {"pen_2": pens["pen_2"].replace("fps: 6", "fps: 12"), "pen_4": PEN.replace("pen-3", "pen-4")}
    new = load_config(write_site(SITE + "web: {port: 9200}\nlog_level: debug\n", **changed))

    changes = diff(old, new)

    assert changes.applied == (
        "camera pen-4 added",
        "camera pen-1 removed",
        "camera pen-2 changed",
        "log_level debug",
    )
    assert changes.needs_restart == ("web",)
    assert diff(new, new).applied == diff(new, new).needs_restart == ()


def test_a_new_password_changes_the_camera(write_site: WriteSite, tmp_path: Path) -> None:
    site = write_site(pen_3=PEN.replace("rtsp://", "rtsp://${credential:pen-3}@"))
    credential = tmp_path / "credentials/pen-3"
    credential.parent.mkdir()
    configs = []
    for password in ("old", "new"):
        credential.write_text(f"admin:{password}")
        credential.chmod(0o600)
        configs.append(load_config(site))
    assert diff(*configs).changed == ("pen-3",)


def test_the_example_is_sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("pen-1", "barn-cows"):
        (tmp_path / name).write_text("viewer:example\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = load_config(ROOT / "systemd/example/barnsight.yaml")
    assert {camera.species for camera in config.cameras} == {"pig", "cow"}
    assert not config.warnings


@pytest.mark.parametrize("model", [SiteConfig, CameraConfig])
def test_the_documentation_lists_every_setting_as_it_is(model: type[SiteConfig] | type[CameraConfig]) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    missing = [row for row in reference(model.model_json_schema()) if row not in text]
    assert not missing, "docs/configuration.md lacks these rows:\n" + "\n".join(missing)


def reference(schema: dict[str, object], prefix: str = "", node: dict[str, object] | None = None) -> list[str]:
    """The rows of the reference: key, meaning with unit, what is allowed, default."""
    rows: list[str] = []
    here = node or schema
    for name, entry in here["properties"].items():  # type: ignore[attr-defined]
        if "$ref" in entry:
            group = schema["$defs"][entry["$ref"].rpartition("/")[2]]  # type: ignore[index]
            rows += reference(schema, f"{prefix}{name}.", group)
            continue
        default = "required" if name in here.get("required", ()) else entry.get("default")  # type: ignore[operator]
        shown = "" if default is None else "required" if default == "required" else f"`{default}`"
        rows.append(f"| `{prefix}{name}` | {entry['description']} | {allowed(entry)} | {shown} |")
    return rows


def allowed(entry: dict[str, object]) -> str:
    entry = entry | entry["anyOf"][0] if "anyOf" in entry else entry  # type: ignore[index]
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])  # type: ignore[attr-defined]
    if "const" in entry:
        return f"`{entry['const']}`"
    if "minimum" in entry:
        return f"{entry['minimum']:.10g} to {entry['maximum']:.10g}" + (", whole" if entry["type"] == "integer" else "")
    return {"object": "polygons", "string": "path" if entry.get("format") == "path" else "text"}[str(entry["type"])]


def test_the_schema_admits_the_example_s_keys_and_no_others() -> None:
    site = yaml.safe_load((ROOT / "systemd/example/barnsight.yaml").read_text())
    schema = SiteConfig.model_json_schema()
    assert site.keys() <= schema["properties"].keys()
    assert schema["additionalProperties"] is False
