"""Displays and the libraries of Qt, told without Qt."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.commands import display
from engine.commands.display import LIBRARIES, Library, advice
from engine.service.processes import ROOT


@pytest.mark.parametrize(
    ("environment", "system", "platform"),
    [
        ({}, "linux", ""),
        ({"DISPLAY": ""}, "linux", ""),
        ({"DISPLAY": ":0"}, "linux", "xcb"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", "wayland"),
        ({"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"}, "linux", "xcb"),
        ({"WAYLAND_DISPLAY": "w", "DISPLAY": ":0", "QT_QPA_PLATFORM": "wayland;xcb"}, "linux", "wayland"),
        ({"QT_QPA_PLATFORM": "offscreen"}, "linux", "offscreen"),
        ({"QT_QPA_PLATFORM": "vnc:size=800x600"}, "linux", "vnc"),
        ({}, "darwin", "cocoa"),
        ({}, "win32", "windows"),
    ],
)
def test_which_display(environment: dict[str, str], system: str, platform: str) -> None:
    assert display.display(environment, system) == platform


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux leaves the libraries to its packages")
def test_missing_libraries_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = (
        Library("libc.so.6", "libc6", "glibc"),
        Library("libnowhere.so.1", "libnowhere1", "nowhere"),
        Library("libnowhere-x.so.1", "libnowhere1", "nowhere-x", "xcb"),
    )
    monkeypatch.setattr(display, "LIBRARIES", libraries)
    assert display.missing_libraries("offscreen") == [libraries[1]]
    assert display.missing_libraries("xcb") == list(libraries[1:])
    sentence = display.obstacle("xcb")
    assert "`apt-get install libnowhere1`" in sentence and "`dnf install nowhere nowhere-x`" in sentence
    assert "libnowhere-x.so.1" in sentence


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="readelf")
def test_the_list_covers_what_qt_links_to() -> None:
    """Every library of the system that the modules we use and their platform plugins need, apart from the C ones."""
    code = (
        "import pathlib, PySide6; root = pathlib.Path(PySide6.__file__).parent / 'Qt';"
        "names = ['Core', 'Gui', 'Widgets', 'DBus', 'XcbQpa', 'Svg'];"
        "print(*[root / 'lib' / f'libQt6{n}.so.6' for n in names], *root.glob('plugins/platforms/libq[xo][cf]*.so'))"
    )
    files = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    try:
        output = subprocess.run(["readelf", "-d", *files], capture_output=True, text=True).stdout
    except FileNotFoundError:
        pytest.skip("readelf is not installed")
    needed = {line.split("[")[1].split("]")[0] for line in output.splitlines() if "(NEEDED)" in line}
    # Each of these comes with Debian's base system, or as a dependency of a package on the list.
    brought = (
        "libQt6",
        "libicu",
        "libc.",
        "libm.",
        "libdl.",
        "libpthread.",
        "librt.",
        "libgcc",
        "libstdc++",
        "ld-linux",
    )
    brought += ("libz.", "libzstd", "libgthread", "libxcb.so", "libxcb-shm", "libxcb-sync", "libxcb-xfixes")
    brought += ("libxcb-render.so", "libxcb-util", "libresolv")
    listed = {library.file for library in LIBRARIES}
    assert {name for name in needed if not name.startswith(brought)} <= listed


def test_looking_imports_no_qt() -> None:
    code = (
        "import sys; from engine.commands.display import display, obstacle; display(); obstacle('xcb');"
        "print('PySide6' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_packages_are_named_once() -> None:
    assert advice([Library("a.so", "same", "same"), Library("b.so", "same", "same")]).count("install same`") == 2
