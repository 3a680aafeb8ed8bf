"""The documents tell the truth: their commands run, their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.receiver import Receiver
    from tests.service import Service

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md"))
    if "node_modules" not in path.parts
)
README = (ROOT / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def tagging(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Service]:
    """A server as `make serve` runs it, but for its port."""
    folder = tmp_path_factory.mktemp("docs") / "data"
    with running(folder, tagger="local", allow_callback=(receiver.address,)) as service:
        yield service


def _run(script: str, service: Service, receiver: Receiver) -> subprocess.CompletedProcess[str]:
    script = script.replace("127.0.0.1:50051", service.address)
    script = script.replace("127.0.0.1:8080", receiver.address)
    return subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PICBACK_ADDRESS": service.address,
            "PICBACK_API_KEY": service.api_key,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


def test_the_commands_of_the_readme_for_buf_list_upload_and_submit(
    tagging: Service, receiver: Receiver
) -> None:
    (script,) = [block for block in _blocks(README, "sh") if "buf curl" in block]

    output = _run(script, tagging, receiver).stdout

    methods, uploaded, submitted = output.partition("{")[0], *_json_documents(output)
    assert 15 == methods.count("picback.v1.ImageService/")
    assert "cat" in [tag["name"] for tag in uploaded["image"]["tags"]]
    assert submitted["created"] is True
    assert submitted["query"]["id"] in [
        request.headers["webhook-id"] for request in receiver.wait_for(1)
    ]


def test_the_commands_of_the_readme_for_people_upload_match_and_query(
    tagging: Service, receiver: Receiver
) -> None:
    (script,) = [block for block in _blocks(README, "sh") if "picback upload" in block]
    # The receiver of this test stands where `picback listen` would, and keys are real.
    lines = [
        line for line in script.splitlines() if not line.startswith(("export ", "picback listen"))
    ]

    output = _run("\n".join(lines), tagging, receiver).stdout

    assert "panda.jpg" in output
    assert "DELIVERED" in output


def test_every_make_target_that_a_document_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(
            r"`make ([a-z-]+)|^make ([a-z-]+)", document.read_text(), re.MULTILINE
        )
        for target in target
        if target
    }

    assert {"demo", "serve", "check"} <= named
    assert set() == named - targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", document.read_text())

    assert [] == [link for link in links if not (document.parent / link).exists()]


def test_every_test_that_the_guarantees_name_exists() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`((?:tests|storage)/[\w/]+\.py)`", text)

    assert len(named) > 5
    assert [] == [name for name in named if not (ROOT / name).exists()]


def _json_documents(text: str) -> list[Any]:
    decoder, found, position = json.JSONDecoder(), [], text.find("{")
    while position != -1:
        document, end = decoder.raw_decode(text, position)
        found.append(document)
        position = text.find("{", end)
    return found
