"""The service from a client that knows nothing of it: buf curl, by reflection, as in README.md."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.interceptors import SCOPES
from tests.service import picture

if TYPE_CHECKING:
    from tests.receiver import Receiver
    from tests.service import Service

BUF = str(Path(sys.executable).with_name("buf"))


def _buf_curl(
    service: Service, path: str, *arguments: str, data: Any = None, key: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    command += ["-H", f"x-api-key: {key or service.api_key}", "--reflect-header", "*", *arguments]
    if data is not None:
        command += ["--data", "@-"]
    return subprocess.run(
        [*command, f"http://{service.address}{path}"],
        input=None if data is None else json.dumps(data),
        capture_output=True,
        text=True,
        check=False,
    )


def _call(service: Service, method: str, **fields: Any) -> Any:
    done = _buf_curl(service, f"/picback.v1.ImageService/{method}", data=fields)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_services_and_methods_are_listed(calling_service: Service, version: str) -> None:
    services = _buf_curl(calling_service, "", "--reflect-protocol", version, "--list-services")
    methods = _buf_curl(calling_service, "", "--reflect-protocol", version, "--list-methods")

    assert [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "picback.v1.ImageService",
    ] == services.stdout.splitlines()
    assert {method.removeprefix("/") for method in SCOPES} <= set(methods.stdout.splitlines())
    assert not services.stderr + methods.stderr


def test_an_image_goes_in_and_its_query_is_called_back(
    calling_service: Service, receiver: Receiver
) -> None:
    content = picture(1)
    uploaded = _call(
        calling_service,
        "UploadImage",
        content=base64.b64encode(content).decode(),
        tags=[{"name": "dog", "confidence": 0.5}],
    )
    submitted = _call(
        calling_service,
        "SubmitQuery",
        text="two dogs",
        callback_url=receiver.url,
        give_up_after="60s",
    )
    (request,) = receiver.wait_for(1)

    assert uploaded["created"]
    assert "IMAGE_STATE_READY" == uploaded["image"]["state"]
    assert "QUERY_STATE_QUEUED" == submitted["query"]["state"]
    assert submitted["query"]["id"] == request.headers["webhook-id"]
    assert content == base64.b64decode(request.json()["result"])


def test_an_error_tells_code_reason_and_fields(calling_service: Service) -> None:
    done = _buf_curl(calling_service, "/picback.v1.ImageService/SubmitQuery", data={"text": ""})

    assert 3 << 3 == done.returncode  # buf's way to tell INVALID_ARGUMENT
    error = json.loads(done.stderr)
    assert "invalid_argument" == error["code"]
    assert ["google.rpc.ErrorInfo", "google.rpc.BadRequest"] == [
        detail["type"] for detail in error["details"]
    ]


def test_without_a_key_nothing_is_described(calling_service: Service) -> None:
    done = _buf_curl(calling_service, "", "--list-services", key="wrong")

    assert 0 != done.returncode
    assert not done.stdout
