"""The warm half of a node: takes tasks from its SuperNode and answers them in this very process.

Flower starts a process per message, which loads torch and the data anew. A SuperNode in process
isolation hands its tasks to whoever holds its secret; here that is one process that stays. It runs
the installed ClientApp: code that comes with a run is never executed on a site.
"""

import argparse
import contextlib
from pathlib import Path

from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime import run_clientapp

from federation.deploy.desk import Desk
from federation.deploy.pace import Pace, hasten_pulls
from federation.deploy.processes import end_with_parent

_QUICKEST, _SLOWEST = 0.05, 1.0  # seconds between two looks for a task
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def main() -> None:
    """Work until the process is stopped or its SuperNode is gone."""
    parser = argparse.ArgumentParser(description="Answer the messages of a SuperNode.")
    parser.add_argument("--runtime", required=True, help="address of the SuperNode's Runtime API")
    parser.add_argument("--secret", required=True, type=Path, help="file of the SuperNode's secret")
    parser.add_argument("--states", required=True, type=Path, help="folder of personal states")
    arguments = parser.parse_args()
    end_with_parent()
    hasten_pulls(run_clientapp, "pull_and_inflate_object_from_tree")
    secret = arguments.secret.read_bytes()
    with contextlib.suppress(KeyboardInterrupt):
        serve(arguments.runtime, secret, Desk(arguments.states))


def serve(address: str, secret: bytes, desk: Desk) -> None:
    """Take one task after the other.

    Args:
        address: Of the SuperNode's Runtime API, on this machine.
        secret: What the SuperNode knows its worker by.
        desk: Answers the messages.
    """
    signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
    client = _client(address, signed)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    pace = Pace(_QUICKEST, _SLOWEST)
    while True:
        task = client.AcquireTask(request)
        if task.token:
            pace.found()
            _answer(_client(address, RuntimeTokenHttpInterceptor(task.token)), desk)
            pace.found()
        else:
            pace.wait()


def _answer(client: RuntimeHttpClient, desk: Desk) -> None:
    """Answer the message of one task."""
    # Without it the SuperNode would take this process for dead while it trains.
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    try:
        message, context, _, _ = run_clientapp.pull_task_input(client)
        run_clientapp.push_message(client, desk.answer(message, context), context)
        run_clientapp.push_task_output(client, None, SubStatus.COMPLETED, "")
    finally:
        heartbeat.stop()
        client.close()


def _client(address: str, own: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # it does not leave the machine
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="graphcl-worker"), own],
        retry_invoker=make_simple_http_retry_invoker(),
    )


if __name__ == "__main__":
    main()
