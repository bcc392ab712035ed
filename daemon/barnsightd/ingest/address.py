"""An RTSP address taken apart, so that its credentials reach GStreamer as properties and never as text."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit


@dataclass(frozen=True, slots=True, repr=False)
class StreamAddress:
    """`location` has no login, `user` and `password` are decoded and may be empty. All of it may be secret."""

    location: str
    user: str
    password: str

    @classmethod
    def parse(cls, url: str) -> StreamAddress:
        """Take `url` apart; user and password are percent-decoded."""
        parts = urlsplit(url)
        login, _, host = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        return cls(urlunsplit(parts._replace(netloc=host)), unquote(user), unquote(password))

    def __repr__(self) -> str:
        return "StreamAddress(***)"
