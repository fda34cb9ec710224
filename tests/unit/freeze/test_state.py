"""A state goes out and comes in again as it was; what is not one is told in a line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.errors import VTLError
from vtl_tools.services.freeze import report, state
from vtl_tools.services.freeze.freezer import Freezer


def text_of(talk):
    return "".join(state.dump(talk.freezer, "web", talk.now)).encode()


def held(new_talk, version=4):
    talk = new_talk(version).open().freeze()
    talk.peer(".", 1001, 201, 1000)
    talk.peer(".", 2001, 201)
    talk.now += 1.0  # by then all that was captured before is known
    return talk


def test_a_state_is_not_exact_while_captured_segments_may_still_arrive(new_talk):
    """Killed at once, a service would leave numbers that the VM had gone beyond."""
    talk = new_talk().open().freeze()
    assert [row["exact"] for row in json.loads(text_of(talk))["connections"]] == [False]
    talk.now += 1.0
    assert [row["exact"] for row in json.loads(text_of(talk))["connections"]] == [True]


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_frozen_stays_so(new_talk, version):
    talk = held(new_talk, version)
    before = text_of(talk)
    other = new_talk(version)
    other.now = 5.0
    assert state.load(before, "x", other.freezer, other.now) == "web"
    assert json.loads(text_of(other)) == json.loads(before)
    assert other.freezer.table.held == talk.freezer.table.held > 1000
    assert other.peer(".", 1001, 201, 1000) == [(".", 201, 1001, 0, (1000, 5000))]
    assert other.thaw() == [(".", 201, 1001, 500, (1000, 5000))]
    assert len(other.delivered) == 2


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_was_proven_stays_so_until_it_is_contradicted(new_talk, is_heard):
    talk = new_talk()
    if is_heard:
        talk.vm("P.", 1, 501, 200)
        talk.freezer.table.set_sampled(True)
    talk.freeze()
    for pause in 0.0, 0.3, 0.6:
        talk.now += pause
        said = talk.peer(".", 1001, 201, 10, stamps=(int(talk.now * 1000), 1000))
    assert said[0][:4] == (".", 201, 1001, 0)
    before = text_of(talk)
    other = new_talk()
    other.now = talk.now
    state.load(before, "x", other.freezer, other.now)
    assert json.loads(text_of(other)) == json.loads(before)
    assert other.peer(".", 1001, 201, 10)[0][2] == 1001
    assert [one[2] for one in other.peer(".", 701, 201, 10)] == ([501] if is_heard else [])
    other.thaw()
    assert len(other.freezer.table) == is_heard


def test_a_proof_that_is_none_is_told(new_talk):
    talk = new_talk().freeze()
    for pause in 0.0, 0.3, 0.6:
        talk.now += pause
        talk.peer(".", 1001, 201, 10, stamps=(int(talk.now * 1000), 1000))
    for path, value in (
        (["peer_ack"], None), (["before_proof", "peer_window"], None), (["before_proof", "vm_ack"], "x"),
        (["before_proof"], 5),
    ):  # fmt: skip
        text = changed(text_of(talk), ["connections", 0, *path], value)
        with pytest.raises(VTLError, match="export the state again"):
            state.load(text, "x", Freezer(), 1.0)


def test_a_reset_is_still_told(new_talk):
    talk = held(new_talk)
    talk.peer("R", 1001, stamps=None)
    other = new_talk()
    state.load(text_of(talk), "x", other.freezer, other.now)
    other.thaw()
    assert len(other.delivered) == 1


def test_what_runs_on_is_in_doubt_afterwards(new_talk):
    talk = new_talk().open()
    other = new_talk()
    state.load(text_of(talk), "x", other.freezer, other.now)
    assert other.freezer.table.doubts(other.connection)
    assert not talk.freezer.table.doubts(talk.connection)


def changed(told, path, value):
    told = json.loads(told)
    *parents, last = path
    at = told
    for one in parents:
        at = at[one]
    at[last] = value
    return json.dumps(told).encode()


WRONG = {
    "another version": (["version"], 2, "version 2 instead of 1"),
    "another's": (["format"], "vtl-fw", "not a state of vtl-freeze"),
    "no version": (["version"], None, "no int as 'version'"),
    "a number that is too large": (
        ["connections", 0, "vm_ack"],
        2**32,
        "'vm_ack' is not from 0 to 4294967295",
    ),
    "a number that is none": (["connections", 0, "vm_window"], True, "no int as 'vm_window'"),
    "half of a frame": (["connections", 0, "head"], "AAAA", "a held frame is invalid"),
    "a frame of another": (["connections", 0, "vm_port"], 81, "a held frame is of another connection"),
    "an address": (["connections", 0, "peer"], "10.0.0", "an IP address is invalid"),
    "two versions of IP": (["connections", 0, "peer"], "::1", "between two versions of IP"),
    "no connection": (["connections", 0], 5, "an IP address is invalid"),
    "another network": (
        ["connections", 0, "ethernet"],
        "00" * 14,
        "an Ethernet header is of another network",
    ),
    "no octets": (["connections", 0, "tags"], "xy", "VLAN tags: not hexadecimal"),
    "no time": (["frozen_s"], -1.0, "'frozen_s' is not a time"),
    "no host": (["hosts"], [["", "10.0.0.1"]], "a host is not a list of three strings"),
    "no reset": (["resets"], ["AAAA"], "a held frame is invalid"),
    "no list": (["connections"], {}, "no list as 'connections'"),
}


@pytest.mark.parametrize(("path", "value", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_and_nothing_is_changed(new_talk, path, value, said):
    talk = held(new_talk)
    before = text_of(talk)
    with pytest.raises(VTLError) as caught:
        state.load(changed(before, path, value), "web.json", talk.freezer, talk.now)
    assert str(caught.value).startswith("web.json: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert text_of(talk) == before


def test_a_connection_is_there_once(new_talk):
    told = json.loads(text_of(held(new_talk)))
    told["connections"] *= 2
    with pytest.raises(VTLError, match="occurs twice"):
        state.load(json.dumps(told).encode(), "x", Freezer(), 0.0)


def test_what_is_cut_off_is_told(new_talk):
    text = text_of(held(new_talk))
    for end in range(0, len(text) - 3, 97):
        with pytest.raises(VTLError, match="not JSON, or truncated"):
            state.load(text[:end], "x", Freezer(), 0.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_whatever_is_in_a_state_it_is_taken_or_told(data):
    from freeze_talk import Talk

    told = json.loads(text_of(held(Talk)))
    at = told if data.draw(st.booleans()) else told["connections"][0]
    at[data.draw(st.sampled_from(sorted(at)))] = data.draw(JSON)
    freezer = Freezer()
    try:
        state.load(json.dumps(told).encode(), "x", freezer, 0.0)
    except VTLError:
        return
    freezer.stop(1.0)
    while freezer.thaw():
        pass
    report.report(freezer, 1.0)


def test_a_report_tells_what_cannot_be_held(new_talk):
    talk = new_talk().open().freeze()
    talk.peer("F.", 1001, 201)
    talk.port = 9
    talk.peer(".", 5, 5)
    talk.now += 60
    rows = report.report(talk.freezer, talk.now)["connections"]
    assert [row["risks"] for row in rows] == [["closed", "data-waits"], ["unknown"]]
    assert (rows[0]["held_s"], rows[0]["probes"]) == (60.0, 1)
    assert (rows[0]["vm"], rows[0]["peer"]) == ("10.0.0.5:80", "192.0.2.1:40000")
