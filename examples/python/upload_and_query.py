"""A caller of picback with nothing but the generated code: upload, query, watch.

PICBACK_API_KEY=pbk_... python upload_and_query.py PHOTO...
    --query "dogs running on beaches" --callback http://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from picback.v1 import image_service_pb2, image_service_pb2_grpc, query_pb2

#: What makes a restart of the server invisible. Retrying is safe because every request that
#: stores something brings a request_id: the same one twice is stored once.
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "picback.v1.ImageService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}


def main() -> int:
    """Do what the command line says; 0 when the callback was delivered."""
    parser = argparse.ArgumentParser(description="Upload photos, then query for one of them.")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--query", required=True)
    parser.add_argument("--callback", required=True)
    arguments = parser.parse_args()

    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    address = os.environ.get("PICBACK_ADDRESS", "127.0.0.1:50051")
    with grpc.insecure_channel(address, options) as channel:
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        metadata = (("x-api-key", os.environ["PICBACK_API_KEY"]),)
        try:
            for photo in arguments.photos:
                upload(stub, metadata, photo)
            return query(stub, metadata, arguments.query, arguments.callback)
        except grpc.RpcError as error:
            print(f"{reason(error)}: {error.details()}", file=sys.stderr)
            return 1


def upload(
    stub: image_service_pb2_grpc.ImageServiceStub, metadata: tuple[tuple[str, str]], photo: Path
) -> None:
    """Store one photo and print what is seen in it."""
    request = image_service_pb2.UploadImageRequest(
        content=photo.read_bytes(), request_id=str(uuid.uuid4())
    )
    response = stub.UploadImage(request, timeout=30, metadata=metadata)
    tags = ", ".join(f"{tag.name} {tag.confidence:.2f}" for tag in response.image.tags)
    print(f"{photo.name}: {response.image.id} {tags}")


def query(
    stub: image_service_pb2_grpc.ImageServiceStub,
    metadata: tuple[tuple[str, str]],
    text: str,
    callback: str,
) -> int:
    """Submit a query and watch it to its end; 0 when its callback was delivered."""
    request = image_service_pb2.SubmitQueryRequest(
        text=text, callback_url=callback, request_id=str(uuid.uuid4())
    )
    found = stub.SubmitQuery(request, timeout=30, metadata=metadata).query
    watch = image_service_pb2.WatchQueryRequest(query_id=found.id)
    for response in stub.WatchQuery(watch, timeout=300, metadata=metadata):
        found = response.query
        print(f"{found.id}: {query_pb2.QueryState.Name(found.state)}")
    print(f"lemmas {', '.join(found.lemmas)}; image {found.match.image_id or 'none'}")
    return 0 if found.state == query_pb2.QUERY_STATE_DELIVERED else 1


def reason(error: grpc.RpcError) -> str:
    """Return why a call failed: a name of picback.v1.ErrorReason, or the status code."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return error.code().name


if __name__ == "__main__":
    sys.exit(main())
