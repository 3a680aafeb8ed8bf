"""The order of a start: what needs no models begins at once, and models that are bad end it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from server.app import App
from server.config import ConfigError
from storage.database import Database
from tests.server.serving import config_of

if TYPE_CHECKING:
    from pathlib import Path


def test_what_knows_texts_and_pictures_is_not_imported_before_the_server_answers() -> None:
    program = (
        "import sys, server.serve_command;"
        "print(sorted({'spacy', 'onnxruntime', 'clarifai_grpc'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert b"[]" == found.stdout.strip()


def test_a_pipeline_that_cannot_be_loaded_ends_the_start_and_leaves_the_folder_and_port_free(
    tmp_path: Path,
) -> None:
    (tmp_path / "pipeline").mkdir()
    app = App(config_of(tmp_path / "data", pipeline=str(tmp_path / "pipeline")))
    with pytest.raises(ConfigError, match="pipeline' cannot be loaded"):
        app.start()

    Database.own(tmp_path / "data").close()
    again = App(config_of(tmp_path / "data", listen=app.address))
    again.start()
    again.stop()


def test_serve_tells_of_a_pipeline_that_cannot_be_loaded_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    command = [sys.executable, "-m", "server", "serve", "--listen", "127.0.0.1:0"]
    ended = subprocess.run(
        [*command, "--data", str(tmp_path / "data"), "--pipeline", str(tmp_path / "pipeline")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (1, "") == (ended.returncode, ended.stdout)
    assert "Error: The spaCy pipeline" in ended.stderr
