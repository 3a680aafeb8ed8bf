"""Server reflection, v1 and v1alpha, with the contract's comments.

Clients such as grpcurl and buf curl list and call the service by it. The stock servicer
registers v1alpha only and answers from descriptors that have lost their comments; the
file descriptors.binpb beside the generated code has kept them.
"""

from __future__ import annotations

import contextlib
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The services under which reflection answers.
SERVICE_NAMES: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)

#: Its methods, as interceptors see them.
METHODS: Final = tuple(f"/{name}/ServerReflectionInfo" for name in SERVICE_NAMES)


def add_to(server: grpc.Server, names: Iterable[str]) -> None:
    """Let *server* describe the services *names*.

    Streams of this kind stay open for as long as somebody's tool does, so they need threads
    of their own: see METHODS.
    """
    handler = grpc.stream_stream_rpc_method_handler(
        _Reflection([*names, *SERVICE_NAMES]).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in SERVICE_NAMES:
        # The two versions have the same messages, byte for byte.
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc] # untyped base
    def __init__(self, names: Iterable[str]) -> None:
        self._files = {file.name: file for file in _files()}
        pool = descriptor_pool.DescriptorPool()
        for file in self._files.values():
            pool.Add(file)
        super().__init__(names, pool)

    def _file_by_filename(self, request: Any, filename: str) -> Any:
        if filename in self._files:
            return self._answer(request, filename)
        return super()._file_by_filename(request, filename)  # which has not got it either

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        # Python's pool does not know methods; the service that they belong to it does.
        for name in (fully_qualified_name, fully_qualified_name.rpartition(".")[0]):
            with contextlib.suppress(KeyError):
                return self._answer(request, self._pool.FindFileContainingSymbol(name).name)
        return super()._file_containing_symbol(request, fully_qualified_name)

    def _answer(self, request: Any, filename: str) -> Any:
        wanted, found = [filename], {}
        while wanted:
            name = wanted.pop()
            if name not in found:
                found[name] = self._files[name]
                wanted.extend(found[name].dependency)
        return reflection_pb2.ServerReflectionResponse(
            original_request=request,
            file_descriptor_response=reflection_pb2.FileDescriptorResponse(
                file_descriptor_proto=[file.SerializeToString() for file in found.values()]
            ),
        )


def _files() -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """Yield all files that describe the server, each after those that it imports."""
    data = resources.files("picback.v1").joinpath("descriptors.binpb").read_bytes()
    yield from descriptor_pb2.FileDescriptorSet.FromString(data).file
    health, alpha = (descriptor_pb2.FileDescriptorProto() for _ in range(2))
    health_pb2.DESCRIPTOR.CopyToProto(health)
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    # Version 1 of reflection, which grpcio does not have, is its v1alpha by another name.
    renamed = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    yield from (health, alpha, text_format.Parse(renamed, descriptor_pb2.FileDescriptorProto()))
