"""The board's sensors on a file tree like that of an Orin NX with JetPack 6, and on machines that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from barnsightd.runtime.jetson import BoardCollector, BoardReading, is_jetson, read_board

NVMAP = """\
CLIENT                        PROCESS      PID        SIZE
user                           python     2713     811008K
user                             Xorg     1731      18140K
total                                                829148K
"""
ORIN_NX = {
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
    "proc/meminfo": "MemTotal: 15655232 kB\nMemAvailable: 9876543 kB\n",
    "sys/kernel/debug/nvmap/iovmm/clients": NVMAP,
    "sys/class/devfreq/17000000.gpu/device/load": "437\n",
    "sys/class/devfreq/15340000.vic/device/load": "999\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51812\n",
    "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
    "sys/class/thermal/thermal_zone1/temp": "48500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone8/temp": "52000\n",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/hwmon/hwmon0/name": "pwmfan\n",
    "sys/class/hwmon/hwmon0/pwm1": "51\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "2400\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr2_input": "800\n",
    "sys/class/hwmon/hwmon1/in3_label": "NC\n",
    "sys/class/hwmon/hwmon1/in3_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr3_input": "1\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon1/in7_input": "16\n",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "15\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n",
}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def board(root: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(BoardCollector(root))
    return registry


def exposition(root: Path) -> str:
    return generate_latest(board(root)).decode()


def test_an_orin_nx_tells_everything(tmp_path: Path) -> None:
    reading = read_board(machine(tmp_path, ORIN_NX))
    assert reading == BoardReading(
        gpu_memory_used_bytes=829148 * 1024,
        gpu_load=0.437,
        temperature_celsius={"cpu": 51.812, "gpu": 48.5, "tj": 52.0},  # cv0 is powered down
        throttle_events={"undervoltage": 0, "average_overcurrent": 15, "instantaneous_overcurrent": 37},
        power_watts={"VDD_IN": 12.0, "VDD_CPU_GPU_CV": 4.0},
        fan_duty=0.2,
        power_mode="15W",
    )


def test_its_metrics_carry_the_same_figures(tmp_path: Path) -> None:
    value = board(machine(tmp_path, ORIN_NX)).get_sample_value
    assert value("barnsight_gpu_memory_used_bytes") == 829148 * 1024
    assert value("barnsight_memory_available_bytes") == 9876543 * 1024
    assert value("barnsight_soc_temperature_celsius", {"zone": "cpu"}) == 51.812
    assert value("barnsight_throttle_events_total", {"cause": "instantaneous_overcurrent"}) == 37
    assert value("barnsight_power_watts", {"rail": "VDD_IN"}) == 12
    assert value("barnsight_power_mode_info", {"mode": "15W"}) == 1


def test_the_folder_that_systemd_binds_is_read_before_debugfs(tmp_path: Path) -> None:
    bound = {"run/barnsight-nvmap/clients": NVMAP.replace("829148K", "1M")}
    assert read_board(machine(tmp_path, ORIN_NX | bound)).gpu_memory_used_bytes == 1024**2


@pytest.mark.parametrize(
    ("clients", "used_bytes"),
    [
        ("CLIENT  PROCESS  PID  PSS  SIZE\nuser  python  4678  0K  76K\ntotal  64K  76K\n", 76 * 1024),
        ("total   0K\n", 0),
        ("user   python   2713   811008K\n", None),
        ("", None),
    ],
)
def test_every_known_form_of_nvmaps_list_is_understood(tmp_path: Path, clients: str, used_bytes: int | None) -> None:
    root = machine(tmp_path, ORIN_NX | {"sys/kernel/debug/nvmap/iovmm/clients": clients})
    assert read_board(root).gpu_memory_used_bytes == used_bytes


def test_a_jetson_without_the_right_to_look_leaves_the_figure_out(tmp_path: Path) -> None:
    files = {name: content for name, content in ORIN_NX.items() if "nvmap" not in name}
    text = exposition(machine(tmp_path, files))
    assert "gpu_memory_used_bytes" not in text
    assert "barnsight_gpu_load_ratio 0.437" in text


def test_garbage_in_a_sensor_leaves_that_sensor_out(tmp_path: Path) -> None:
    root = machine(tmp_path, ORIN_NX | {"sys/class/hwmon/hwmon0/pwm1": "??\n", "var/lib/nvpmodel/status": "\n"})
    reading = read_board(root)
    assert (reading.fan_duty, reading.power_mode) == (None, None)
    assert reading.gpu_load == 0.437


def test_another_machine_shows_its_memory_and_no_board(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": ORIN_NX["proc/meminfo"],
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "60000\n",
    }
    root = machine(tmp_path, files)
    assert not is_jetson(root)
    names = {line.split()[2] for line in exposition(root).splitlines() if line.startswith("# TYPE")}
    assert names == {"barnsight_memory_available_bytes"}


def test_a_machine_without_files_shows_nothing_and_raises_nothing(tmp_path: Path) -> None:
    assert "barnsight" not in exposition(tmp_path)
