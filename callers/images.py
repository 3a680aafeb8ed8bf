"""`picback images`: list, show, fetch, tag and delete what was uploaded."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from callers import wording
from callers.client import items
from callers.errors import fail, for_each
from callers.image_files import SUFFIXES
from callers.options import caller_command, limit_option
from callers.param_types import TagNameType, TagType
from callers.tables import print_facts, print_json, print_table, to_dict
from picback.v1 import image_service_pb2

if TYPE_CHECKING:
    from callers.options import Caller
    from picback.v1 import image_pb2

#: Tags shown in a list's line, which has to fit on a screen.
_TOP_TAGS: Final = 3


@click.group("images")
def images() -> None:
    """List, show, fetch, tag and delete images."""


@images.command("list")
@limit_option("PICBACK_IMAGES_LIST_LIMIT")
@caller_command
def list_images(caller: Caller, limit: int) -> None:
    """List images, newest first."""
    found = items(
        lambda size, token: caller.client.call(
            caller.client.stub.ListImages,
            image_service_pb2.ListImagesRequest(page_size=size, page_token=token),
        ),
        lambda page: page.images,
        limit=limit,
    )
    if caller.as_json:
        for image in found:
            print_json(to_dict(image))
        return
    rows = [
        (
            image.id,
            wording.image_state(image),
            wording.time(image.create_time),
            wording.tags(image.tags, most=_TOP_TAGS),
        )
        for image in found
    ]
    print_table(("id", "state", "stored", "tags"), rows)


@images.command("show")
@click.argument("image_id")
@caller_command
def show_image(caller: Caller, image_id: str) -> None:
    """Show one image: where tagging stands, and every tag."""
    request = image_service_pb2.GetImageRequest(image_id=image_id)
    _print_image(caller, caller.client.call(caller.client.stub.GetImage, request).image)


@images.command("get")
@click.argument("image_id")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    envvar="PICBACK_IMAGES_GET_OUTPUT",
    show_envvar=True,
    help="Where to write; - is stdout. If not given, the image's id in the current folder.",
)
@click.option(
    "--force",
    is_flag=True,
    envvar="PICBACK_IMAGES_GET_FORCE",
    show_envvar=True,
    help="Write over a file that is there.",
)
@caller_command
def get_image(caller: Caller, image_id: str, output: Path | None, *, force: bool) -> None:
    """Write the image file, byte for byte as it was uploaded."""
    if caller.as_json and output == Path("-"):
        msg = "--json and --output - both want stdout"
        raise click.UsageError(msg)
    request = image_service_pb2.GetImageContentRequest(image_id=image_id)
    response = caller.client.call(caller.client.stub.GetImageContent, request)
    if hashlib.sha256(response.content).hexdigest() != response.sha256:
        fail(f"what came of {image_id} is not what was stored: its SHA-256 differs")
    if output == Path("-"):
        sys.stdout.buffer.write(response.content)
        return
    # The server knows this id, so it is one of its own and safe as a name.
    path = output or Path(image_id + SUFFIXES.get(response.media_type, ".bin"))
    _write(path, response.content, force=force)
    if caller.as_json:
        facts = {"media_type": response.media_type, "sha256": response.sha256}
        print_json({"image_id": image_id, "file": str(path), **facts})
    else:
        click.echo(f"{path}: {response.media_type}, {wording.size(len(response.content))}")


@images.command("tag")
@click.argument("image_id")
@click.option(
    "--set",
    "set_tags",
    metavar="NAME[=CONFIDENCE]",
    type=TagType(),
    multiple=True,
    envvar="PICBACK_IMAGES_TAG_SET",
    show_envvar=True,
    help="Add a tag or change its confidence; repeatable.",
)
@click.option(
    "--remove",
    "remove_tags",
    metavar="NAME",
    type=TagNameType(),
    multiple=True,
    envvar="PICBACK_IMAGES_TAG_REMOVE",
    show_envvar=True,
    help="Remove a tag for good, whoever gave it; repeatable.",
)
@caller_command
def tag_image(
    caller: Caller,
    image_id: str,
    set_tags: tuple[image_pb2.Tag, ...],
    remove_tags: tuple[str, ...],
) -> None:
    """Add, correct and remove tags by hand; it stands over the model's opinion."""
    if not set_tags and not remove_tags:
        msg = "nothing to do: give --set or --remove"
        raise click.UsageError(msg)
    request = image_service_pb2.UpdateImageTagsRequest(
        image_id=image_id, set_tags=set_tags, remove_tags=remove_tags
    )
    _print_image(caller, caller.client.call(caller.client.stub.UpdateImageTags, request).image)


@images.command("delete")
@click.argument("image_ids", metavar="IMAGE_ID...", nargs=-1, required=True)
@click.option(
    "--allow-missing",
    is_flag=True,
    envvar="PICBACK_IMAGES_DELETE_ALLOW_MISSING",
    show_envvar=True,
    help="It is no failure when there is no such image.",
)
@caller_command
def delete_images(caller: Caller, image_ids: tuple[str, ...], *, allow_missing: bool) -> None:
    """Delete images with their bytes and tags."""

    def delete(image_id: str) -> None:
        request = image_service_pb2.DeleteImageRequest(
            image_id=image_id, allow_missing=allow_missing
        )
        caller.client.call(caller.client.stub.DeleteImage, request)
        if caller.as_json:
            print_json({"image_id": image_id})
        else:
            click.echo(f"deleted {image_id}")

    for_each(image_ids, delete)


def _print_image(caller: Caller, image: image_pb2.Image) -> None:
    if caller.as_json:
        print_json(to_dict(image))
        return
    print_facts(
        [
            ("image", image.id),
            ("state", wording.image_state(image)),
            ("failure", wording.failure(image.failure)),
            ("type", image.media_type),
            ("pixels", f"{image.width} x {image.height}"),
            ("size", wording.size(image.size_bytes)),
            ("sha256", image.sha256),
            ("stored", wording.time(image.create_time)),
        ]
    )
    if image.tags:
        click.echo()
        rows = [(tag.name, f"{tag.confidence:.6f}", tag.model or "a caller") for tag in image.tags]
        print_table(("tag", "confidence", "given by"), rows)


def _write(path: Path, content: bytes, *, force: bool) -> None:
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError:
        fail(f"{path}: is there already; --force writes over it")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
