"""Frames with a vnet header of their sender's: what is judged is what is sent.

Checked: Malformed and nothing else; after bind(), each piece that segment() makes has the addresses, protocol
and ports that were read before; pieces are plain, no larger than max_frame() says, and hold the payload of
the whole, all of it and once; a checksum that was for somebody else to complete is right in each piece.
"""

from contextlib import suppress

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import offload, supersegment, vnet
from vtl_tools.common.packet.packet import Packet


def flow(frame: bytes | bytearray | memoryview) -> object:
    """Read a packet; what is broken in it is the answer as well."""
    try:
        pkt = Packet.at(frame)
        told = pkt.flow
        return pkt.ethertype, told, None if told is None else pkt.is_fragment
    except Malformed as err:
        return err.what


def cut(frame: bytearray) -> list[memoryview]:
    """segment() says that it bounds the work, and leaves a super-segment as it was."""
    before = bytes(frame)
    made = offload.segment(frame)
    assert len(made) <= supersegment.MAX_SEGMENTS
    if len(made) > 1:
        assert bytes(frame) == before
    return [memoryview(piece) for piece in made]


def is_right(frame: bytearray) -> bool:
    """Whether a partial checksum is the sum of the pseudo-header: of another, segments have wrong ones."""
    anew = Packet.at(bytearray(frame))
    if anew.transport is not None and anew.transport.end != len(frame):
        return False  # UDP's own length is another
    return anew.compute_transport_checksum(full=False) and anew.buf[vnet.VNET :] == frame[vnet.VNET :]


def one(data: bytes) -> None:
    take = Octets(data)
    frame = bytearray(take.rest())
    with suppress(Malformed):
        cut(bytearray(frame))
    try:
        offload.bind(frame)
    except Malformed:
        return
    with suppress(Malformed):
        judged = Packet.at(frame)
        before, right = flow(frame), is_right(frame)
        try:
            most = offload.max_frame(frame)
            made = cut(frame)
        except Malformed:
            return
        assert max(len(piece) for piece in made) == vnet.VNET + most or len(made) == 1
        for piece in made:
            assert offload.is_plain(piece)
            assert len(piece) <= vnet.VNET + most
            if len(made) == 1 or before[1] is None:
                assert flow(piece) == before, "what is sent is not what was judged"
                continue
            said = Packet.at(piece)
            assert said.flow[:2] == before[1][:2]
            if not said.is_fragment:
                assert said.flow == before[1], "a segment is of another flow than was judged"
                assert said.verify() or not right
        if right and len(made) > 1 and not Packet.at(made[0]).is_fragment:
            whole = b"".join(bytes(Packet.at(piece).payload) for piece in made)
            assert whole == bytes(judged.payload), "cutting changed the data"


def seeds() -> list[bytes]:
    lies = []
    for frame in FRAMES:
        l4 = 34 if frame[22:24] == b"\x08\x00" else 54
        lies += [vnet.HEADER.pack(1, 0, 0, 0, l4, at) + frame[vnet.VNET :] for at in (0, 2, 16)]
    return [*FRAMES, *lies]
