"""An RTSP address taken apart, so that its credentials reach GStreamer as properties and never as text."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from barnsightd.config import mask


@dataclass(frozen=True, slots=True, repr=False)
class StreamAddress:
    """`location` has no credentials; `user` and `password` are decoded and may be empty."""

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

    def mask(self, text: str) -> str:
        """`text` without this address's password, in any of its spellings, and without any other login."""
        masked = mask(text)
        for secret in (self.password, quote(self.password, safe="")):
            if secret:
                masked = masked.replace(secret, "***")
        return masked

    def __str__(self) -> str:
        return mask(self.location)

    def __repr__(self) -> str:
        return f"StreamAddress({str(self)!r})"
