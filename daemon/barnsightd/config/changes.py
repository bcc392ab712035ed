"""What a reload changes: cameras come, go and change while the service runs; the rest waits for a restart."""

from __future__ import annotations

from dataclasses import dataclass

from barnsightd.config.loading import Config


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference of two configurations: camera names to act on, and settings that were not applied."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    log_level: str | None
    needs_restart: tuple[str, ...]

    @property
    def applied(self) -> tuple[str, ...]:
        """What takes effect at once, in words for the log."""
        cameras = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        words = [f"camera {name} {verb}" for verb, names in cameras for name in names]
        return (*words, f"log_level {self.log_level}") if self.log_level else tuple(words)


def diff(old: Config, new: Config) -> Changes:
    """What is to be done so that a service running `old` follows `new`."""
    before = {camera.name: camera for camera in old.cameras}
    after = {camera.name: camera for camera in new.cameras}
    groups = (name for name in type(new.site).model_fields if name not in ("version", "log_level"))
    return Changes(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(sorted(name for name in after.keys() & before.keys() if before[name] != after[name])),
        log_level=new.site.log_level if new.site.log_level != old.site.log_level else None,
        needs_restart=tuple(name for name in groups if getattr(old.site, name) != getattr(new.site, name)),
    )
