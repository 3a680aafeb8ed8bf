"""How tests type commands, and what they read from what is printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from picback.v1 import image_service_pb2
from server.cli import main

if TYPE_CHECKING:
    from click.testing import Result

    from tests.service import Service


def run(service: Service, *arguments: str, **environment: str) -> Result:
    """Run `picback` with *arguments* against *service*."""
    return run_at(service.address, *arguments, PICBACK_API_KEY=service.api_key, **environment)


def run_at(address: str, *arguments: str, **environment: str) -> Result:
    runner = CliRunner(env={"PICBACK_ADDRESS": address, **environment})
    return runner.invoke(main, list(arguments))


def documents(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def upload_content(service: Service, content: bytes, *tags: str) -> str:
    """Upload *content* with tags of its own and return the image's id."""
    request = image_service_pb2.UploadImageRequest(content=content)
    for tag in tags:
        request.tags.add(name=tag)
    return service.stub.UploadImage(request, metadata=service.metadata).image.id


def submit(service: Service, text: str, callback_url: str) -> str:
    request = image_service_pb2.SubmitQueryRequest(text=text, callback_url=callback_url)
    return service.stub.SubmitQuery(request, metadata=service.metadata).query.id
