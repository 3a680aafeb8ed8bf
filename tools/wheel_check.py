"""Build the wheel, install it into an empty environment, and serve from it.

Run by ``make wheel-check``. What it proves: the wheel carries the generated code, the models
and their licences, and names every package that it needs. The locked versions are installed,
by hash; the wheel itself is then added without any.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "picback/v1/image_service_pb2_grpc.py",
    "picback/v1/descriptors.binpb",
    "picback/v1/py.typed",
    "analysis/taggers/models/efficientnet-lite0.int8w.onnx",
    "analysis/taggers/models/nanodet-g.int8w.onnx",
    "analysis/taggers/models/tags.tsv",
    "analysis/taggers/models/MANIFEST",
    "analysis/taggers/models/licences/NOTICE",
)


def main() -> None:
    """Raise when anything is not as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(scratch), str(ROOT))
        (wheel,) = scratch.glob("*.whl")
        missing = set(NEEDED) - set(zipfile.ZipFile(wheel).namelist())
        if missing:
            sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing))}")
        venv.create(scratch / "empty", with_pip=True)
        pip = (str(scratch / "empty/bin/python"), "-m", "pip", "--disable-pip-version-check")
        lock = ROOT / "requirements/runtime.txt"
        _run(*pip, "install", "--quiet", "--require-hashes", "--no-deps", "-r", str(lock))
        _run(*pip, "install", "--quiet", "--no-deps", str(wheel))
        _run(*pip, "check")
        _serve(scratch)
    print(f"{wheel.name} installs into an empty environment and serves")


def _serve(scratch: Path) -> None:
    command = [str(scratch / "empty/bin/picback"), "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--data", str(scratch / "data"), "--tagger", "local"],
        cwd=scratch,  # not in the checkout, whose packages would hide what the wheel lacks
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None  # noqa: S101 - for the type checker
        first_line = server.stdout.readline()
        server.terminate()
        server.communicate(timeout=60)
    if "serving on" not in first_line or server.returncode != 0:
        sys.exit(f"picback serve said {first_line!r} and exited with {server.returncode}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
