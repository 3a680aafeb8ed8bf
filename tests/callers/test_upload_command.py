"""`picback upload`: what it prints, and how it ends."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.callers.fake_service import FakeService, serving
from tests.service import picture

if TYPE_CHECKING:
    from tests.service import Service
from tests.callers.typing_commands import documents, run, run_at


def test_upload_tells_of_each_file_its_id_and_tags_and_whether_it_is_new(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "dog.png"
    path.write_bytes(picture(1))
    first = run(service, "upload", str(path), "--tag", "dog", "--tag", "space suit=0.25")
    second = run(service, "upload", str(path))

    assert 0 == first.exit_code
    assert "" == first.stderr
    heading, row = (line.split("  ") for line in first.stdout.splitlines())
    assert ["FILE", "ID", "STORED", "STATE", "TAGS"] == [cell.strip() for cell in heading if cell]
    name, image_id, stored, state, tags = (cell.strip() for cell in row if cell)
    assert ("dog.png", "new", "READY") == (name, stored, state)
    assert "dog 1.00, space suit 0.25" == tags
    assert image_id.startswith("img_")
    assert f"dog.png  {image_id}  known" in second.stdout


def test_a_file_that_is_no_image_does_not_stop_the_others(service: Service, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(picture(10 + number))
    paths = [str(tmp_path / name) for name in ("1.png", "notes.txt", "missing.png", "2.png")]
    result = run(service, "upload", *paths)

    assert 1 == result.exit_code
    stored = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert ["1.png", "2.png"] == stored
    refused, missing, summary = result.stderr.splitlines()
    assert refused.startswith(f"picback: {paths[1]}: ")
    assert refused.endswith("(IMAGE_UNSUPPORTED)")
    assert f"picback: {paths[2]}: No such file or directory (FILE_UNREADABLE)" == missing
    assert "4 files: 2 new, 2 failed" == summary


def test_upload_prints_one_json_document_for_each_file_in_their_order(
    service: Service, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture(20))
    bad.write_bytes(picture(21)[:-20])
    result = run(service, "upload", "--json", "--tag", "sea", str(bad), str(good))

    refused, stored = documents(result)
    assert 1 == result.exit_code
    assert str(bad) == refused["file"]
    assert {"code", "reason", "message", "violations"} == set(refused["error"])
    assert "IMAGE_DAMAGED" == refused["error"]["reason"]
    assert str(good) == stored["file"]
    assert stored["created"] is True
    image = stored["image"]
    assert "IMAGE_STATE_READY" == image["state"]
    assert hashlib.sha256(good.read_bytes()).hexdigest() == image["sha256"]
    assert [{"name": "sea", "confidence": 1.0, "source": "TAG_SOURCE_CALLER", "model": ""}] == (
        image["tags"]
    )


def test_fields_without_a_value_stand_in_the_json_too(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    path.write_bytes(picture(22))
    (document,) = documents(run(service, "upload", "--json", str(path)))

    assert [] == document["image"]["tags"]


def test_a_folder_stands_for_the_images_in_it_and_below(service: Service, tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "below/c.tiff", "notes.txt", ".hidden.png", ".cache/d.png"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(30 + number))
    result = run(service, "upload", "--json", str(tmp_path))

    taken = [Path(document["file"]).relative_to(tmp_path) for document in documents(result)]
    assert ["a.png", "b.JPG", "below/c.tiff"] == [str(path) for path in taken]


def test_a_folder_without_images_is_a_failure(service: Service, tmp_path: Path) -> None:
    result = run(service, "upload", str(tmp_path))

    assert (1, "", "picback: no image files there\n") == (
        result.exit_code,
        result.stdout,
        result.stderr,
    )


def test_uploads_are_under_way_at_the_same_time(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    together = threading.Barrier(3, timeout=30)
    fake = FakeService(during_upload=together.wait)
    with serving(fake) as address:
        result = run_at(address, "upload", str(tmp_path), "--jobs", "3", "--no-wait")

    assert 0 == result.exit_code
    assert all(request.no_wait for request in fake.requests)
    assert 3 == len({request.request_id for request in fake.requests})


def test_without_a_right_key_no_further_file_is_tried(service: Service, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(40))
    result = run_at(
        service.address, "upload", str(tmp_path), "--jobs", "1", PICBACK_API_KEY="pbk_wrong"
    )

    assert 4 == result.exit_code
    error, summary = result.stderr.splitlines()
    assert error.endswith("(API_KEY_INVALID)")
    assert "5 files: 1 failed, 4 not tried" == summary
