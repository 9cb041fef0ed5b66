"""Promises of the greeting between machines: versions, purposes, and proofs that cannot be played back or mirrored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulktransfer.errors import BindRefusedError, ProtocolViolation
from bulktransfer.wire import greeting
from bulktransfer.wire.greeting import BinderGreeting, CreatorGreeting, Purpose

SECRET, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def converse(binder, creator):
    """Carry bytes to and fro until both have nothing to say."""
    said = []
    while True:
        there, back = binder.take_outgoing(), creator.take_outgoing()
        said += [there, back]
        if not there and not back:
            return said
        if there:
            creator.feed(there)
        if back:
            binder.feed(back)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_two_that_fit_are_done(secret):
    binder, creator = BinderGreeting(secret), CreatorGreeting(secret)
    said = converse(binder, creator)
    assert (binder.done, creator.done) == (True, True)
    assert (creator.purpose, creator.index) == (Purpose.KNOCK, 0)
    assert SECRET not in b"".join(said)


def test_an_invitation_is_used_with_its_token_and_number():
    token = b"t" * 16
    creator = CreatorGreeting(SECRET, tokens={token: {1, 2}})
    converse(BinderGreeting(SECRET, token=token, index=2), creator)
    assert (creator.purpose, creator.token, creator.index) == (Purpose.JOIN, token, 2)


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [(None, SECRET, "asks for a shared secret"), (SECRET, None, "no shared secret to prove")],
)
def test_a_secret_on_one_side_only_is_said(mine, theirs, why):
    binder, creator = BinderGreeting(mine), CreatorGreeting(theirs)
    with pytest.raises(BindRefusedError, match=why):
        converse(binder, creator)
    assert why in creator.refusal
    assert not creator.done


def test_an_unknown_invitation_is_refused():
    with pytest.raises(BindRefusedError, match="does not know the invitation"):
        converse(BinderGreeting(token=b"t" * 16, index=1), CreatorGreeting())


def test_the_binder_proves_first_and_another_secret_does_not_do():
    binder, creator = BinderGreeting(SECRET), CreatorGreeting(OTHER)
    creator.feed(binder.take_outgoing())
    binder.feed(creator.take_outgoing())
    with pytest.raises(BindRefusedError, match="did not prove"):
        creator.feed(binder.take_outgoing())
    assert creator.outgoing == b""  # whoever does not know the secret hears nothing made of it


def test_a_creator_that_cannot_prove_it_is_left():
    binder, creator = BinderGreeting(SECRET), CreatorGreeting(SECRET)
    creator.feed(binder.take_outgoing())
    binder.feed(creator.take_outgoing())
    binder.take_outgoing()
    with pytest.raises(BindRefusedError, match="the creator did not prove"):
        binder.feed(bytes(32))


def test_a_proof_is_good_for_one_meeting():
    binder, creator = BinderGreeting(SECRET), CreatorGreeting(SECRET)
    preface = binder.take_outgoing()
    creator.feed(preface)
    binder.feed(creator.take_outgoing())
    proof = binder.take_outgoing()
    again = CreatorGreeting(SECRET)
    again.feed(preface)  # the same bytes, played back to another meeting
    with pytest.raises(BindRefusedError, match="did not prove"):
        again.feed(proof)


def test_a_proof_cannot_be_mirrored():
    binder, creator = BinderGreeting(SECRET), CreatorGreeting(SECRET)
    creator.feed(binder.take_outgoing())
    binder.feed(creator.take_outgoing())
    with pytest.raises(BindRefusedError, match="did not prove"):
        binder.feed(binder.take_outgoing())


def test_another_version_is_named():
    binder = BinderGreeting()
    preface = bytearray(binder.take_outgoing())
    preface[8:10] = (2).to_bytes(2, "big")
    creator = CreatorGreeting()
    creator.feed(bytes(preface))
    with pytest.raises(BindRefusedError, match=r"different versions .*it speaks version 1"):
        binder.feed(creator.take_outgoing())


def test_a_secret_is_long_enough_and_bytes():
    with pytest.raises(ValueError, match="a secret of 15 bytes"):
        BinderGreeting(bytes(15))
    with pytest.raises(TypeError, match="a secret is bytes"):
        CreatorGreeting("a secret of letters")


@given(st.binary(min_size=greeting.PREFACE_SIZE, max_size=greeting.PREFACE_SIZE))
def test_no_preface_gets_past_the_bounds(data):
    creator = CreatorGreeting()
    with pytest.raises(ProtocolViolation, match="does not use this library"):
        creator.feed(data)


@given(st.binary(min_size=22, max_size=22), st.integers(0, 255), st.integers(0, 3))
def test_a_strange_answer_is_a_violation_or_a_refusal(rest, verdict, proofs):
    binder = BinderGreeting()
    binder.take_outgoing()
    answer = greeting.MAGIC + (1).to_bytes(2, "big") + bytes([verdict, proofs]) + rest[:20]
    try:
        binder.feed(answer)
    except (ProtocolViolation, BindRefusedError):
        assert not binder.done
    else:
        assert (verdict, proofs, rest[:4]) == (0, 0, bytes(4))
