"""Reading and writing one header in place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP

A, B = address.ip("10.0.0.1"), address.ip("10.0.0.2")
MACS = {"src_mac": address.mac("02:00:00:00:00:01"), "dst_mac": address.mac("02:00:00:00:00:02")}


def segment(**more) -> bytearray:
    return build.tcp(**MACS, **{"src": A, "dst": B, "sport": 1000, "dport": 80, **more})


def test_figure_3_of_the_paper_reads_as_it_should():
    frame = segment()
    pkt = Packet.at(frame)
    assert pkt.ip.dst == B
    pkt.ip.dst = address.ip("10.9.9.9")
    pkt.tcp.dport = 8080
    assert frame == segment(dst=address.ip("10.9.9.9"), dport=8080)


def test_a_misspelt_field_is_an_error_and_not_a_new_attribute():
    header = Packet.at(segment()).tcp
    with pytest.raises(AttributeError):
        header.dprot = 80


def test_a_view_needs_no_packet_around_it():
    header = UDP.at(bytearray.fromhex("0035 1000 000a 0000 6869"), 0)
    assert (header.sport, header.dport, header.length, bytes(header.payload)) == (53, 4096, 10, b"hi")


def test_an_address_of_the_wrong_size_is_refused_before_anything_is_written():
    frame = segment()
    with pytest.raises(ValueError, match="4 octets"):
        Packet.at(frame).ip.dst = bytes(16)
    assert frame == segment()


def test_bits_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit 4 bits"):
        Packet.at(segment()).tcp.data_offset = 16


@pytest.mark.parametrize("cut", range(20))
def test_a_tcp_header_cut_short_is_malformed(cut):
    whole = bytearray(tcp.TCP.HEADER.pack(1, 2, 3, 4, 0x50, tcp.SYN, 5, 6, 7))
    assert TCP.at(whole, 0).seq == 3
    with pytest.raises(Malformed):
        TCP.at(whole[:cut], 0)


def test_timestamps_are_read_and_written_wherever_they_stand():
    for lead in (b"\x01\x01", b"", b"\x01", b"\x02\x04\x05\xb4"):
        options = lead + b"\x08\x0a" + bytes(7) + b"\x09" + b"\x01" * (-len(lead) % 4)
        pkt = Packet.at(segment(options=options))
        assert pkt.tcp.timestamps == (0, 9)
        pkt.tcp.timestamps = (0xDEADBEEF, 77)
        assert pkt.tcp.timestamps == (0xDEADBEEF, 77)
        assert pkt.verify()


def test_every_option_that_is_encoded_is_read_back():
    options = tcp.encode_options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1, 2))
    header = Packet.at(segment(flags=tcp.SYN, options=options)).tcp
    assert (header.mss, header.window_scale, header.sack_permitted) == (1460, 7, True)
    assert header.timestamps == (1, 2)
    blocks = [(10, 20), (30, 40)]
    assert Packet.at(segment(options=tcp.encode_options(sack=blocks))).tcp.sack == blocks


def test_an_mss_is_clamped_and_sack_is_hidden_with_the_checksum_right():
    options = tcp.encode_options(mss=9000, sack_permitted=True)
    pkt = Packet.at(segment(flags=tcp.SYN, options=options))
    pkt.tcp.mss = 1360
    assert pkt.tcp.erase_option(tcp.SACK_PERMITTED)
    assert not pkt.tcp.erase_option(tcp.SACK_PERMITTED)
    assert (pkt.tcp.mss, pkt.tcp.sack_permitted) == (1360, False)
    assert pkt.verify()


def test_an_option_that_is_not_there_cannot_be_written():
    with pytest.raises(ValueError, match="no option of kind 2"):
        Packet.at(segment()).tcp.mss = 1400


def test_an_option_whose_length_cannot_be_ends_the_options():
    header = Packet.at(segment(options=b"\x02\x04\x05\xb4\x03\x00\x08\x0a")).tcp
    assert list(header.options()) == [(2, b"\x05\xb4")]
    assert header.timestamps is None


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 10, 255]), max_size=40).map(bytes))
def test_what_a_syn_offers_is_read_at_once_as_it_is_by_name(options):
    for given_ in options, tcp.encode_options(mss=1460, window_scale=7, timestamps=(1, 2)) + options[:20]:
        header = Packet.at(segment(flags=tcp.SYN, options=given_)).tcp
        by_name = header.mss, header.window_scale, header.sack_permitted, header.timestamps
        assert header.offered() == by_name


def test_a_view_prints_its_fields():
    assert "dport=80" in repr(Packet.at(segment()).tcp)
