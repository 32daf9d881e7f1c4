"""Frames and payloads: what goes out comes back, and nothing hostile gets in."""

from __future__ import annotations

import itertools
import zlib
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import GuestError, InvalidSpecError
from plasmavmc.guest import messages
from plasmavmc.guest.api import GuestConfig, GuestExited, GuestFailed, GuestHello, GuestNetwork, GuestOutput
from plasmavmc.guest.framing import (
    FLUSH,
    HEADER,
    MAGIC,
    MAX_PAYLOAD,
    Frame,
    FrameDecoder,
    FrameType,
    encode,
    fields,
    put_field,
    sync,
)
from plasmavmc.types import ExecSpec, FileSpec, LogStream, TerminalSize

NONCE = b"0123456789abcdef"
FRAMES = st.lists(st.tuples(st.sampled_from(FrameType), st.integers(0, 0xFFFF), st.binary(max_size=200)), max_size=8)


def decoded(data: bytes, cuts: list[int]) -> list[Frame]:
    decoder = FrameDecoder(NONCE)
    heard: list[Frame] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        heard += decoder.feed(data[start:end])
    return heard


@given(FRAMES, st.binary(max_size=100), st.lists(st.integers(0, 5000), max_size=8))
def test_frames_come_back_however_they_are_cut_and_whatever_came_before(
    frames: list[tuple[FrameType, int, bytes]], stale: bytes, cuts: list[int]
) -> None:
    sent = b"".join(encode(kind, payload, stream=stream) for kind, stream, payload in frames)
    heard = decoded(stale + MAGIC + NONCE + sent, cuts)
    assert [(frame.type, frame.stream, frame.payload) for frame in heard] == frames


@given(st.binary(max_size=300))
def test_nothing_is_believed_before_our_nonce_comes_back(noise: bytes) -> None:
    decoder = FrameDecoder(NONCE)
    assert list(decoder.feed(noise + encode(FrameType.READY, b"1234"))) == []
    assert not decoder.synced


@given(st.binary(min_size=HEADER.size, max_size=300))
def test_noise_after_the_sync_is_refused_or_waited_for_but_never_kept_beyond_bounds(noise: bytes) -> None:
    decoder = FrameDecoder(NONCE)
    with suppress(GuestError):
        for frame in decoder.feed(MAGIC + NONCE + noise):
            assert len(frame.payload) <= MAX_PAYLOAD
    assert len(decoder._pending) <= len(noise)


def test_a_stale_flood_is_not_kept() -> None:
    decoder = FrameDecoder(NONCE)
    for _ in range(1000):
        assert list(decoder.feed(bytes(65536))) == []
    assert len(decoder._pending) < 64
    assert list(decoder.feed(MAGIC + NONCE)) == []
    assert decoder.synced


def test_a_length_beyond_bounds_is_refused_at_once() -> None:
    decoder = FrameDecoder(NONCE)
    with pytest.raises(GuestError, match="announced"):
        list(decoder.feed(MAGIC + NONCE + HEADER.pack(MAX_PAYLOAD + 1, 1, 0, 0)))


def test_a_wrong_checksum_is_refused() -> None:
    frame = bytearray(encode(FrameType.READY, b"1234"))
    frame[-1] ^= 1
    with pytest.raises(GuestError, match="checksum"):
        list(FrameDecoder(NONCE).feed(MAGIC + NONCE + frame))


def test_a_frame_is_laid_out_as_documented() -> None:
    expected = b"\x02\0\0\0" + b"\x50\0" + b"\x07\0"
    crc = zlib.crc32(expected + b"ab").to_bytes(4, "little")
    assert encode(FrameType.EXEC_STARTED, b"ab", stream=7) == expected + crc + b"ab"
    with pytest.raises(GuestError):
        encode(FrameType.STDIN, bytes(MAX_PAYLOAD + 1))


def test_a_sync_flushes_whatever_frame_was_half_read() -> None:
    assert len(FLUSH) == HEADER.size + MAX_PAYLOAD
    assert sync(NONCE, fresh=False) == FLUSH + MAGIC + NONCE
    assert sync(NONCE, fresh=True) == MAGIC + NONCE


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=50)), max_size=10))
def test_fields_come_back(sent: list[tuple[int, bytes]]) -> None:
    assert list(fields(b"".join(put_field(tag, value) for tag, value in sent))) == sent


@given(st.binary(max_size=200))
def test_hostile_payloads_give_an_event_or_a_named_error(payload: bytes) -> None:
    decoders = (
        messages.decode_hello,
        messages.decode_ready,
        messages.decode_failed,
        messages.decode_exited,
        messages.decode_output,
        messages.decode_exec_output,
    )
    for decode in decoders:
        with suppress(GuestError):
            decode(Frame(0, 0, payload))


def test_events_are_read_as_documented() -> None:
    assert messages.decode_hello(Frame(64, 0, b"\x01\0\x01\0" + b"\x05" + bytes(7))) == GuestHello(True, 5)
    assert messages.decode_exited(Frame(67, 0, b"\x89\0\0\0\x01")) == GuestExited(137, oom=True)
    assert messages.decode_output(Frame(68, 0, b"\x09" + bytes(7) + b"\x02hi")) == GuestOutput(
        LogStream.STDERR, 9, b"hi"
    )
    failed = put_field(messages.Tag.CODE, b"no-such-user") + put_field(messages.Tag.MESSAGE, b"who\n\x1b[2J?")
    assert messages.decode_failed(Frame(66, 0, failed)) == GuestFailed("no-such-user", "who??[2J?")


def test_another_version_of_the_protocol_is_told_with_the_remedy() -> None:
    with pytest.raises(GuestError, match="version 2") as refused:
        messages.decode_hello(Frame(64, 0, b"\x02\0\0\0" + bytes(8)))
    assert "guest build" in refused.value.resolution


def test_a_configuration_says_everything() -> None:
    config = GuestConfig(
        argv=("/app", ""),
        env={"A": "1=2"},
        user="web",
        workdir="/srv",
        hostname="hello",
        network=GuestNetwork(IPv4Address("10.0.0.2"), IPv4Address("10.0.0.1"), ("10.0.0.1", "9.9.9.9")),
        files=(FileSpec("/run/secret", b"hidden", 0o600),),
        entropy=b"random",
        unix_time_ns=1,
    )
    said = list(fields(messages.encode_config(config)))
    assert [value for tag, value in said if tag == messages.Tag.ARG] == [b"/app", b""]
    assert (messages.Tag.ENV, b"A=1=2") in said
    assert (messages.Tag.IPV4, b"\x0a\0\0\x02") in said
    assert (messages.Tag.GATEWAY, b"\x0a\0\0\x01") in said
    assert [value for tag, value in said if tag == messages.Tag.NAMESERVER] == [b"10.0.0.1", b"9.9.9.9"]
    assert (messages.Tag.FILE, b"\x80\x01\0\0\x0b\0/run/secrethidden") in said


@pytest.mark.parametrize(
    "config",
    [
        GuestConfig(argv=()),
        GuestConfig(argv=("",)),
        GuestConfig(argv=("a\0b",)),
        GuestConfig(argv=("a",), env={"A=B": "1"}),
        GuestConfig(argv=("a",), env={"": "1"}),
        GuestConfig(argv=("a",), env={"A": "\0"}),
        GuestConfig(argv=("a",), files=(FileSpec("relative", b""),)),
        GuestConfig(argv=("a",), files=(FileSpec("/dir/", b""),)),
        GuestConfig(argv=("a",), hostname="x\0"),
    ],
)
def test_what_cannot_be_said_is_refused_naming_the_field(config: GuestConfig) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        messages.encode_config(config)
    assert refused.value.field


def test_a_request_to_run_a_command_fits_one_frame() -> None:
    said = list(fields(messages.encode_exec(ExecSpec(("ls",), user="web", terminal=TerminalSize(24, 80)))))
    assert said == [
        (messages.Tag.ARG, b"ls"),
        (messages.Tag.USER, b"web"),
        (messages.Tag.TERMINAL, b"\x18\0\x50\0"),
    ]
    with pytest.raises(InvalidSpecError, match="64 KiB"):
        messages.encode_exec(ExecSpec(("ls", "x" * MAX_PAYLOAD)))


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("15", 15), ("SIGKILL", 9), ("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("RTMIN+3", 37)],
)
def test_signals_are_known_by_the_names_that_images_use(name: str, number: int) -> None:
    assert messages.signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "SIGWHAT", "-9", "SIGRTMIN+99", "RTMIN+", "٣", "SIG"])
def test_what_is_no_signal_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpecError, match="signal"):
        messages.signal_number(name)
