"""What others can write, at random: calls, books of tenants, records of claims. The same examples each time."""

import contextlib
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.errors import StateError
from api.kubefake import FakeKube
from api.names import ClaimUID
from kubeletplugin.proto import dra_v1_pb2
from kubeletplugin.state.preparedclaims import decode
from libvgpu.layout import layout
from libvgpu.shares import BooksReader, Limits, Policy, create_share
from tests.unit.kubeletplugin.builders import add_claim, gpu, result
from tests.unit.kubeletplugin.fakekubelet import FakeKubelet, Ref
from tests.unit.kubeletplugin.test_ledgers import CLAIM

_METHODS = [
    f"/k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin/{method}"
    for version in ("v1", "v1beta1")
    for method in ("NodePrepareResources", "NodeUnprepareResources")
]
_BOOKS_BYTES = layout().constants.VGPU_BOOKS_FILE_BYTES

quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _is_message(content: bytes) -> bool:
    try:
        dra_v1_pb2.NodePrepareResourcesRequest.FromString(content)
    except DecodeError:
        return False
    return True


def test_no_bytes_on_the_socket_end_the_agent(served: FakeKubelet, client: FakeKube) -> None:
    with grpc.insecure_channel(f"unix:{served.info.endpoint}") as channel:
        calls: dict[str, Any] = {method: channel.unary_unary(method) for method in _METHODS}

        @quick
        @given(st.sampled_from(_METHODS), st.binary(max_size=200))
        def send(method: str, content: bytes) -> None:
            # Bytes that are no message are refused by gRPC itself; silence would be an error of ours.
            _, call = calls[method].with_call(content, timeout=60) if _is_message(content) else (None, None)
            assert call is None or call.code() is grpc.StatusCode.OK
            with contextlib.suppress(grpc.RpcError):
                calls[method](content, timeout=60)

        send()
    claim = add_claim(client, "train", result(gpu(0)))
    assert claim.uid in served.prepare(claim)


def test_no_claim_that_anybody_can_name_leaves_something_or_is_prepared(
    served: FakeKubelet, client: FakeKube, root: Path
) -> None:
    there = add_claim(client, "train", result(gpu(0)))
    before = sorted(root.rglob("*"))
    names = st.one_of(
        st.text(max_size=30), st.sampled_from(["", "..", "../../etc", "a/b", there.uid, "x" * 63, "x" * 64, "a\nb"])
    )

    @quick
    @given(uid=names, namespace=names, name=names)
    def ask(uid: str, namespace: str, name: str) -> None:
        reference = Ref(uid, namespace, name)
        answers = served.call_prepare([reference])
        assert answers[uid].error or (uid, namespace, name) == (there.uid, "default", "train")
        assert served.unprepare(reference) == {uid: ""}

    ask()
    assert [path for path in sorted(root.rglob("*")) if path not in before and path.suffix != ".lock"] == []


@pytest.fixture(scope="module")
def sound_books() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        create_share(Path(folder) / "s", Limits("s", "GPU-1", 1 << 30, 25, 25, Policy.FIXED), durable=False)
        return (Path(folder) / "s" / "books").read_bytes()


_changes = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 256), st.integers(4096, 6000), st.integers(0, _BOOKS_BYTES - 8)),
        st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**63, 2**64 - 1])),
    ),
    max_size=8,
)


def test_no_books_that_a_tenant_can_write_are_more_than_unreadable(sound_books: bytes, tmp_path: Path) -> None:
    path = tmp_path / "books"
    reader = BooksReader(tmp_path)  # one for all, as the monitor has it

    @settings(quick, max_examples=120)
    @given(changes=_changes, length=st.one_of(st.none(), st.integers(0, _BOOKS_BYTES + 10)))
    def write(changes: list[tuple[int, int]], length: int | None) -> None:
        content = bytearray(sound_books)
        for offset, value in changes:
            struct.pack_into("<Q", content, offset, value)
        path.write_bytes(bytes(content[:length]) if length is not None else bytes(content))
        with contextlib.suppress(StateError):
            assert reader.read().processes == ()  # nobody holds a slot, whatever is written into it

    write()
    path.write_bytes(sound_books)
    assert reader.read().used_bytes == 0


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def test_no_record_is_more_than_damaged() -> None:
    sound: dict[str, Any] = json.loads(CLAIM.record)

    @settings(quick, max_examples=120)
    @given(field=st.sampled_from(sorted(sound)), value=_json)
    def read(field: str, value: Any) -> None:
        for record in (sound | {field: value}, sound | {"devices": [sound["devices"][0] | {"limits": value}]}, value):
            with contextlib.suppress(StateError):
                found = decode(json.dumps(record).encode(), ClaimUID("u1"), "u1.json")
                assert decode(found.record, ClaimUID("u1"), "u1.json") == found

    read()


@quick
@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_record(content: bytes) -> None:
    with pytest.raises(StateError):
        decode(content, ClaimUID("u1"), "u1.json")
