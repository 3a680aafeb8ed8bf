"""`make platforms-check` distinguishes wheels that can be installed from those that cannot."""

from __future__ import annotations

from typing import Any

import pytest

from tools.platforms_check import PLATFORMS, lacks_wheel

X86, ARM, MAC = PLATFORMS


def package(*wheels: str, marker: str | None = None) -> dict[str, Any]:
    files = [{"url": f"a/b/thing-1.0-{tag}.whl", "hashes": {"sha256": tag}} for tag in wheels]
    found: dict[str, Any] = {"name": "thing", "version": "1.0", "wheels": files}
    return found if marker is None else {**found, "marker": marker}


@pytest.mark.parametrize(
    ("wheel", "lacking"),
    [
        ("py3-none-any", []),
        ("py2.py3-none-any", []),
        ("cp312-cp312-manylinux_2_28_x86_64", [ARM, MAC]),
        ("cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64", [X86, MAC]),
        ("cp39-abi3-macosx_11_0_arm64", [X86, ARM]),
        ("cp312-cp312-macosx_10_9_universal2", [X86, ARM]),
        ("cp311-cp311-manylinux_2_28_x86_64", [X86, ARM, MAC]),
        ("cp312-cp312-manylinux_2_34_x86_64", [X86, ARM, MAC]),
        ("cp312-cp312-musllinux_1_2_x86_64", [X86, ARM, MAC]),
        ("cp313-abi3-manylinux_2_28_x86_64", [X86, ARM, MAC]),
    ],
)
def test_a_wheel_counts_where_it_can_be_installed(wheel: str, lacking: list[Any]) -> None:
    assert lacking == [
        platform
        for platform in PLATFORMS
        if lacks_wheel(package(wheel), platform, (3, 12), {wheel})
    ]


def test_a_wheel_counts_only_if_the_lock_has_its_hash() -> None:
    assert lacks_wheel(package("py3-none-any"), X86, (3, 12), set())


def test_a_package_counts_only_where_it_is_needed() -> None:
    only_old = package(marker="python_full_version < '3.12'")
    only_windows = package(marker="sys_platform == 'win32'")

    assert [True, False] == [
        lacks_wheel(only_old, X86, python, set()) for python in ((3, 11), (3, 12))
    ]
    assert not lacks_wheel(only_windows, X86, (3, 11), set())
