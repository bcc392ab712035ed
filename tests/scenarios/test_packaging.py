"""What ships: the systemd unit, the staged installation, the container file and the Makefile's promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "barnsight.service"


def tool(name: str) -> str:
    """Find a program beside this Python or on the path; skip where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


def settings(section: str) -> dict[str, list[str]]:
    """Read a section of the unit; a key may come more than once."""
    entries: dict[str, list[str]] = {}
    current = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            entries.setdefault(key, []).append(value)
    return entries


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    copy = tmp_path / "barnsight.service"
    # The program is not installed here; everything else is judged as it is.
    copy.write_text(UNIT.read_text().replace("/opt/barnsight/bin/barnsight", "/bin/true"))
    verdict = run(analyze, "verify", "--man=no", copy)
    assert (verdict.returncode, verdict.stdout, verdict.stderr) == (0, "", "")


def test_systemd_would_notice_a_typo_in_the_unit(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    copy = tmp_path / "barnsight.service"
    text = UNIT.read_text().replace("/opt/barnsight/bin/barnsight", "/bin/true")
    copy.write_text(text.replace("WatchdogSec=", "WatchdogSecs="))
    verdict = run(analyze, "verify", "--man=no", copy)
    assert "WatchdogSecs" in verdict.stdout + verdict.stderr


def test_the_unit_is_not_exposed(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    verdict = run(analyze, "security", "--offline=true", "--no-pager", "--threshold=30", UNIT)
    if "unrecognized option" in verdict.stderr:
        pytest.skip("this systemd cannot judge a unit offline")
    assert verdict.returncode == 0, verdict.stdout  # at most 3.0 of 10


def test_restarts_stop_where_only_a_person_can_help() -> None:
    service = settings("Service")
    assert service["Type"] == ["notify"]
    assert service["Restart"] == ["on-failure"]
    prevented = {int(code) for code in service["RestartPreventExitStatus"][0].split()}
    assert prevented == {os.EX_USAGE, os.EX_DATAERR, os.EX_NOINPUT, os.EX_NOPERM, os.EX_CONFIG}


def test_the_unit_uses_no_setting_that_ubuntu_22_04_does_not_know() -> None:
    later_than_249 = {"NFTSet", "OpenFile", "MemoryPressureWatch", "MemoryZSwapMax", "ImportCredential", "RestartSteps"}
    assert not later_than_249 & set(settings("Service"))
    assert settings("Service")["Type"] != ["notify-reload"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install into an empty folder, as a package builder would."""
    tool("make")
    folder = tmp_path_factory.mktemp("stage")
    done = run("make", "-C", ROOT, "install-systemd", f"DESTDIR={folder}", "SUDO=", "PREFIX=/opt/elsewhere")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_staged_installation_has_every_file_in_its_place(stage: Path) -> None:
    for name in (
        "etc/systemd/system/barnsight.service",
        "usr/lib/sysusers.d/barnsight.conf",
        "usr/lib/tmpfiles.d/barnsight.conf",
        "etc/barnsight/barnsight.yaml",
        "opt/elsewhere/engines/nano/manifest.json",
        "opt/elsewhere/share/cameras.d/pen-1.yaml",
    ):
        assert (stage / name).is_file(), name
    assert (stage / "usr/local/bin/barnsight").readlink() == Path("/opt/elsewhere/bin/barnsight")
    unit = (stage / "etc/systemd/system/barnsight.service").read_text()
    assert "ExecStart=/opt/elsewhere/bin/barnsight run" in unit
    site = yaml.safe_load((stage / "etc/barnsight/barnsight.yaml").read_text())
    assert site["models"]["path"] == "/opt/elsewhere/engines/nano"


def test_installing_again_keeps_the_configuration(stage: Path) -> None:
    site = stage / "etc/barnsight/barnsight.yaml"
    site.write_text("version: 1\n# mine\n")
    done = run("make", "-C", ROOT, "install-systemd", f"DESTDIR={stage}", "SUDO=", "PREFIX=/opt/elsewhere")
    assert done.returncode == 0, done.stderr
    assert site.read_text() == "version: 1\n# mine\n"


def test_the_user_of_the_unit_is_the_one_that_sysusers_makes(stage: Path) -> None:
    users = (stage / "usr/lib/sysusers.d/barnsight.conf").read_text()
    user = settings("Service")["User"][0]
    assert re.search(rf"^u {user} ", users, re.MULTILINE)
    for group in settings("Service")["SupplementaryGroups"][0].split():
        assert f"m {user} {group}" in users
    folders = (stage / "usr/lib/tmpfiles.d/barnsight.conf").read_text()
    assert f"/etc/barnsight/credentials 0750 root {user}" in folders
    (state,), (mode,) = settings("Service")["StateDirectory"], settings("Service")["StateDirectoryMode"]
    assert re.search(rf"^d /var/lib/{state} +{mode} {user} {user} -$", folders, re.MULTILINE)


def test_hadolint_has_nothing_to_say_about_the_container_file() -> None:
    verdict = run(tool("hadolint"), ROOT / "Dockerfile.l4t")
    assert (verdict.returncode, verdict.stdout) == (0, "")


def test_the_container_installs_the_daemon_alone_and_as_no_root() -> None:
    lines = [line for line in (ROOT / "Dockerfile.l4t").read_text().splitlines() if not line.startswith("#")]
    assert lines[0].startswith("FROM nvcr.io/nvidia/l4t-jetpack:r36")
    assert "USER 990" in lines  # with a group named, the user would have only that one, not `video`
    assert not any("[export" in line or "torch" in line for line in lines)


def test_container_and_makefile_name_the_same_system_packages() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    wanted = re.search(r"^APT_RUNTIME := (.*)$", makefile, re.MULTILINE)
    assert wanted
    container = (ROOT / "Dockerfile.l4t").read_text()
    named = set(re.findall(r"^ {8}([a-z0-9.-]+) \\$", container, re.MULTILINE))
    assert named == set(wanted[1].split())


def test_the_makefile_keeps_its_promises() -> None:
    listed = run(tool("make"), "-C", ROOT, "--no-print-directory", "help").stdout
    promised = {"install", "demo", "test", "check", "bench", "train", "install-systemd", "clean"}
    assert promised <= set(re.findall(r"make ([a-z-]+)", listed))


def test_the_benchmarks_of_make_bench_need_no_arguments() -> None:
    planned = run(tool("make"), "-C", ROOT, "--dry-run", "bench").stdout
    benchmarks = re.findall(r"benchmarks/\w+\.py", planned)
    assert {"benchmarks/tracking.py", "benchmarks/store.py"} <= set(benchmarks)
    for benchmark in benchmarks:
        text = (ROOT / benchmark).read_text()
        assert '"--quick"' in text, benchmark
        assert "required=True" not in text, benchmark


def test_ci_calls_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in ("make test", "make demo"):
        assert command in script
        assert command in readme
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
