"""Records of prepared claims: what survives what."""

import errno
import json
import logging
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from api.deadlines import within
from api.errors import StateError, TransientError
from api.names import ClaimUID, DeviceName
from kubeletplugin.state.ledgers import Ledger, Prepared
from kubeletplugin.state.preparedclaims import PreparedClaim, PreparedDevice, decode
from libvgpu.shares import Limits, Policy

LIMITS = Limits("u1-0", "GPU-1", 1 << 30, 25, 25, Policy.FIXED)
DEVICE = PreparedDevice(0, "gpu", "node-1", DeviceName("gpu-1"), "s1", LIMITS)
CLAIM = PreparedClaim(ClaimUID("u1"), "default", "train", (DEVICE,), pods=("pod-1", "pod-2"))
REBUILT = PreparedClaim(ClaimUID("u1"), "", "", (PreparedDevice(0, "", "node-1", DeviceName("gpu-1"), limits=LIMITS),))


def ledger(folder: Path, rebuilt: PreparedClaim | None = None) -> Ledger:
    opened = Ledger(folder, lambda _uid: rebuilt)
    opened.load()
    return opened


def store(folder: Path, claim: PreparedClaim = CLAIM) -> Path:
    opened = ledger(folder)
    opened.reserve(claim.uid, lambda _prepared: claim)
    opened.settle(claim.uid)
    return folder / f"{claim.uid}.json"


def test_a_claim_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store(tmp_path)

    assert ledger(tmp_path).prepared() == {CLAIM.uid: CLAIM}


def test_a_reserved_claim_counts_before_it_is_written(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    opened.reserve(CLAIM.uid, lambda _prepared: CLAIM)

    opened.reserve(ClaimUID("u2"), lambda prepared: prepared[CLAIM.uid])
    assert opened.get(CLAIM.uid) == CLAIM


def test_a_reservation_that_is_taken_back_counts_no_more(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    opened.reserve(CLAIM.uid, lambda _prepared: CLAIM)

    opened.take_back(CLAIM.uid, None)

    assert opened.prepared() == {}


@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_truncated_record_is_put_aside_and_rebuilt(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = store(tmp_path)
    path.write_bytes(path.read_bytes()[:length])

    with caplog.at_level(logging.ERROR):
        opened = ledger(tmp_path, REBUILT)

    assert opened.prepared() == {CLAIM.uid: REBUILT}
    assert not REBUILT.is_complete
    assert (tmp_path / "u1.json.damaged").exists()
    assert ledger(tmp_path).prepared() == {CLAIM.uid: REBUILT}
    assert [record.getMessage() for record in caplog.records] == ["damaged record of a prepared claim put aside"]


def test_a_damaged_record_without_anything_to_rebuild_from_is_put_aside(tmp_path: Path) -> None:
    store(tmp_path).write_text("not json")

    assert ledger(tmp_path).prepared() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["u1.json.damaged"]


def test_one_damaged_record_costs_no_other_claim(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "u2.json").write_bytes(b"\x00" * 100)

    assert ledger(tmp_path).prepared() == {CLAIM.uid: CLAIM}


def test_a_record_that_the_disk_has_lost_is_rebuilt_and_costs_no_other_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path)
    other = replace(CLAIM, uid=ClaimUID("u2"))
    store(tmp_path, other)
    read = Path.read_bytes

    def lose(self: Path) -> bytes:
        if self == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", lose)

    assert ledger(tmp_path, REBUILT).prepared() == {CLAIM.uid: REBUILT, other.uid: other}


def test_a_record_that_cannot_be_read_at_the_moment_is_not_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path)

    def refuse(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            ledger(tmp_path, REBUILT)

    assert ledger(tmp_path).prepared() == {CLAIM.uid: CLAIM}


def test_fields_of_another_release_are_kept(tmp_path: Path) -> None:
    path = store(tmp_path)
    fields = json.loads(path.read_text())
    fields["version"] = 2
    fields["bootID"] = "b1"
    fields["devices"][0]["tainted"] = True
    fields["devices"][0]["limits"]["bandwidth"] = 5
    path.write_text(json.dumps(fields))
    opened = ledger(tmp_path)
    changed = PreparedClaim(CLAIM.uid, "default", "renamed", CLAIM.devices)

    decided, former = opened.reserve(CLAIM.uid, lambda _prepared: changed)
    opened.settle(decided.uid)

    assert former == CLAIM
    written = json.loads(path.read_text())
    assert (written["name"], written["bootID"], written["devices"][0]["tainted"]) == ("renamed", "b1", True)
    assert written["devices"][0]["limits"]["bandwidth"] == 5


def test_the_record_of_another_claim_under_this_name_is_not_believed() -> None:
    with pytest.raises(StateError) as caught:
        decode(CLAIM.record, ClaimUID("u2"), "u2.json")

    assert str(caught.value) == (
        "u2.json: found ValueError('the uid of another claim'), expected the record of a prepared claim"
    )


def test_what_another_instance_writes_and_removes_is_seen(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    seen: list[set[str]] = []

    def look() -> None:
        opened.reserve(ClaimUID("u9"), lambda prepared: seen.append(set(prepared)) or CLAIM)  # type: ignore[func-returns-value]
        opened.take_back(ClaimUID("u9"), None)

    store(tmp_path)
    look()
    ledger(tmp_path).remove(CLAIM.uid)
    look()

    assert seen == [{"u1"}, set()]


def test_a_claim_that_another_instance_undoes_right_after_it_was_written_is_written_again(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    opened.reserve(CLAIM.uid, lambda _prepared: CLAIM)
    opened.settle(CLAIM.uid)
    ledger(tmp_path).remove(CLAIM.uid)

    _, former = opened.reserve(CLAIM.uid, lambda _prepared: CLAIM)

    assert former is None


def test_claims_of_another_instance_are_told_without_deciding_anything(tmp_path: Path) -> None:
    opened = ledger(tmp_path)
    store(tmp_path)

    assert opened.get(CLAIM.uid) == CLAIM
    assert opened.prepared() == {CLAIM.uid: CLAIM}

    ledger(tmp_path).remove(CLAIM.uid)

    assert opened.get(CLAIM.uid) is None
    assert opened.prepared() == {}


def test_two_instances_decide_one_after_the_other(tmp_path: Path) -> None:
    # Each reserves what is left: only one of them may find it.
    first, second = ledger(tmp_path), ledger(tmp_path)
    entered = threading.Event()
    seen: list[set[str]] = []

    def decide_late(prepared: Prepared) -> PreparedClaim:
        entered.set()
        seen.append(set(prepared))
        return replace(CLAIM, uid=ClaimUID("u2"))

    late = threading.Thread(target=second.reserve, args=(ClaimUID("u2"), decide_late))

    def decide(_prepared: Prepared) -> PreparedClaim:
        late.start()
        assert not entered.wait(0.05)
        return CLAIM

    first.reserve(CLAIM.uid, decide)
    late.join()

    assert seen == [{CLAIM.uid}]


def test_what_another_instance_changed_of_a_claim_counts(tmp_path: Path) -> None:
    opened, other = ledger(tmp_path), ledger(tmp_path)
    opened.reserve(CLAIM.uid, lambda _prepared: CLAIM)
    changed = replace(CLAIM, name="renamed")

    _, former = other.reserve(CLAIM.uid, lambda _prepared: changed)

    assert former == CLAIM
    assert opened.get(CLAIM.uid) == changed


def test_a_change_that_an_instance_died_at_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, other = ledger(tmp_path), ledger(tmp_path)
    died = {"done": False}
    write = Ledger._set_number

    def die_after_the_change(self: Ledger, number: int) -> None:
        if self is other and number % 2 == 0:
            died["done"] = True
            return
        write(self, number)

    monkeypatch.setattr(Ledger, "_set_number", die_after_the_change)
    other.reserve(CLAIM.uid, lambda _prepared: CLAIM)

    assert died["done"]
    assert opened.prepared() == {CLAIM.uid: CLAIM}


def test_an_instance_that_decides_for_ever_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeletplugin.state.ledgers._DECISION_S", 0.01)
    stuck, opened = ledger(tmp_path), ledger(tmp_path)

    def decide(_prepared: Prepared) -> PreparedClaim:
        with pytest.raises(TransientError) as caught:
            opened.reserve(ClaimUID("u2"), lambda _prepared: CLAIM)
        assert str(caught.value) == (
            f"{tmp_path}.lock: byte 0 held by another instance of the agent for more than 0.01 s, expected it to be "
            "free by then"
        )
        return CLAIM

    stuck.reserve(CLAIM.uid, decide)


def test_a_call_waits_for_a_decision_of_another_instance_no_longer_than_its_deadline(tmp_path: Path) -> None:
    stuck, opened = ledger(tmp_path), ledger(tmp_path)

    def decide(_prepared: Prepared) -> PreparedClaim:
        stuck._set_number(99)  # there is something new to see
        with within(0.01):
            for ask in (opened.prepared, lambda: opened.get(CLAIM.uid), lambda: opened.remove(CLAIM.uid)):
                with pytest.raises(TransientError, match=r"another instance of the agent for more than 0\.0\d+ s"):
                    ask()
        return CLAIM

    stuck.reserve(CLAIM.uid, decide)


def test_a_call_waits_for_other_threads_no_longer_than_its_deadline(tmp_path: Path) -> None:
    opened = ledger(tmp_path)

    def look() -> None:
        with within(0.01), pytest.raises(TransientError) as caught:
            opened.get(CLAIM.uid)
        messages.append(re.sub(r"0\.0\d+ s", "0.01 s", str(caught.value)))

    messages: list[str] = []
    behind = threading.Thread(target=look)

    def decide(_prepared: Prepared) -> PreparedClaim:
        behind.start()
        behind.join()
        return CLAIM

    opened.reserve(CLAIM.uid, decide)

    (message,) = messages
    assert message == (
        f"records of claims in {tmp_path}: another thread of the agent is at them for more than 0.01 s, expected it to "
        "be done by then"
    )


def test_a_record_is_made_durable_by_the_one_who_answers_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger(tmp_path).reserve(CLAIM.uid, lambda _prepared: CLAIM)  # and dies before it is durable
    opened = ledger(tmp_path)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)

    for _ in range(2):
        opened.reserve(CLAIM.uid, lambda _prepared: CLAIM)
        opened.settle(CLAIM.uid)

    assert len(synced) == 2  # the file and the folder, once


def test_a_record_that_was_replaced_by_a_write_that_failed_is_seen_as_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path)
    opened = ledger(tmp_path)
    changed = replace(CLAIM, name="renamed")

    def fail(_folder: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("kubeletplugin.files.fsync_directory", fail)  # behind the change of the name
        with pytest.raises(OSError, match="Input/output error"):
            opened.reserve(CLAIM.uid, lambda _prepared: changed)

    assert opened.get(CLAIM.uid) == changed == ledger(tmp_path).get(CLAIM.uid)


def test_a_disk_that_takes_no_number_costs_looks_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path)
    opened = ledger(tmp_path)
    write = os.pwrite

    def refuse_even(descriptor: int, content: bytes, offset: int) -> int:
        if content[0] % 2 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(descriptor, content, offset)

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(os, "pwrite", refuse_even)
        opened.reserve(ClaimUID("u2"), lambda _prepared: replace(CLAIM, uid=ClaimUID("u2")))
        assert [set(opened.prepared()) for _ in range(3)] == [{"u1", "u2"}] * 3
        assert opened.remove(CLAIM.uid)
        assert set(opened.prepared()) == {"u2"}
    assert [record.getMessage() for record in caplog.records] == [
        "changes of records cannot be numbered: all are read each time"
    ]

    assert set(opened.prepared()) == set(ledger(tmp_path).prepared()) == {"u2"}


def test_the_largest_number_of_changes_is_followed_by_one_that_nobody_has_seen(tmp_path: Path) -> None:
    store(tmp_path)
    opened, other = ledger(tmp_path), ledger(tmp_path)
    opened._set_number(2**64 - 1)  # as an accident of the disk may leave it

    assert opened.remove(CLAIM.uid)

    assert other.prepared() == {}
