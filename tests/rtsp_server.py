"""A small RTSP camera for tests: a moving test picture over GstRtspServer, in a process that a test may freeze or kill.

It prints `ready <port>` once it listens. SIGUSR1 switches the running stream to the second size, as a camera does
when somebody changes its settings. Run: `python tests/rtsp_server.py --port 0 --size 320x240`.
"""

from __future__ import annotations

import argparse
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

X26X = "tune=zerolatency speed-preset=ultrafast key-int-max={gop}"
ENCODERS = {
    "h264": f"x264enc {X26X} ! rtph264pay name=pay0 pt=96 config-interval=-1",
    "h265": f"x265enc {X26X} ! rtph265pay name=pay0 pt=96 config-interval=-1",
    "jpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    "vp8": "vp8enc deadline=1 ! rtpvp8pay name=pay0 pt=96",
}
AUDIO = "audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay1 pt=0"


def caps(size: str, fps: int) -> str:
    width, height = size.split("x")
    return f"video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"


def launch(options: argparse.Namespace) -> str:
    frames = f"num-buffers={options.frames}" if options.frames else ""
    picture = (
        f"videotestsrc is-live=true pattern=ball {frames} ! capsfilter name=size caps={caps(options.size, options.fps)}"
    )
    video = f"{picture} ! {ENCODERS[options.codec].format(gop=options.gop)}"
    return f"( {video} {AUDIO if options.audio else ''} )"


def require_login(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, login: str) -> None:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*login.split(":", 1)), token)
    server.set_auth(auth)
    allowed = Gst.Structure.new_from_string("viewer, media.factory.access=true, media.factory.construct=true")
    factory.add_role_from_structure(allowed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="0")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--second-size", default="160x128")
    parser.add_argument("--fps", type=int, default=15)
    parser.add_argument("--gop", type=int, default=15)
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    parser.add_argument("--frames", type=int, default=0, help="end the stream after so many frames")
    parser.add_argument("--login", help="user:password")
    parser.add_argument("--audio", action="store_true")
    options = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch(options))
    factory.set_shared(True)
    playing: list[Gst.Element] = []
    factory.connect("media-configure", lambda _factory, media: playing.append(media.get_element()))
    if options.login:
        require_login(server, factory, options.login)
    server.get_mount_points().add_factory("/pen", factory)
    if not server.attach(None):
        sys.exit(f"port {options.port} is taken")

    def resize() -> bool:
        for element in playing:
            size = element.get_by_name("size")
            size.set_property("caps", Gst.Caps.from_string(caps(options.second_size, options.fps)))
        return GLib.SOURCE_CONTINUE

    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR1, resize)
    print("ready", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
