"""The handshake against the published test vector, and against those who lack the key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.common.session import noise
from vtl_tools.common.session.noise import Cipher, Handshake

VECTOR = {
    "prologue": "4a6f686e2047616c74",
    "psk": "54686973206973206d7920417573747269616e20706572737065637469766521",
    "initiator": "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
    "responder": "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
}
MESSAGES = [  # payload, message: cacophony's vector for Noise_NNpsk0_25519_AESGCM_SHA256
    (
        "4c756477696720766f6e204d69736573",
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79447c37a89fc17813788d30df2d59501d60"
        "66f5f8aecc3406bbd9829f2d24a531b1",
    ),
    (
        "4d757272617920526f746862617264",
        "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448088432f29d79368ef9de4e1ae7a362fb05bf0"
        "ad668e026bf5714554497b3a720461",
    ),
    ("462e20412e20486179656b", "7c01e898a6201f36aecee532e29cd0b7f8ffa29d3366ad0dce39a6"),
    ("4361726c204d656e676572", "a9ff535aace3db6a1da1a7fb00fe2de2622bb373abad9fb42c00e0"),
    (
        "4a65616e2d426170746973746520536179",
        "6cfc49a3e65472edc2d0152abe5ce950170a8a47c959f30bd48b5f0aacf29adbfd",
    ),
    (
        "457567656e2042f6686d20766f6e2042617765726b",
        "9bc86e6d974ed21ba04604a94aa68de21677eb409ead070c0cd569b069ee19ba142aa4c1a9",
    ),
]


def sides(psk: bytes = bytes(32), other: bytes = bytes(32)) -> tuple[Handshake, Handshake]:
    return (
        Handshake(psk, b"\x01" * 32, b"p", is_initiator=True),
        Handshake(other, b"\x02" * 32, b"p", is_initiator=False),
    )


def test_the_published_vector() -> None:
    of = {name: bytes.fromhex(text) for name, text in VECTOR.items()}
    initiator = Handshake(of["psk"], of["initiator"], of["prologue"], is_initiator=True)
    responder = Handshake(of["psk"], of["responder"], of["prologue"], is_initiator=False)
    pairs = [(bytes.fromhex(payload), bytes.fromhex(message)) for payload, message in MESSAGES]
    assert initiator.write(pairs[0][0]) == pairs[0][1]
    assert responder.read(pairs[0][1]) == pairs[0][0]
    assert responder.write(pairs[1][0]) == pairs[1][1]
    assert initiator.read(pairs[1][1]) == pairs[1][0]
    directions = [(initiator.split()[0], responder.split()[1]), (responder.split()[0], initiator.split()[1])]
    for number, (payload, message) in enumerate(pairs[2:]):
        seal, opens = directions[number % 2]
        assert seal.seal(payload) == message
        assert opens.open(message) == payload


def test_another_key_is_told_by_the_first_message() -> None:
    initiator, responder = sides(other=b"\x09" * 32)
    with pytest.raises(Malformed):
        responder.read(initiator.write(b""))


def test_a_reflected_message_is_refused_by_both_sides() -> None:
    initiator, responder = sides()
    hello = initiator.write(b"")
    with pytest.raises(Malformed):
        initiator.read(hello)
    responder.read(hello)
    answer = responder.write(b"")
    _, again = sides()
    with pytest.raises(Malformed):
        again.read(answer)


def test_an_ephemeral_key_of_small_order_is_refused() -> None:
    """Its shared secret would be known to everybody; a side that has the pre-shared key may still send it."""
    initiator, responder = sides()
    initiator.public = bytes(32)
    responder.read(initiator.write(b""))
    with pytest.raises(Malformed):
        responder.write(b"")


@given(st.integers(0, 48), st.integers(1, 255))
def test_a_changed_octet_is_noticed(at: int, change: int) -> None:
    initiator, responder = sides()
    hello = bytearray(initiator.write(b"x"))
    hello[at] ^= change
    with pytest.raises(Malformed):
        responder.read(bytes(hello))


def test_messages_open_once_and_in_order() -> None:
    seal, opens = Cipher(bytes(32)), Cipher(bytes(32))
    first, second = seal.seal(b"first", b"h"), seal.seal(b"second", b"h")
    assert opens.open(first, b"h") == b"first"
    for wrong in first, second[:-1], b"":
        with pytest.raises(Malformed):
            Cipher(bytes(32)).open(wrong, b"other header")
    with pytest.raises(Malformed):
        opens.open(first, b"h")


def test_the_key_changes_after_a_number_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "RENEW_AFTER", 3)
    seal, opens, kept = Cipher(bytes(32)), Cipher(bytes(32)), Cipher(bytes(32))
    messages = [seal.seal(b"same") for _ in range(10)]
    assert [opens.open(message) for message in messages] == [b"same"] * 10
    monkeypatch.setattr(noise, "RENEW_AFTER", 1 << 20)
    forever = Cipher(bytes(32))
    assert [forever.seal(b"same") for _ in range(10)] != messages
    assert kept.open(messages[0]) == b"same"
