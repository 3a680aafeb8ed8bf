"""`picback images`: what they print, and how they end."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.service import picture

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service import Service
from tests.callers.typing_commands import documents, run, upload_content


def test_images_list_and_show_print_what_is_stored(service: Service) -> None:
    content = picture(60, size=(12, 7))
    image_id = upload_content(service, content, "puffin", "sea")
    (newest,) = documents(run(service, "images", "list", "--limit", "1", "--json"))
    table = run(service, "images", "list", "--limit", "1").stdout
    facts = run(service, "images", "show", image_id).stdout

    assert image_id == newest["id"]
    assert str(len(content)) == newest["size_bytes"]
    assert ["ID", "STATE", "STORED", "TAGS"] == table.splitlines()[0].split()
    assert f"{image_id}  READY  " in table
    assert "pixels  12 x 7\n" in facts
    assert f"sha256  {hashlib.sha256(content).hexdigest()}\n" in facts
    assert ["puffin", "1.000000", "a", "caller"] == facts.splitlines()[-2].split()


def test_images_get_writes_the_very_bytes(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = picture(61, format_="JPEG")
    image_id = upload_content(service, content)
    named = run(service, "images", "get", image_id)
    piped = run(service, "images", "get", image_id, "--output", "-")
    again = run(service, "images", "get", image_id)
    forced = run(service, "images", "get", image_id, "--force", "--json")

    assert (0, 0, 1, 0) == tuple(each.exit_code for each in (named, piped, again, forced))
    assert content == (tmp_path / f"{image_id}.jpg").read_bytes()
    assert content == piped.stdout_bytes
    assert "is there already" in again.stderr
    assert f"{image_id}.jpg" == json.loads(forced.stdout)["file"]


def test_images_get_tells_why_it_cannot_write(service: Service, tmp_path: Path) -> None:
    image_id = upload_content(service, picture(62))
    result = run(service, "images", "get", image_id, "-o", str(tmp_path / "missing/x.png"))

    assert 1 == result.exit_code
    assert f"picback: {tmp_path}/missing/x.png: No such file or directory\n" == result.stderr


def test_images_tag_sets_and_removes(service: Service) -> None:
    image_id = upload_content(service, picture(63), "dog", "sea")
    arguments = ["--set", "a=b=0.5", "--remove", "dog", "--json"]
    (document,) = documents(run(service, "images", "tag", image_id, *arguments))
    nothing = run(service, "images", "tag", image_id)

    assert [("sea", 1.0), ("a=b", 0.5)] == [
        (tag["name"], tag["confidence"]) for tag in document["tags"]
    ]
    assert 2 == nothing.exit_code


def test_several_tags_in_a_variable_are_parted_by_commas(service: Service) -> None:
    image_id = upload_content(service, picture(64))
    result = run(
        service, "images", "tag", image_id, "--json", PICBACK_IMAGES_TAG_SET="space suit=0.5,dog"
    )

    (document,) = documents(result)
    assert ["dog", "space suit"] == [tag["name"] for tag in document["tags"]]


@pytest.mark.parametrize("tag", ["dog=1.5", "dog=0", "dog=-1", "dog=much", "dog=nan", "dog="])
def test_a_confidence_that_cannot_be_is_a_usage_error(service: Service, tag: str) -> None:
    result = run(service, "images", "tag", "img_x", "--set", tag)

    assert 2 == result.exit_code
    assert "after = comes a confidence" in result.stderr


def test_images_delete_deletes_and_forgives_what_is_missing_on_request(service: Service) -> None:
    image_id = upload_content(service, picture(65))
    deleted = run(service, "images", "delete", image_id, "--json")
    missing = run(service, "images", "delete", image_id)
    forgiven = run(service, "images", "delete", image_id, "--allow-missing")

    assert (0, 5, 0) == (deleted.exit_code, missing.exit_code, forgiven.exit_code)
    assert [{"image_id": image_id}] == documents(deleted)
