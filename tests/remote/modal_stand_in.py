"""A stand-in of Modal's server on this machine: what a launch calls, and no more.

Speaks Modal's own protocol to the real client. A volume is a folder, a container a process in it
that runs the body of the function. Written from the client's requests (modal_proto).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpclib.const
import grpclib.server
from google.protobuf.empty_pb2 import Empty
from grpclib.exceptions import GRPCError
from modal._serialization import deserialize, serialize
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientBase

CONTAINER = """
import json, sys
from gptoss_tools.remote import bodies
print(json.dumps(getattr(bodies, sys.argv[1])(*sys.argv[2:])), file=sys.stderr)
"""


class StandIn(ModalClientBase):
    """Everything kept in memory, but for the volume; `seen` names the calls in their order."""

    def __init__(self, volume: Path, secrets: tuple[str, ...] = ()) -> None:
        self.volume, self.secrets = volume, secrets
        self.seen: list[str] = []
        self.functions: list[api.Function] = []
        self.disconnects: list[Any] = []
        self.states: list[Any] = []
        self.contents: dict[str, bytes] = {}
        self.mounted: list[str] = []
        self.called = ""
        self.answers: list[dict[str, Any]] = []  # what the next calls answer, instead of running
        self.output: bytes | None = None
        self.logs: list[str] = []
        self.lines: list[tuple[str, ...]] = []

    def __mapping__(self):
        return {path: self._handler(path, h) for path, h in super().__mapping__().items()}

    def _handler(self, path: str, known):
        name = path.rpartition("/")[2]

        async def answer(stream) -> None:
            request = await stream.recv_message()
            self.seen.append(name)
            if stream.metadata.get("x-modal-token-secret") != "as-right":
                raise GRPCError(grpclib.const.Status.UNAUTHENTICATED, "Token validation failed.")
            method = getattr(self, "on_" + name, None)
            if method is None:
                raise GRPCError(grpclib.const.Status.UNIMPLEMENTED, name)
            reply = method(request)
            if asyncio.iscoroutine(reply):
                reply = await reply
            for message in reply if isinstance(reply, list) else [reply]:
                await stream.send_message(message)

        return grpclib.const.Handler(answer, *known[1:])

    def on_ClientHello(self, request):
        return api.ClientHelloResponse(image_builder_version="2025.06")

    def on_EnvironmentGetOrCreate(self, request):
        settings = api.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api.EnvironmentMetadata(name="main", settings=settings)
        return api.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def on_SecretGetOrCreate(self, request):
        if request.deployment_name not in self.secrets:
            raise GRPCError(grpclib.const.Status.NOT_FOUND, "no such secret")
        return api.SecretGetOrCreateResponse(secret_id="st-" + request.deployment_name)

    def on_VolumeGetOrCreate(self, request):
        metadata = api.VolumeMetadata(
            version=api.VOLUME_FS_VERSION_V1, name=request.deployment_name
        )
        return api.VolumeGetOrCreateResponse(
            volume_id="vo-" + request.deployment_name,
            version=api.VOLUME_FS_VERSION_V1,
            metadata=metadata,
        )

    def on_MountPutFile(self, request):
        if request.data:
            self.contents[request.sha256_hex] = request.data
        return api.MountPutFileResponse(exists=request.sha256_hex in self.contents)

    def on_VolumePutFiles(self, request):
        for file in request.files:
            path = self.volume / file.filename.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.contents[file.sha256_hex])
        return Empty()

    def on_MountBatchedCheckExistence(self, request):
        return api.MountBatchedCheckExistenceResponse()  # the package itself is not wanted

    def on_MountGetOrCreate(self, request):
        self.mounted += [file.filename for file in request.files]
        return api.MountGetOrCreateResponse(mount_id="mo-1")

    def on_ImageGetOrCreate(self, request):
        done = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        return api.ImageGetOrCreateResponse(image_id="im-1", result=done)

    def on_AppCreate(self, request):
        self.states.append(request.app_state)
        return api.AppCreateResponse(app_id="ap-1", app_page_url="https://modal.com/apps/ap-1")

    def on_AppHeartbeat(self, request):
        return Empty()

    def on_AppPublish(self, request):
        return api.AppPublishResponse(url="https://modal.com/apps/ap-1")

    def on_AppClientDisconnect(self, request):
        self.disconnects.append(request.reason)
        return Empty()

    async def on_AppGetLogs(self, request):
        while self.logs and not self.disconnects:
            await asyncio.sleep(0.01)
        return [api.TaskLogsBatch(app_done=True)]

    def on_FunctionPrecreate(self, request):
        return api.FunctionPrecreateResponse(
            function_id="fu-" + request.function_name,
            handle_metadata=self._handle(request.function_name),
        )

    def on_FunctionCreate(self, request):
        self.functions.append(request.function)
        ranked = api.FunctionData.RankedFunction(rank=0, function=request.function)
        return api.FunctionCreateResponse(
            function_id="fu-" + request.function.function_name,
            function_data=api.FunctionData(ranked_functions=[ranked]),
            handle_metadata=self._handle(request.function.function_name),
        )

    def _handle(self, name: str) -> api.FunctionHandleMetadata:
        return api.FunctionHandleMetadata(
            function_name=name,
            function_type=api.Function.FUNCTION_TYPE_FUNCTION,
            supported_input_formats=[api.DATA_FORMAT_PICKLE],
            supported_output_formats=[api.DATA_FORMAT_PICKLE],
        )

    def on_FunctionMap(self, request):
        [item] = request.pipelined_inputs
        args, _ = deserialize(item.input.args, None)
        self.lines.append(args)
        self.called = request.function_id.removeprefix("fu-")
        self.output = serialize(self.answers.pop(0)) if self.answers else None
        taken = api.FunctionPutInputsResponseItem(idx=0, input_id="in-1", input_jwt="jwt")
        return api.FunctionMapResponse(function_call_id="fc-1", pipelined_inputs=[taken])

    async def on_FunctionGetOutputs(self, request):
        if self.output is None:
            self.output = await asyncio.to_thread(self._run_container, self.lines[-1])
        done = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS, data=self.output)
        item = api.FunctionGetOutputsItem(result=done, data_format=api.DATA_FORMAT_PICKLE)
        return api.FunctionGetOutputsResponse(outputs=[item], idxs=[0])

    def _run_container(self, args: tuple[str, ...]) -> bytes:
        self.volume.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-c", CONTAINER, self.called, *args]
        done = subprocess.run(line, cwd=self.volume, capture_output=True, text=True)
        self.logs.append(done.stdout)
        return serialize(json.loads(done.stderr.splitlines()[-1]))


class Server:
    """Serve a stand-in in a thread; `environment` is what the client needs to find it."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": "ak-me",
            "MODAL_TOKEN_SECRET": "as-right",
            "MODAL_BUILD_VALIDATION": "ignore",  # a source file may change while a test runs
        }

    def __enter__(self) -> Server:
        self.thread.start()
        self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = grpclib.server.Server([self.stand_in])
        self.loop.run_until_complete(server.start("127.0.0.1", 0))
        self.port = server._server.sockets[0].getsockname()[1]
        self.ready.set()
        self.loop.run_forever()


StandIn.__abstractmethods__ = frozenset()
