"""Whether a window can open here, told without importing Qt: a display, and the system's libraries that Qt needs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """A file that Qt loads, and the packages that bring it. `platform`: the display that it is for; empty: any."""

    file: str
    debian: str
    fedora: str
    platform: str = ""


LIBRARIES = (
    Library("libEGL.so.1", "libegl1", "libglvnd-egl"),
    Library("libGL.so.1", "libgl1", "libglvnd-glx"),
    Library("libxkbcommon.so.0", "libxkbcommon0", "libxkbcommon"),
    Library("libdbus-1.so.3", "libdbus-1-3", "dbus-libs"),
    Library("libfontconfig.so.1", "libfontconfig1", "fontconfig"),
    Library("libfreetype.so.6", "libfreetype6", "freetype"),
    Library("libglib-2.0.so.0", "libglib2.0-0", "glib2"),
    Library("libX11.so.6", "libx11-6", "libX11"),
    Library("libX11-xcb.so.1", "libx11-xcb1", "libX11-xcb", "xcb"),
    Library("libxkbcommon-x11.so.0", "libxkbcommon-x11-0", "libxkbcommon-x11", "xcb"),
    Library("libxcb-cursor.so.0", "libxcb-cursor0", "xcb-util-cursor", "xcb"),
    Library("libxcb-icccm.so.4", "libxcb-icccm4", "xcb-util-wm", "xcb"),
    Library("libxcb-image.so.0", "libxcb-image0", "xcb-util-image", "xcb"),
    Library("libxcb-keysyms.so.1", "libxcb-keysyms1", "xcb-util-keysyms", "xcb"),
    Library("libxcb-randr.so.0", "libxcb-randr0", "libxcb", "xcb"),
    Library("libxcb-render-util.so.0", "libxcb-render-util0", "xcb-util-renderutil", "xcb"),
    Library("libxcb-shape.so.0", "libxcb-shape0", "libxcb", "xcb"),
    Library("libxcb-xkb.so.1", "libxcb-xkb1", "libxcb", "xcb"),
    Library("libwayland-client.so.0", "libwayland-client0", "libwayland-client", "wayland"),
    Library("libwayland-cursor.so.0", "libwayland-cursor0", "libwayland-cursor", "wayland"),
)


def display(environment: Mapping[str, str] | None = None, system: str | None = None) -> str:
    """What a window would open on: the name of Qt's platform, or nothing where there is no display."""
    values = os.environ if environment is None else environment
    system = system or sys.platform
    chosen = values.get("QT_QPA_PLATFORM", "").split(";")[0].split(":")[0]
    if chosen in ("offscreen", "minimal", "vnc", "linuxfb", "eglfs"):
        return chosen
    if system == "darwin":
        return "cocoa"
    if system == "win32":
        return "windows"
    has_x, has_wayland = bool(values.get("DISPLAY")), bool(values.get("WAYLAND_DISPLAY"))
    if has_wayland and (chosen.startswith("wayland") or not has_x):
        return "wayland"
    if has_x:
        return "xcb"
    return "wayland" if has_wayland else ""


def missing_libraries(platform: str) -> list[Library]:
    """The libraries for that platform of Qt which this system does not have. Only Linux leaves them to its packages."""
    if not sys.platform.startswith("linux"):
        return []
    return [library for library in LIBRARIES if library.platform in ("", platform) and not _loads(library.file)]


def _loads(file: str) -> bool:
    try:
        ctypes.CDLL(file)
    except OSError:
        return False
    return True


def advice(missing: list[Library]) -> str:
    """One sentence: which packages to install."""
    files = ", ".join(library.file for library in missing)
    debian = " ".join(dict.fromkeys(library.debian for library in missing))
    fedora = " ".join(dict.fromkeys(library.fedora for library in missing))
    return (
        f"The window needs system libraries that are not installed ({files}): "
        f"on Debian or Ubuntu run `apt-get install {debian}`, on Fedora `dnf install {fedora}`."
    )


def obstacle(platform: str = "offscreen") -> str:
    """The sentence that says why Qt cannot start on this platform; empty where it can."""
    missing = missing_libraries(platform)
    return advice(missing) if missing else ""
