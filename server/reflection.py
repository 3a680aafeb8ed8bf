"""Server reflection, v1 and v1alpha, with the contract's comments.

Clients such as grpcurl and buf curl list and call the service by it. The stock servicer
registers v1alpha only and answers from descriptors that have lost their comments; the
file descriptors.binpb beside the generated code has kept them.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import ThreadPoolExecutor

#: The services under which reflection answers.
SERVICE_NAMES: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


def add_to(server: grpc.Server, names: Iterable[str], pool: ThreadPoolExecutor) -> None:
    """Let *server* describe the services *names*; open streams hold threads of *pool*.

    Streams of this kind stay open for as long as somebody's tool does, so they must not
    hold the threads that answer calls.
    """
    servicer = _Reflection([*names, *SERVICE_NAMES])

    def describe(requests: Any, context: grpc.ServicerContext) -> Any:
        return servicer.ServerReflectionInfo(requests, context)

    describe.experimental_thread_pool = pool  # type: ignore[attr-defined]
    handler = grpc.stream_stream_rpc_method_handler(
        describe,
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
        super().__init__(names)
        data = resources.files("picback.v1").joinpath("descriptors.binpb").read_bytes()
        files = descriptor_pb2.FileDescriptorSet.FromString(data).file
        self._commented = {file.name: file for file in files}

    def _file_by_filename(self, request: Any, filename: str) -> Any:
        if filename not in self._commented:
            return super()._file_by_filename(request, filename)
        return self._answer(request, filename)

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        name = fully_qualified_name
        try:
            filename = self._pool.FindFileContainingSymbol(name).name
        except KeyError:
            # Python's pool does not know methods; the service they belong to it does.
            try:
                name = name.rpartition(".")[0]
                filename = self._pool.FindFileContainingSymbol(name).name
            except KeyError:
                return super()._file_containing_symbol(request, fully_qualified_name)
        if filename not in self._commented:
            return super()._file_containing_symbol(request, name)
        return self._answer(request, filename)

    def _answer(self, request: Any, filename: str) -> Any:
        wanted, found = [filename], {}
        while wanted:
            name = wanted.pop()
            if name not in found:
                found[name] = self._commented[name]
                wanted.extend(found[name].dependency)
        return reflection_pb2.ServerReflectionResponse(
            original_request=request,
            file_descriptor_response=reflection_pb2.FileDescriptorResponse(
                file_descriptor_proto=[file.SerializeToString() for file in found.values()]
            ),
        )
