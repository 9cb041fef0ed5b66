"""What comes first on a connection between machines: versions, what it is for, and proofs of a shared secret.

Knows: the bytes of both sides, and what each must find in the other's. Must not know: sockets, TLS (which is below), or
the messages that follow.

    binder  -> creator   preface (48 bytes)
    creator -> binder    answer (32 bytes); a verdict other than GO_ON ends it
    with a secret:
    binder  -> creator   proof (32 bytes): HMAC-SHA256(secret, "bulktransfer binder" + preface + answer)
    creator -> binder    proof (32 bytes): HMAC-SHA256(secret, "bulktransfer creator" + preface + answer)

The binder proves first, so whoever knocks learns nothing of the secret; both nonces are in both proofs, so nothing can
be played back; the two names differ, so nothing can be mirrored.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import struct
from typing import Final

from ..errors import BindRefusedError, ProtocolViolation

MAGIC: Final = b"bulktran"
VERSION: Final = 1
NONCE_SIZE: Final = 16
TOKEN_SIZE: Final = 16
PROOF_SIZE: Final = 32
SECRET_SIZE_MIN: Final = 16

_PREFACE: Final = struct.Struct("!8sHBBHH16s16s")  # magic, version, purpose, proofs, index, 0, nonce, token
_ANSWER: Final = struct.Struct("!8sHBBI16s")  # magic, version, verdict, proofs, 0, nonce
PREFACE_SIZE: Final = _PREFACE.size
ANSWER_SIZE: Final = _ANSWER.size


class Purpose(enum.IntEnum):
    """What a connection is for."""

    KNOCK = 0  # somebody wants to bind
    JOIN = 1  # one more connection of somebody who was invited


class Verdict(enum.IntEnum):
    """How the creator answers a preface."""

    GO_ON = 0
    VERSION = 1  # it speaks another version, which the answer names
    SECRET_NEEDED = 2
    NO_SECRET = 3  # the binder wants proofs, and the creator has no secret
    TOKEN = 4  # nobody was invited with this token, or somebody came already


WHY: Final = {
    Verdict.VERSION: "the two sides speak different versions of the protocol",
    Verdict.SECRET_NEEDED: "the creator asks for a shared secret",
    Verdict.NO_SECRET: "the creator has no shared secret to prove",
    Verdict.TOKEN: "the creator does not know the invitation",
}


def check_secret(secret: bytes | None) -> None:
    """Judge a secret. Raises: TypeError, ValueError."""
    if secret is not None and not isinstance(secret, bytes):
        raise TypeError(f"a secret is bytes, not {type(secret).__name__}")
    if secret is not None and len(secret) < SECRET_SIZE_MIN:
        raise ValueError(f"a secret of {len(secret)} bytes; at least {SECRET_SIZE_MIN} random ones make it one")


def _proof(secret: bytes, who: bytes, preface: bytes, answer: bytes) -> bytes:
    return hmac.new(secret, b"bulktransfer " + who + preface + answer, hashlib.sha256).digest()


class _Side:
    """What both sides share: bytes to be sent, and how many are to come."""

    def __init__(self, secret: bytes | None) -> None:
        check_secret(secret)
        self.secret = secret
        self.done = False
        self.outgoing = b""
        self.wanted = 0

    def goes_on(self) -> bool:
        """Whether something is still to come."""
        return not self.done

    def take_outgoing(self) -> bytes:
        """What is to be sent now."""
        data, self.outgoing = self.outgoing, b""
        return data


class BinderGreeting(_Side):
    """The binder's half."""

    def __init__(self, secret: bytes | None = None, *, token: bytes = bytes(TOKEN_SIZE), index: int = 0) -> None:
        super().__init__(secret)
        purpose = Purpose.JOIN if index else Purpose.KNOCK
        nonce = os.urandom(NONCE_SIZE)
        self._preface = _PREFACE.pack(MAGIC, VERSION, purpose, secret is not None, index, 0, nonce, token)
        self._answer = b""
        self.outgoing = self._preface
        self.wanted = ANSWER_SIZE

    def feed(self, data: bytes) -> None:
        """The creator's answer, then its proof. Raises: ProtocolViolation, BindRefusedError."""
        if self._answer:
            assert self.secret is not None
            if not hmac.compare_digest(data, _proof(self.secret, b"creator", self._preface, self._answer)):
                raise BindRefusedError("the creator did not prove that it has the same secret")
            self.done = True
            return
        magic, version, verdict, proofs, zero, _ = _ANSWER.unpack(data)
        if magic != MAGIC or zero:
            raise ProtocolViolation(f"greeting of the creator: it starts with {magic!r}: no endpoint of this library")
        if verdict not in list(Verdict):
            raise ProtocolViolation(f"greeting of the creator: verdict {verdict}")
        if verdict != Verdict.GO_ON:
            raise BindRefusedError(f"{WHY[Verdict(verdict)]} (it speaks version {version}, this side {VERSION})")
        if version != VERSION or proofs != (self.secret is not None):
            raise ProtocolViolation("greeting of the creator: it goes on with something else than was asked for")
        self._answer = data
        if self.secret is None:
            self.done = True
            return
        self.outgoing = _proof(self.secret, b"binder", self._preface, data)
        self.wanted = PROOF_SIZE


class CreatorGreeting(_Side):
    """The creator's half; `purpose`, `token` and `index` say what for, once it is done."""

    def __init__(self, secret: bytes | None = None, *, tokens: dict[bytes, set[int]] | None = None) -> None:
        super().__init__(secret)
        self._tokens = tokens if tokens is not None else {}  # invitations, with the indices that have not come
        self._preface = b""
        self._answer = b""
        self.purpose = Purpose.KNOCK
        self.token = b""
        self.index = 0
        self.refusal = ""  # why the answer is a no; it is to be sent all the same
        self.wanted = PREFACE_SIZE

    def feed(self, data: bytes) -> None:
        """The binder's preface, then its proof. Raises: ProtocolViolation, BindRefusedError."""
        if self._answer:
            assert self.secret is not None
            if not hmac.compare_digest(data, _proof(self.secret, b"binder", self._preface, self._answer)):
                raise BindRefusedError("the binder did not prove that it has the same secret")
            self.outgoing = _proof(self.secret, b"creator", self._preface, self._answer)
            self.done = True
            return
        magic, version, purpose, proofs, index, zero, _, token = _PREFACE.unpack(data)
        if magic != MAGIC or zero or proofs > 1:
            raise ProtocolViolation(f"greeting of a binder: it starts with {magic!r}: it does not use this library")
        verdict = self._judge(version, purpose, bool(proofs), index, token)
        self._preface = data
        proofs = self.secret is not None and verdict is Verdict.GO_ON
        self._answer = _ANSWER.pack(MAGIC, VERSION, verdict, proofs, 0, os.urandom(NONCE_SIZE))
        self.outgoing = self._answer
        if verdict is not Verdict.GO_ON:
            self.refusal = WHY[verdict]
            return
        self.purpose, self.token, self.index = Purpose(purpose), token, index
        self.wanted = PROOF_SIZE
        self.done = self.secret is None

    def _judge(self, version: int, purpose: int, proofs: bool, index: int, token: bytes) -> Verdict:
        if version != VERSION:
            return Verdict.VERSION
        if proofs != (self.secret is not None):
            return Verdict.NO_SECRET if proofs else Verdict.SECRET_NEEDED
        if purpose == Purpose.KNOCK:
            if index or token != bytes(TOKEN_SIZE):
                raise ProtocolViolation("greeting of a binder: it knocks with an invitation")
        elif purpose != Purpose.JOIN or not index:
            raise ProtocolViolation(f"greeting of a binder: purpose {purpose} with number {index}")
        elif index not in self._tokens.get(token, ()):
            return Verdict.TOKEN
        return Verdict.GO_ON
