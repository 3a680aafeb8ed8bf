"""Fail if generated/ is not what protos/ gives, or if callers of the last release would break.

Run by ``make proto-check``. Generation is deterministic for pinned tools, so any difference
is a change that somebody forgot to generate, or to commit.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = Path("generated/picback/v1")


def main() -> int:
    """Return 0 when all is well, 1 otherwise, and say what is not."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # The Makefile has the one way to generate; it runs on a copy.
        shutil.copy(ROOT / "Makefile", scratch)
        shutil.copytree(ROOT / "protos", scratch / "protos")
        subprocess.run(
            [
                "make",
                "--silent",
                "--assume-old=.venv/.dev",
                f"BIN={Path(sys.executable).parent}",
                "proto",
            ],
            cwd=scratch,
            check=True,
        )
        different = _differences(ROOT / GENERATED, scratch / GENERATED)
    for name in different:
        print(f"{GENERATED / name} is not what protos/ gives; run make proto and commit")
    return 1 if different or not _compatible_with_last_release() else 0


def _differences(committed: Path, fresh: Path) -> list[str]:
    names = {
        path.name for folder in (committed, fresh) for path in folder.iterdir() if path.is_file()
    }
    same, _, _ = filecmp.cmpfiles(committed, fresh, names, shallow=False)
    return sorted(names - set(same))


def _compatible_with_last_release() -> bool:
    tags = subprocess.run(
        ["git", "tag", "--list", "v*", "--sort=-version:refname"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if not tags:
        print("no release yet: nothing to be compatible with")
        return True
    against = f".git#tag={tags[0]},subdir=protos"
    return (
        subprocess.run(
            ["buf", "breaking", "protos", "--against", against], cwd=ROOT, check=False
        ).returncode
        == 0
    )


if __name__ == "__main__":
    sys.exit(main())
