"""The board's own sensors, read from sysfs and procfs below an injectable root; what a machine lacks stays absent.

Where the figures of an NVIDIA Jetson (Orin, JetPack 5 and 6) are found:

    GPU memory    nvmap's list of clients in debugfs, last column of its line `total`. Only root may enter
                  debugfs; the systemd unit binds this one folder to /run/barnsight-nvmap for the service.
    GPU load      devfreq/*.gpu (JetPack 6) or *.ga10b (JetPack 5): device/load, in thousandths
    temperature   thermal_zone*: type, temp in millidegrees; a zone whose block is powered down cannot be read
    throttling    hwmon `soctherm_oc`: oc1 supply undervoltage, oc2 average and oc3 instantaneous overcurrent
    power         hwmon `ina3221`: in<n>_label, in<n>_input in mV, curr<n>_input in mA
    fan           hwmon `pwmfan`: pwm1 in 0..255
    power mode    /var/lib/nvpmodel/status, named in /etc/nvpmodel.conf
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from barnsightd.runtime.budget import available_bytes

NVMAP_CLIENTS = ("run/barnsight-nvmap/clients", "sys/kernel/debug/nvmap/iovmm/clients")
GPU_NAMES = (".gpu", ".ga10b", ".gv11b", ".gp10b")
THROTTLE_CAUSES = {1: "undervoltage", 2: "average_overcurrent", 3: "instantaneous_overcurrent"}
UNIT_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
PWM_MAX = 255
NOT_CONNECTED = "NC"


@dataclass(frozen=True, slots=True)
class BoardReading:
    """What a Jetson said at one moment; None and empty where it said nothing."""

    gpu_memory_used_bytes: int | None = None
    gpu_load: float | None = None
    temperature_celsius: dict[str, float] = field(default_factory=dict)
    throttle_events: dict[str, int] = field(default_factory=dict)
    power_watts: dict[str, float] = field(default_factory=dict)
    fan_duty: float | None = None
    power_mode: str | None = None


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether the machine below `root` is a Tegra board, by its device tree."""
    return "nvidia,tegra" in (_text(root / "proc/device-tree/compatible") or "")


def read_board(root: Path = Path("/")) -> BoardReading:
    """Read every sensor once; never raises for a sensor that is missing or does not answer."""
    if not is_jetson(root):
        return BoardReading()
    hwmon = _hwmon(root)
    return BoardReading(
        gpu_memory_used_bytes=_gpu_memory(root),
        gpu_load=_gpu_load(root),
        temperature_celsius=_temperatures(root),
        throttle_events=_throttle_events(hwmon.get("soctherm_oc", [])),
        power_watts=_power(hwmon.get("ina3221", [])),
        fan_duty=_fan(hwmon.get("pwmfan", [])),
        power_mode=_power_mode(root),
    )


class BoardCollector(Collector):
    """The machine for Prometheus: its available memory and, on a Jetson, the board's sensors at each scrape."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where /proc, /sys, /run and /etc are looked for."""
        self._root = root

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: what there is depends on the machine."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Give one metric for each figure that the machine has."""
        yield from _gauge(
            "barnsight_memory_available_bytes",
            "Memory that programs can still get without swapping, of the whole machine.",
            available_bytes(self._root),
        )
        board = read_board(self._root)
        yield from _gauge(
            "barnsight_gpu_memory_used_bytes",
            "Memory that the GPU and the video engines hold, of all programs.",
            board.gpu_memory_used_bytes,
        )
        yield from _gauge("barnsight_gpu_load_ratio", "Share of time that the GPU is busy.", board.gpu_load)
        yield from _gauges(
            "barnsight_soc_temperature_celsius", "Temperature on the chip.", "zone", board.temperature_celsius
        )
        if board.throttle_events:
            events = CounterMetricFamily(
                "barnsight_throttle_events_total",
                "Times that the board slowed itself down since it was switched on.",
                labels=["cause"],
            )
            for cause, count in board.throttle_events.items():
                events.add_metric([cause], count)
            yield events
        yield from _gauges("barnsight_power_watts", "Power drawn from a supply rail.", "rail", board.power_watts)
        yield from _gauge("barnsight_fan_duty_ratio", "Share of full fan drive.", board.fan_duty)
        modes = {} if board.power_mode is None else {board.power_mode: 1.0}
        yield from _gauges("barnsight_power_mode_info", "The active power mode, 1.", "mode", modes)


def _gpu_memory(root: Path) -> int | None:
    for path in NVMAP_CLIENTS:
        for line in (_text(root / path) or "").splitlines():
            match = re.fullmatch(r"total\s.*?(\d+)([KMG]?)\s*", line)
            if match:
                return int(match[1]) * UNIT_BYTES[match[2]]
    return None


def _gpu_load(root: Path) -> float | None:
    for device in _folders(root / "sys/class/devfreq"):
        if device.name.endswith(GPU_NAMES):
            thousandths = _integer(device / "device/load")
            if thousandths is not None:
                return thousandths / 1000
    return None


def _temperatures(root: Path) -> dict[str, float]:
    zones = {}
    for zone in _folders(root / "sys/class/thermal"):
        name, millidegrees = _text(zone / "type"), _integer(zone / "temp")
        if name and millidegrees is not None:
            zones[re.sub(r"-therm(al)?$", "", name).lower()] = millidegrees / 1000
    return zones


def _throttle_events(sensors: list[Path]) -> dict[str, int]:
    events = {}
    for sensor in sensors:
        for file in sorted(sensor.glob("oc*_event_cnt")):
            number, count = re.findall(r"\d+", file.name), _integer(file)
            if number and count is not None:
                events[THROTTLE_CAUSES.get(int(number[0]), f"oc{number[0]}")] = count
    return events


def _power(sensors: list[Path]) -> dict[str, float]:
    rails = {}
    for sensor in sensors:
        for file in sorted(sensor.glob("in*_label")):
            channel = file.name[len("in") : -len("_label")]
            rail = _text(file)
            millivolts = _integer(sensor / f"in{channel}_input")
            milliamperes = _integer(sensor / f"curr{channel}_input")
            # The chip's sum of shunt voltages has a label and no current of its own.
            if rail and rail != NOT_CONNECTED and millivolts is not None and milliamperes is not None:
                rails[rail] = millivolts * milliamperes / 1e6
    return rails


def _fan(sensors: list[Path]) -> float | None:
    for sensor in sensors:
        pwm = _integer(sensor / "pwm1")
        if pwm is not None:
            return pwm / PWM_MAX
    return None


def _power_mode(root: Path) -> str | None:
    active = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if not active:
        return None
    number = int(active[1])
    for known, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _text(root / "etc/nvpmodel.conf") or ""):
        if int(known) == number:
            return str(name)
    return str(number)


def _hwmon(root: Path) -> dict[str, list[Path]]:
    """Group the hardware monitors by the name of their driver."""
    sensors: dict[str, list[Path]] = {}
    for folder in _folders(root / "sys/class/hwmon"):
        name = _text(folder / "name")
        if name:
            sensors.setdefault(name, []).append(folder)
    return sensors


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: dict[str, float]) -> Iterator[Metric]:
    if values:
        family = GaugeMetricFamily(name, text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        yield family


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = _text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None
