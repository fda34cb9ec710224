"""A SOCKS proxy that is hostile, and the client that asks it.

Checked: Malformed and nothing else; what comes in pieces says what it does in one piece; one outcome comes at
most, and nothing after it; an address in it is one, a name printable; what is kept stays bounded; the octets
behind the answer are the stream's, all of them.
"""

from contextlib import suppress

from tests.fuzz.octets import Octets, pieces
from vtl_tools.common.errors import Malformed
from vtl_tools.common.socks import Client, Command, Connected, Credentials, Event, Failed, Resolved, Send

HELD_MAX = 261
TARGETS = ("example.com", b"\1\2\3\4", bytes(15) + b"\1", "a" * 255)


def client(take: Octets) -> tuple[Client, bytes]:
    """Make a client, and its first octets. ValueError: there is no such request."""
    how = take.number()
    credentials = (None, Credentials(b"guest", b"word"), Credentials(b"guest", b""))[how % 3]
    made = Client(credentials=credentials, pipelined=bool(how & 8))
    return made, made.request(take.pick(list(Command)), take.pick(TARGETS), 80)


def answered(event: Connected | Resolved, said: bytes, how: int) -> int:
    """Return how many octets an answer has, by what it says."""
    authenticated = how % 3 > 0
    method = 0 if authenticated and said[0] == 1 else 2
    name = isinstance(event.address, str)
    return method + 2 * authenticated + 4 + name + len(event.address) + 2


def talk(asking: Client, said: list[bytes]) -> tuple[list[Event], bytes, str]:
    """Return what a client makes of octets, what it leaves, and what was wrong."""
    events: list[Event] = []
    stream = b""
    try:
        for number, piece in enumerate(said):
            if asking.done:
                stream += piece
                continue
            events += asking.receive(piece)
            assert len(asking._held) <= HELD_MAX or asking.done
            if asking.done:
                stream = asking.rest
                assert number >= 0
    except Malformed as err:
        assert asking.done
        return events, b"", err.what
    if not asking.done:
        events += asking.eof()
    assert asking.done
    return events, stream, ""


def one(data: bytes) -> None:
    take = Octets(data)
    try:
        asking, _ = client(take)
        again, _ = client(Octets(data))
    except ValueError:
        return
    cuts, said = Octets(take.blob()), take.rest()
    whole = talk(asking, [said])
    cut = talk(again, pieces(said, cuts))
    assert whole[2] == cut[2]
    assert whole[0] == cut[0] or whole[2], "the pieces say something else than the whole"
    how, (events, stream, wrong) = Octets(data).number(), whole
    outcomes = [event for event in events if not isinstance(event, Send)]
    assert len(outcomes) <= 1
    assert bool(wrong) != bool(outcomes)
    for event in outcomes:
        assert event is events[-1]
        if isinstance(event, Failed):
            assert not stream
            continue
        assert isinstance(event, Connected | Resolved)
        assert stream == cut[1]
        assert stream == said[answered(event, said, how) :], (
            "octets of the stream are lost, or the answer's in it"
        )
        if isinstance(event.address, str):
            assert event.address.isascii()
            assert event.address.isprintable() or not event.address
        else:
            assert len(event.address) in (4, 16)
    with suppress(AssertionError):
        assert not asking.receive(b"x")


def seeds() -> list[bytes]:
    method, good, status = b"\5\0", b"\5\0\0\1\0\0\0\0\0\0", b"\1\0"
    named = b"\5\0\0\3\x09localhost\0\x50"
    answers = [
        (4 | 8, 0, method + good + b"stream"), (4, 0, method + good), (5 | 8, 0, b"\5\2" + status + good),
        (4 | 8, 1, method + named), (4 | 8, 2, method + b"\5\0\0\4" + bytes(18)), (4 | 8, 0, b"\5\xff"),
        (0, 0, b"\0\x5a\0\x50\1\2\3\4rest"), (0, 0, b"\0\x5b"), (5 | 8, 0, b"\1\1"),
        (4, 0, method + b"\5\xf6"),
        (1, 0, status + good), (13, 0, status + good),
    ]  # fmt: skip
    return [bytes((how, command, 0, 0, 2, 1, 3)) + said for how, command, said in answers]
