"""`barnsight-export serve`: clips as RTSP cameras, looping without an end and without being encoded again.

    barnsight-export serve DIR/clip.mp4                                rtsp://127.0.0.1:8554/pen
    barnsight-export serve a.mp4 b.mp4 --mount pen-1 --mount pen-2 --port 0
    barnsight-export serve DIR/clip.mp4 --credentials FILE             FILE holds one line, user:password

Prints `ready URL` for each mount once it can be played. Without --credentials, the environment variable
BARNSIGHT_RTSP_CREDENTIALS (user:password) is used where it is set.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barnsight_export.errors import DataError, DataMissingError, ExportUsageError

if TYPE_CHECKING:
    from barnsight_export.simbarn.stream import ClipServer, Credentials

VARIABLE = "BARNSIGHT_RTSP_CREDENTIALS"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("serve", help="serve clips as RTSP cameras")
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP.mp4")
    parser.add_argument("--mount", action="append", metavar="NAME", help="path of each clip (default pen, pen-2, ...)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8554, help="0 takes a free port")
    parser.add_argument("--credentials", type=Path, metavar="FILE", help="one line user:password")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    mounts = args.mount or ["pen", *(f"pen-{k}" for k in range(2, len(args.clips) + 1))]
    if len(mounts) != len(args.clips):
        raise ExportUsageError(f"got {len(args.clips)} clips and {len(mounts)} --mount; give one for each clip")
    if len(set(mounts)) < len(mounts) or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", m) for m in mounts):
        raise ExportUsageError(f"--mount must be distinct names of letters, digits, '.', '_', '-', got {mounts}")
    if not 0 <= args.port <= 65535:
        raise ExportUsageError(f"--port must be 0 to 65535, got {args.port}")
    credentials = _credentials(args.credentials)
    from barnsight_export.simbarn.stream import serve

    def ready(server: ClipServer) -> None:
        for mount in mounts:
            print(f"ready {server.url(mount)}", flush=True)

    files = dict(zip(mounts, args.clips, strict=True))
    serve(files, host=args.host, port=args.port, credentials=credentials, ready=ready)
    return os.EX_OK


def _credentials(path: Path | None) -> Credentials | None:
    text, source = os.environ.get(VARIABLE, ""), VARIABLE
    if path is not None:
        try:
            text, source = path.read_text(encoding="utf-8").strip(), str(path)
        except OSError as error:
            raise DataMissingError(f"{path}: {error.strerror}; name a file that can be read") from None
    elif not text:
        return None
    user, colon, password = text.partition(":")
    if not colon or not user or "\n" in text:
        raise DataError(f"{source}: must hold one line user:password")
    from barnsight_export.simbarn.stream import Credentials

    return Credentials(user, password)
