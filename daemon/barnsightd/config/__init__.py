"""What the farm writes down: a site file and a file per camera, read into frozen values or refused."""

from barnsightd.config.address import Credentials, SourceAddress, mask
from barnsightd.config.changes import Changes, diff
from barnsightd.config.loading import Config, ConfigFile, Problem, check_references, load_config
from barnsightd.config.models import (
    CalibrationConfig,
    CameraConfig,
    IngestConfig,
    LimitsConfig,
    ModelsConfig,
    SiteConfig,
    StorageConfig,
    TrackingConfig,
    WebConfig,
    Zone,
)

__all__ = [
    "CalibrationConfig",
    "CameraConfig",
    "Changes",
    "Config",
    "ConfigFile",
    "Credentials",
    "IngestConfig",
    "LimitsConfig",
    "ModelsConfig",
    "Problem",
    "SiteConfig",
    "SourceAddress",
    "StorageConfig",
    "TrackingConfig",
    "WebConfig",
    "Zone",
    "check_references",
    "diff",
    "load_config",
    "mask",
]
