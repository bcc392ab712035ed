"""Where a camera's video comes from, with its credentials: an address that cannot be printed by accident.

A source is written in one of these ways; `${credential:NAME}` stands for the content of the file NAME in systemd's
`$CREDENTIALS_DIRECTORY`, or else in the folder `credentials` beside `barnsight.yaml`:

    rtsp://10.0.0.13/stream1                            no credentials
    rtsp://${credential:pen-3}@10.0.0.13/stream1        the file holds user:password, as they are
    rtsp://admin:${credential:pen-3}@10.0.0.13/stream1  the file holds the password alone
    ${credential:pen-3}                                 the file holds the whole address
    rtsp://admin:p%40ss@10.0.0.13/stream1               percent-encoded in place (works, with a warning)
    /srv/clips/pen-3.mp4                                a video file or a folder of pictures
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr, ValidationInfo
from pydantic_core import CoreSchema, core_schema

_CREDENTIAL = re.compile(r"\$\{credential:([A-Za-z0-9][A-Za-z0-9._-]*)\}")
_REFERENCED_USERINFO = re.compile(rf"(?:[^:@/]+:)?{_CREDENTIAL.pattern}")
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(\S{0,4200})@")
# Cameras glue such parameters to others: /user=admin_password=XYZ_channel=1_stream=0.sdp
_SECRET_PARAMETER = re.compile(
    r"(?i)((?:pas(?:s|swor[dt]|swd)?|psw|pwd|auth|token|secret)=)(?!\$\{credential:)[^&\s\"';/]+"
)
_TELLING_CHARACTERS = 4
_STREAM_SCHEMES = ("rtsp", "rtsps")
_CREDENTIAL_MAX_BYTES = 4096


def mask(text: str) -> str:
    """`text` with the credentials of every address in it replaced by `***`; references to credentials stay."""

    def without_userinfo(match: re.Match[str]) -> str:
        scheme, userinfo = match.groups()
        return match[0] if _REFERENCED_USERINFO.fullmatch(userinfo) else f"{scheme}***@"

    return _SECRET_PARAMETER.sub(r"\1***", _USERINFO.sub(without_userinfo, text))


@dataclass(frozen=True, slots=True)
class Credentials:
    """The folders that hold credentials: `managed` by systemd, `own` beside the configuration."""

    own: Path
    managed: Path | None = None

    @classmethod
    def beside(cls, folder: Path) -> Credentials:
        """Those of a service whose `barnsight.yaml` lies in `folder`."""
        managed = os.environ.get("CREDENTIALS_DIRECTORY")
        return cls(own=folder / "credentials", managed=Path(managed) if managed else None)

    def read(self, name: str) -> str:
        """The one line of the file `name`. Raises ValueError, which never quotes the content."""
        folders = [folder for folder in (self.managed, self.own) if folder is not None]
        for folder in folders:
            path = folder / name
            try:
                with path.open("rb") as file:
                    content = file.read(_CREDENTIAL_MAX_BYTES + 1)
                    mode = os.fstat(file.fileno()).st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ValueError(
                    f"names {path}, which cannot be read ({error.strerror}); check who runs this"
                ) from None
            if folder == self.own and mode & stat.S_IROTH:
                raise ValueError(f"names {path}, which everyone can read; run: chmod 640 {path}")
            return _one_line(path, content)
        raise ValueError(
            f"names the credential {name!r}, which is not in {' or '.join(map(str, folders))}; create that file"
        )


def _one_line(path: Path, content: bytes) -> str:
    text = content.decode(errors="replace").rstrip("\r\n")
    if (
        not text
        or len(content) > _CREDENTIAL_MAX_BYTES
        or not text.isprintable()
        or "\N{REPLACEMENT CHARACTER}" in text
    ):
        raise ValueError(f"names {path}, which must hold one line of UTF-8 text of at most 4 kB; write user:password")
    return text


@dataclass(frozen=True, slots=True, repr=False)
class SourceAddress:
    """A camera's address. `str` and `repr` are as configured and masked; only `reveal()` gives the credentials away."""

    _written: SecretStr
    _revealed: SecretStr

    @classmethod
    def parse(cls, written: str, credentials: Credentials | None = None, folder: Path | None = None) -> SourceAddress:
        """Read an address as written; a relative path is taken from `folder`. Raises ValueError, always masked."""
        revealed = _fill_in(written, credentials)
        if "://" not in revealed:
            revealed = str((folder or Path()) / revealed)
        elif revealed.startswith("file://"):
            revealed = unquote(urlsplit(revealed).path)
        else:
            _check_stream(revealed)
        return cls(SecretStr(written), SecretStr(revealed))

    def reveal(self) -> str:
        """The address with user and password, percent-encoded; or the path of a file or folder."""
        return self._revealed.get_secret_value()

    @property
    def path(self) -> Path | None:
        """The file or folder that this address names, None for a stream."""
        revealed = self.reveal()
        return None if "://" in revealed else Path(revealed)

    @property
    def endpoint(self) -> tuple[str, int] | None:
        """Host and port of a stream, None for a file or folder."""
        if self.path is not None:
            return None
        parts = urlsplit(self.reveal())
        return parts.hostname or "", parts.port or (322 if parts.scheme == "rtsps" else 554)

    @property
    def has_inline_password(self) -> bool:
        """Whether the password is written in the configuration file itself."""
        return mask(self._written.get_secret_value()) != self._written.get_secret_value()

    def mask(self, text: str) -> str:
        """`text` without what `str` hides: every login, this address's password, what credentials put into its path."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return mask(text)

    def _secrets(self) -> set[str]:
        """The parts of a stream's address that must not be told, in every spelling."""
        if self.path is not None:
            return set()
        parts, shown = urlsplit(self.reveal()), str(self)
        password = parts.netloc.rpartition("@")[0].partition(":")[2]
        tail = parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
        # What is shorter is no secret, and would be found in every other word.
        telling = [part for part in (tail, *re.split(r"[/?&]", tail)) if len(part) >= _TELLING_CHARACTERS]
        secrets = {password, *(part for part in telling if part not in shown)} - {""}
        return {spelling for part in secrets for spelling in (part, unquote(part), quote(unquote(part), safe=""))}

    def __str__(self) -> str:
        return mask(self._written.get_secret_value())

    def __repr__(self) -> str:
        return f"SourceAddress({str(self)!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, info: ValidationInfo) -> SourceAddress:
            if isinstance(value, cls):
                return value
            if not isinstance(value, str) or not value:
                raise ValueError("must be text: an address or a path")
            return cls.parse(value, **(info.context or {}))

        return core_schema.with_info_plain_validator_function(read, serialization=core_schema.to_string_ser_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


def _fill_in(written: str, credentials: Credentials | None) -> str:
    """Put each credential in its place: whole, as user:password, or as one percent-encoded part."""

    def content(name: str) -> str:
        if credentials is None:
            raise ValueError(f"names the credential {name!r}; credentials are only known to configuration files")
        return credentials.read(name)

    if whole := _CREDENTIAL.fullmatch(written):
        return content(whole[1])

    def fill(match: re.Match[str]) -> str:
        text = content(match[1])
        if written[: match.start()].endswith("://") and written[match.end() :].startswith("@"):
            user, colon, password = text.partition(":")
            if not colon:
                raise ValueError(f"names the credential {match[1]!r}, which must hold user:password")
            return f"{quote(user, safe='')}:{quote(password, safe='')}"
        return quote(text, safe="")

    filled = _CREDENTIAL.sub(fill, written)
    if "${" in filled:
        raise ValueError("holds '${' that is no credential; write ${credential:NAME}")
    return filled


def _check_stream(url: str) -> None:
    hint = "percent-encode special characters of the password, or write ${credential:NAME} in its place"
    scheme = url.partition("://")[0].lower()
    if scheme not in _STREAM_SCHEMES:
        raise ValueError(f"must be rtsp://, rtsps:// or the path of a video file or picture folder, got {scheme}://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port == 0 or re.search(r"[\s#]", url):
        raise ValueError(f"must read {scheme}://HOST[:PORT]/PATH; {hint}")
