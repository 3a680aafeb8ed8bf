"""Check that the lock holds a wheel of every package for every supported platform and Python.

Run by ``make platforms-check``. The lock holds hashes and no file names, so uv looks the locked
versions up in the package index, in one call, and this tool compares hashes and the wheels' tags.
Nothing is installed or downloaded.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging import tags
from packaging.markers import Marker
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements/runtime.txt"
PYTHONS: Final = ((3, 11), (3, 12), (3, 13), (3, 14))
#: The oldest systems that every wheel must run on: RHEL 8 and Debian 10 have glibc 2.28.
_GLIBC_MINOR: Final = 28
_MACOS: Final = (14, 0)
#: How long uv may take, in seconds; it takes about one.
_TIMEOUT_SECONDS: Final = 50


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system on a processor, as markers and as wheels' tags name it."""

    name: str
    marker_environment: dict[str, str]
    tags: tuple[str, ...]


def _linux(machine: str) -> Platform:
    return Platform(
        f"Linux {machine} (glibc 2.{_GLIBC_MINOR})",
        {"sys_platform": "linux", "platform_machine": machine, "platform_system": "Linux"},
        (
            *(f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 4, -1)),
            *(f"manylinux{name}_{machine}" for name in ("2014", "2010", "1")),
        ),
    )


PLATFORMS: Final = (
    _linux("x86_64"),
    _linux("aarch64"),
    Platform(
        f"macOS arm64 ({_MACOS[0]})",
        {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
        tuple(tags.mac_platforms(_MACOS, "arm64")),
    ),
)


def main() -> None:
    """Print a line for each platform and each gap; exit with 1 if there is a gap."""
    lock = LOCK.read_text()
    packages = _look_up(lock)
    hashes = set(re.findall(r"--hash=sha256:(\w+)", lock))
    found_gaps = False
    for platform in PLATFORMS:
        gaps = [
            f"  {package['name']} {package['version']}: no wheel for Python {major}.{minor}"
            for major, minor in PYTHONS
            for package in packages
            if lacks_wheel(package, platform, (major, minor), hashes)
        ]
        verdict = f"{len(gaps)} wheels are missing" if gaps else "every package has its wheel"
        print("\n".join([f"{platform.name}: {verdict}, of {len(packages)} packages", *gaps]))
        found_gaps |= bool(gaps)
    if found_gaps:
        sys.exit(1)


def lacks_wheel(
    package: dict[str, Any], platform: Platform, python: tuple[int, int], hashes: set[str]
) -> bool:
    """Tell whether *package*, if it is needed there, has no wheel among *hashes*."""
    version = f"{python[0]}.{python[1]}"
    environment = {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        **platform.marker_environment,
    }
    if "marker" in package and not Marker(package["marker"]).evaluate(environment):
        return False
    interpreter = f"cp{python[0]}{python[1]}"
    supported = {
        *tags.cpython_tags(python, platforms=platform.tags),
        *tags.compatible_tags(python, interpreter, platform.tags),
    }
    return not any(
        wheel["hashes"]["sha256"] in hashes
        and not supported.isdisjoint(parse_wheel_filename(wheel["url"].rpartition("/")[2])[3])
        for wheel in package.get("wheels", ())
    )


def _look_up(lock: str) -> list[dict[str, Any]]:
    """Return the locked packages with the files that the index has of them."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "pylock.toml"
        versions = Path(folder) / "versions.txt"
        versions.write_text(re.sub(r" *\\\n +--hash=\S+", "", lock))
        command = ["uv", "pip", "compile", "--quiet", "--no-deps", "--universal"]
        options = ["--python-version", "3.11", "--format", "pylock.toml", "--output-file"]
        try:
            subprocess.run(
                [*command, *options, str(found), str(versions)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            sys.exit(f"wheels not checked: the package index was not read\n{error.stderr.strip()}")
        except subprocess.TimeoutExpired:
            sys.exit("wheels not checked: the package index did not respond in time")
        packages: list[dict[str, Any]] = tomllib.loads(found.read_text())["packages"]
    return packages


if __name__ == "__main__":
    main()
