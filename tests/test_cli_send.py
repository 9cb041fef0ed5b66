"""Promises of `bulk send` and `bulk recv`: a file arrives whole and in its place, or both sides say why it did not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer.cli import main, parcel, progress, send, target
from certificates import Authority
from worlds import PATIENCE_S

ODD = 5 * (1 << 20) + 17
TX, RX, NONE = bulk.Direction.TX, bulk.Direction.RX, bulk.Trust.NONE


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    path = tmp_path / "odd"
    path.write_bytes(os.urandom(ODD))
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where the receiver stands."""
    path = tmp_path / "there"
    path.mkdir()
    return path


@pytest.mark.parametrize("trust", ["full", "half", "none"])
def test_a_file_arrives_under_its_name(start, odd_file, there, trust):
    sender = start("send", str(odd_file), "shm:x", "--trust", trust, "--json")
    received = start("recv", "shm:x", "--json", cwd=there).ends_with_json()
    sent = sender.ends_with_json()
    data = odd_file.read_bytes()
    assert (there / "odd").read_bytes() == data
    assert os.listdir(there) == ["odd"]
    assert (sent["act"], received["act"]) == ("sent", "received")
    for told in (sent, received):
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
        assert (told["size"], told["buffers"], told["trust"]) == (ODD, 6, trust.upper())
        assert told.keys() == {"act", "name", "size", "sha256", "buffers", "seconds", "gb_per_s", "address", "trust"}


def test_either_side_may_create(start, odd_file, there):
    receiver = start("recv", "create:shm:x", "-o", "copy", cwd=there)
    out, _ = start("send", str(odd_file), "bind:shm:x").ends()
    assert f"sent odd, {ODD:,} bytes in " in out
    assert "received copy" in receiver.ends()[0]
    assert (there / "copy").read_bytes() == odd_file.read_bytes()


def test_a_file_travels_between_machines(start, odd_file, there):
    sender = start("send", str(odd_file), "tcp://127.0.0.1:0")
    start("recv", sender.says().removeprefix("bulk send: offered at "), cwd=there).ends()
    sender.ends()
    assert (there / "odd").read_bytes() == odd_file.read_bytes()


def test_a_file_travels_encrypted_between_those_who_have_the_papers(start, odd_file, there, tmp_path):
    authority = Authority(tmp_path)
    server, client = authority.papers("server"), authority.papers("client")
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    shared = ["--authority", authority.certificate, "--secret-file", str(secret)]
    server_papers = ["--certificate", server.certificate, "--key", server.key, *shared]
    sender = start("send", str(odd_file), "tls://127.0.0.1:0", *server_papers)
    address = sender.says().removeprefix("bulk send: offered at ")
    client_papers = ["--certificate", client.certificate, "--key", client.key]
    assert "bulk recv: " in start("recv", address, *client_papers, *shared[:2], "--timeout", "2", cwd=there).ends(2)[1]
    start("recv", address, *client_papers, *shared, cwd=there).ends()
    sender.ends()
    assert (there / "odd").read_bytes() == odd_file.read_bytes()


def test_a_file_travels_through_forwarders(start, odd_file, there, tmp_path):
    papers = Authority(tmp_path).papers("relay")
    sender = start("send", str(odd_file), "shm:a", "--json")
    encrypted = ["--certificate", papers.certificate, "--key", papers.key]
    first = start("forward", "shm:a", "create:tls://127.0.0.1:0", *encrypted)
    middle = first.reads().removeprefix("created ")
    second = start("forward", middle, "create:shm:b", "--authority", str(tmp_path / "authority.pem"))
    received = start("recv", "shm:b", "--json", cwd=there).ends_with_json()
    assert sender.ends_with_json()["sha256"] == received["sha256"]
    assert (there / "odd").read_bytes() == odd_file.read_bytes()
    for relay in (first, second):
        assert "forwarded 8 buffers" in relay.ends()[0]  # an offer, six of contents, an end


def test_what_is_piped_arrives_as_it_comes(start, there):
    data = os.urandom(3 << 20)
    sender = start("send", "-", "shm:x", "--name", "stream", "--buffer-size", "64KiB", "--buffers", "3", stdin=data)
    with open(there / "out", "wb") as out:
        receiver = start("recv", "shm:x", "-o", "-", stdout=out)
    sender.ends()
    assert f"{len(data):,} bytes" in receiver.ends()[1]
    assert (there / "out").read_bytes() == data


def test_an_empty_file_arrives_empty(start, tmp_path, there):
    (tmp_path / "empty").touch()
    sender = start("send", str(tmp_path / "empty"), "shm:x")
    start("recv", "shm:x", cwd=there).ends()
    sender.ends()
    assert (there / "empty").read_bytes() == b""


def test_a_file_that_is_there_is_kept_and_the_sender_is_told(start, odd_file, there):
    (there / "odd").write_text("precious")
    sender = start("send", str(odd_file), "shm:x")
    assert "odd exists; --force replaces it" in start("recv", "shm:x", cwd=there).ends(2)[1]
    assert "the receiver broke off: odd exists" in sender.ends(1)[1]
    assert (there / "odd").read_text() == "precious"
    again = start("send", str(odd_file), "shm:y")
    start("recv", "shm:y", "--force", cwd=there).ends()
    again.ends()
    assert (there / "odd").read_bytes() == odd_file.read_bytes()


def test_a_killed_sender_leaves_nothing_in_place_of_the_file(start, there):
    sender = start("send", "/dev/zero", "shm:x", "--name", "endless")
    receiver = start("recv", "shm:x", cwd=there)
    while not any(path.stat().st_size for path in there.iterdir()):
        assert receiver._process.poll() is None
    sender.signal(signal.SIGKILL)
    assert "BrokenChannelError" in receiver.ends(1)[1]
    assert os.listdir(there) == []


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_who_is_interrupted_tells_the_other(start, there, who):
    sender = start("send", "/dev/zero", "shm:x", "--name", "endless")
    receiver = start("recv", "shm:x", cwd=there)
    while not any(path.stat().st_size for path in there.iterdir()):
        assert receiver._process.poll() is None
    first, other = (sender, receiver) if who == "sender" else (receiver, sender)
    first.signal(signal.SIGINT)
    assert f"the {who} was interrupted" in other.ends(1)[1]
    first.ends(130)
    assert os.listdir(there) == []


def test_both_sides_of_one_direction_say_so(start, odd_file):
    receiver = start("recv", "create:shm:x")
    assert "the same direction" in start("recv", "bind:shm:x").ends(2)[1]
    assert "the same direction" in receiver.ends(1)[1]
    with bulk.create("shm:y", direction=RX, trust=NONE) as other:
        sender = start("send", str(odd_file), "bind:shm:y")
        other.wait_bound(PATIENCE_S)
        assert "meta data is 0 bytes" in sender.ends(2)[1]


# -- what a stranger sends -----------------------------------------------------------------------------------------


OFFER = b'{"name": "good", "size": null}'


@pytest.mark.parametrize(
    ("letters", "status", "why"),
    [
        ([(parcel.OFFER, b'{"name": "../evil", "size": 1}')], 2, "not one for a file here: '../evil'"),
        ([(parcel.OFFER, b'{"name": "/etc/evil", "size": 1}')], 2, "not one for a file here"),
        ([(parcel.OFFER, b'{"name": ".profile", "size": 1}')], 2, "a hidden file"),
        ([(parcel.OFFER, b'{"name": "a\\u001b[31m", "size": 1}')], 2, "not one for a file here"),
        ([(parcel.OFFER, b'{"name": "", "size": 1}')], 1, "no name"),
        ([(parcel.OFFER, b'{"name": "a", "size": -1}')], 1, "a size that is none"),
        ([(parcel.OFFER, b"[" * 4000)], 1, "no JSON"),
        ([(parcel.OFFER, b" " * 8192)], 1, "4096 at most"),
        ([(parcel.OFFER, b"[]")], 1, "no JSON object"),
        ([(parcel.CONTENTS, b"data")], 1, "offer' was due"),
        ([(parcel.OFFER, OFFER), (parcel.OFFER, OFFER)], 1, "was due"),
        ([(parcel.OFFER, OFFER), (b"", b"data")], 1, "was due"),
        ([(parcel.OFFER, OFFER), (parcel.END, b"{}")], 1, "no size or no digest"),
        ([(parcel.OFFER, OFFER), (parcel.END, b'{"size": 1, "sha256": ""}')], 1, "0 bytes arrived, and 1 were sent"),
        (
            [(parcel.OFFER, OFFER), (parcel.CONTENTS, b"x"), (parcel.END, b'{"size": 1, "sha256": "00"}')],
            1,
            "what was sent 00",
        ),
    ],
)
def test_what_a_stranger_sends_is_judged(capsys, monkeypatch, there, spawn, letters, status, why):
    monkeypatch.chdir(there)

    def stranger(pipe, letters):
        import bulktransfer as bulk

        with (
            bulk.create("shm:stranger", direction=bulk.Direction.TX, trust=bulk.Trust.NONE, meta_size=64) as channel,
            bulk.Allocator(count=4, size=8192, trust=bulk.Trust.NONE) as frames,
        ):
            channel.wait_bound()
            channel.assign_pool(frames.pool)
            for word, data in letters:
                frame = frames.alloc()
                frame.put(data)
                channel.move(frame, word)
            try:
                while True:
                    channel.receive()
            except bulk.BrokenChannelError as error:
                pipe.send(error.reason)

    child = spawn(stranger, letters)
    assert main.main(["recv", "shm:stranger"]) == status
    assert why in capsys.readouterr().err
    assert "the receiver broke off: " in child.receive()
    child.join()
    assert os.listdir(there) == []


def test_a_sender_that_leaves_half_way_is_noticed(capsys, monkeypatch, there, spawn):
    monkeypatch.chdir(there)

    def leaves(pipe):
        import bulktransfer as bulk

        with (
            bulk.create("shm:x", direction=bulk.Direction.TX, trust=bulk.Trust.NONE, meta_size=64) as channel,
            bulk.Allocator(count=4, size=8192, trust=bulk.Trust.NONE) as frames,
        ):
            channel.wait_bound()
            channel.assign_pool(frames.pool)
            frame = frames.alloc()
            frame.put(b'{"name": "half", "size": 10}')
            channel.move(frame, b"bulk file 1 offer")
            channel.destroy()

    child = spawn(leaves)
    assert main.main(["recv", "shm:x"]) == 1
    assert "the channel ended before the file did" in capsys.readouterr().err
    child.join()
    assert os.listdir(there) == []


def test_a_file_that_changes_while_it_is_sent_is_noticed(start, there, tmp_path):
    path = tmp_path / "grows"
    path.write_bytes(bytes(10))
    with (
        open(path, "ab", buffering=0) as file,
        io.FileIO(path) as reading,
        bulk.create("shm:x", direction=TX, trust=NONE, meta_size=64) as channel,
        bulk.Allocator(count=4, size=8192, trust=NONE) as frames,
    ):
        receiver = start("recv", "shm:x", cwd=there)
        channel.wait_bound(PATIENCE_S)
        channel.assign_pool(frames.pool)
        sender = send.Sender(channel, frames, reading, "grows")
        file.write(b"more")
        with pytest.raises(OSError, match="had 10 bytes, and 14 when it was read"):
            sender.run(progress.Progress(io.StringIO()))
    receiver.ends(1)
    assert os.listdir(there) == []


# -- the place of a file -------------------------------------------------------------------------------------------


def test_a_file_that_appears_meanwhile_is_kept(there):
    place = there / "late"
    with target.Target(str(place), force=False) as writing:
        writing.write(memoryview(b"new"))
        place.write_text("precious")
        with pytest.raises(target.Unwanted, match="exists"):
            writing.commit()
    assert place.read_text() == "precious"
    assert os.listdir(there) == ["late"]


def test_a_device_is_written_to_as_it_is(there):
    with target.Target("/dev/null", force=False) as writing:
        writing.write(memoryview(b"anything"))
        writing.commit()
    assert os.path.exists("/dev/null")
    with pytest.raises(target.Unwanted, match="is a directory"):
        target.Target(str(there), force=True)


def test_a_received_file_has_the_usual_mode(there):
    before = os.umask(0o027)
    try:
        with target.Target(str(there / "a"), force=False) as writing:
            writing.commit()
    finally:
        os.umask(before)
    assert (there / "a").stat().st_mode & 0o777 == 0o640


# -- arguments, and the bar ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["send", "missing", "shm:x"], "No such file"),
        (["send", ".", "shm:x"], "directory"),
        (["send", "/dev/null", "nowhere:x"], "known are"),
        (["send", "/dev/null", "shm:x", "--buffer-size", "100"], "4096 at least"),
        (["send", "/dev/null", "shm:x", "--insecure"], "takes no network"),
        (["recv", "shm:nobody", "--timeout", "0.01"], "nobody"),
        (["recv", "shm:x", "--output", "-", "--json"], "not both"),
        (["recv", "shm:x", "--secret-file", "missing"], "No such file"),
        (["forward", "shm:x", "shm:y", "--insecure"], "neither end is one"),
    ],
)
def test_what_makes_no_sense_is_status_2(capsys, monkeypatch, there, arguments, why):
    monkeypatch.chdir(there)
    assert main.main(arguments) == 2
    assert why in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_plain_bar_says_how_much_and_how_fast(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    stream = Terminal()
    with progress.progress("send odd", None, stream=stream) as bar:
        now[0] = 2.0
        bar.advance(10_000_000)
    assert "send odd  10 MB, 5 MB/s" in stream.getvalue()
    assert "%" not in stream.getvalue()
    stream = Terminal()
    with progress.progress("send odd", 40_000_000, stream=stream) as bar:
        now[0] = 4.0
        bar.advance(10_000_000)
    assert " 25% send odd  10 MB, 5 MB/s" in stream.getvalue()
    with progress.progress("send odd", 40_000_000, stream=stream, quiet=True) as bar:
        drawn = len(stream.getvalue())
        bar.advance(10_000_000)
    assert len(stream.getvalue()) == drawn


def test_rich_draws_the_bar_where_it_is_installed(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.progress("send [odd]", 40_000_000, stream=stream) as bar:
        bar.advance(10_000_000)
    assert "send [odd]" in stream.getvalue()
    assert "10.0/40.0 MB" in stream.getvalue()


def test_nothing_is_drawn_where_nobody_looks():
    stream = io.StringIO()
    with progress.progress("send odd", 10, stream=stream) as bar:
        bar.advance(10)
    assert stream.getvalue() == ""


def test_the_words_travel():
    offer = parcel.Offer("a" * 255, None)
    assert parcel.offer(offer.encode()) == offer
    found = parcel.Sum(7, "d")
    assert parcel.total(found.encode()) == found
    assert max(len(word) for word in (parcel.OFFER, parcel.CONTENTS, parcel.END, parcel.TAKEN)) <= parcel.META_SIZE
    assert len(parcel.Offer("\udcff" * 255, 1 << 62).encode()) <= parcel.LETTER_BYTES
    assert json.loads(offer.encode())["size"] is None
