"""Fail if the lock lacks a wheel for a platform that picback promises to install on.

Asks the configured package index, through pip, which wheel each locked package would be installed
from on each platform and Python, and compares its hash with the lock. Downloads no packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LOCK: Final = Path(__file__).parent.parent / "requirements" / "runtime.txt"
_PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform: the tags of wheels that it takes, and what markers see of it."""

    name: str
    tags: tuple[str, ...]
    markers: Mapping[str, str]


def _linux(machine: str) -> Platform:
    # glibc 2.28: the oldest for which onnxruntime has wheels.
    tags = (f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 26, 24, 17))
    markers = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    return Platform(f"Linux {machine}", (*tags, f"manylinux2014_{machine}"), markers)


_PLATFORMS: Final = (
    _linux("x86_64"),
    _linux("aarch64"),
    Platform(
        "macOS arm64",
        ("macosx_14_0_arm64",),
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    ),
)


@dataclass(frozen=True, slots=True)
class Locked:
    """One entry of the lock."""

    requirement: Requirement
    hashes: frozenset[str]


def read_lock(text: str) -> list[Locked]:
    """Return the entries of a lock as `uv pip compile --generate-hashes` writes it."""
    entries = []
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.split(" --hash=sha256:")
        if requirement.strip():
            entries.append(
                Locked(Requirement(requirement.strip()), frozenset(map(str.strip, hashes)))
            )
    return entries


def gaps(platform: Platform, python: str, lock: Sequence[Locked]) -> list[str]:
    """Return a line for each locked package that *platform* has no locked wheel of.

    Raises:
        RuntimeError: The index cannot be asked.
    """
    environment = {
        **platform.markers,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    wanted = [
        entry
        for entry in lock
        if entry.requirement.marker is None or entry.requirement.marker.evaluate(environment)
    ]
    where = f"{platform.name}, Python {python}"
    try:
        report = _ask(platform, python, [entry.requirement for entry in wanted])
    except subprocess.CalledProcessError:
        return [
            f"{where}: no wheel of {entry.requirement.name} {entry.requirement.specifier}"
            for entry in wanted
            if not _has_wheel(platform, python, entry.requirement)
        ]
    chosen = {
        each["metadata"]["name"].lower().replace("_", "-"): each["download_info"]["archive_info"]
        for each in report["install"]
    }
    return [
        f"{where}: the lock lacks the hash of {entry.requirement.name}'s wheel"
        for entry in wanted
        if chosen[entry.requirement.name.lower()]["hashes"]["sha256"] not in entry.hashes
    ]


def _has_wheel(platform: Platform, python: str, requirement: Requirement) -> bool:
    try:
        _ask(platform, python, [requirement])
    except subprocess.CalledProcessError as error:
        if "No matching distribution" not in error.stderr:
            msg = f"the package index cannot be asked: {error.stderr.strip()[-300:]}"
            raise RuntimeError(msg) from error
        return False
    return True


def _ask(platform: Platform, python: str, requirements: Sequence[Requirement]) -> Any:
    """Return pip's report of what it would install."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text("".join(f"{each.name}{each.specifier}\n" for each in requirements))
        report = Path(scratch) / "report.json"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run(
            [
                *pip,
                *("--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:"),
                *(part for tag in platform.tags for part in ("--platform", tag)),
                *("--python-version", python, "--implementation", "cp"),
                *("--target", scratch, "--report", str(report), "-r", str(wanted)),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        return json.loads(report.read_text())


def main() -> int:
    """Print the gaps; 0 if there is none."""
    lock = read_lock(_LOCK.read_text())
    targets = list(product(_PLATFORMS, _PYTHONS))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda target: gaps(target[0], target[1], lock), targets))
    lines = [line for each in found for line in each]
    for line in lines:
        print(line)
    print(f"{len(lock)} locked packages, {len(targets)} platforms: {len(lines)} gaps")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
