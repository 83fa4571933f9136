"""Errors for a cluster that cannot be joined; the head of these tests only answers that it is alive."""

import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from sweeps.engine import connection
from tests.errors import refuses


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    version = ray.__version__
    refuses = False

    def CheckAlive(self, request: Any, context: grpc.ServicerContext) -> gcs_service_pb2.CheckAliveReply:
        if self.refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: token is missing or incorrect")
        return gcs_service_pb2.CheckAliveReply(ray_version=self.version)


@pytest.fixture
def head() -> Iterator[tuple[Head, str]]:
    servant = Head()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(servant, server)
    port = server.add_insecure_port("0.0.0.0:0")  # Ray takes 127.0.0.1 for the address of this machine
    server.start()
    yield servant, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_head_of_this_version_is_joined(head: tuple[Head, str]) -> None:
    connection.check_answers(head[1])


def test_another_version_is_named(head: tuple[Head, str]) -> None:
    head[0].version = "2.9.3"
    with refuses(f"--address {head[1]}", "", "2.9.3", ray.__version__):
        connection.check_answers(head[1])


def test_a_wrong_token_is_said(head: tuple[Head, str]) -> None:
    head[0].refuses = True
    with refuses(f"--address {head[1]}", "", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH"):
        connection.check_answers(head[1])


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379"])
def test_where_nobody_is_that_is_known_at_once(address: str) -> None:
    begin = time.monotonic()
    with refuses(f"--address {address}", "", "HOST:6379"):
        connection.check_answers(address)
    assert time.monotonic() - begin < connection.HEAD_ANSWERS_S + 5


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_other_kinds_of_addresses_have_their_command(address: str) -> None:
    with (
        refuses(f"--address {address}", "", "HOST:6379", "`sweep submit STUDY --address http://HOST:8265`"),
        connection.connected(address, None),  # type: ignore[arg-type]
    ):
        pass
