"""The kubelet's calls as bytes that are ready before the clock runs, sent from one thread.

Called by tests.bench.prepare. A kubelet is a program in Go; a hundred Python threads that build and read messages
would take more of the two cores than the node agent whose time is measured. What the gRPC library itself does for a
call (its C core, and a callback for each answer) still counts.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from kubeletplugin.proto import dra_v1_pb2
from tests.unit.kubeletplugin.fakekubelet import CALL_TIMEOUT_S, Ref

_SERVICE = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"


@dataclass(frozen=True)
class Answered:
    """A call that has ended."""

    seconds: float
    """From before the first call of all that were made together to this answer."""
    content: bytes


class KubeletCalls:
    """Calls of one plugin over its socket."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._calls: dict[str, Any] = {
            kind: self._channel.unary_unary(f"{_SERVICE}/Node{kind}Resources") for kind in ("Prepare", "Unprepare")
        }

    def prepare(self, *calls: Sequence[Ref]) -> list[float]:
        """Make some calls at once, each with some claims; return the seconds to each answer, in order of the calls.

        Raises:
            AssertionError: a claim was not prepared.
        """
        answered = self._at_once("Prepare", calls, dra_v1_pb2.NodePrepareResourcesRequest)
        for refs, one in zip(calls, answered, strict=True):
            claims = dra_v1_pb2.NodePrepareResourcesResponse.FromString(one.content).claims
            assert {ref.uid for ref in refs} == {uid for uid, claim in claims.items() if claim.devices}, claims
        return [one.seconds for one in answered]

    def unprepare(self, *calls: Sequence[Ref]) -> list[float]:
        """Undo claims in the same way; AssertionError if one was not undone."""
        answered = self._at_once("Unprepare", calls, dra_v1_pb2.NodeUnprepareResourcesRequest)
        for refs, one in zip(calls, answered, strict=True):
            claims = dra_v1_pb2.NodeUnprepareResourcesResponse.FromString(one.content).claims
            assert {ref.uid for ref in refs} == {uid for uid, claim in claims.items() if not claim.error}, claims
        return [one.seconds for one in answered]

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def _at_once(self, kind: str, calls: Sequence[Sequence[Ref]], request: Callable[..., Any]) -> list[Answered]:
        ready = [
            request(
                claims=[dra_v1_pb2.Claim(uid=ref.uid, namespace=ref.namespace, name=ref.name) for ref in refs]
            ).SerializeToString()
            for refs in calls
        ]
        ends_s = [0.0] * len(ready)
        left = threading.Semaphore(0)

        def note(index: int, _: object) -> None:
            ends_s[index] = time.perf_counter()
            left.release()

        call = self._calls[kind]
        started_s = time.perf_counter()
        if len(ready) == 1:
            content = call(ready[0], timeout=CALL_TIMEOUT_S)
            return [Answered(time.perf_counter() - started_s, content)]
        futures = [call.future(content, timeout=CALL_TIMEOUT_S) for content in ready]
        for index, future in enumerate(futures):
            future.add_done_callback(functools.partial(note, index))
        for _ in futures:
            left.acquire()
        return [Answered(end_s - started_s, future.result()) for end_s, future in zip(ends_s, futures, strict=True)]
