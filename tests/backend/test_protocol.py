"""What travels arrives as it was sent, and nothing else is taken for it."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mega_backend import protocol
from mega_backend.protocol import (
    FindParameters,
    Message,
    ProtocolError,
    RandomParameters,
    RecoverParameters,
    ResampleParameters,
)

dtypes = st.sampled_from([np.dtype(text) for text in sorted(protocol.ARRAY_TYPES)])
arrays = dtypes.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0)))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=10), arrays, max_size=4), st.text(max_size=20))
def test_messages_arrive_as_sent(sent, text):
    data = protocol.encode(Message("kind", {"text": text}, sent)) * 2
    source = io.BytesIO(data)
    messages = list(protocol.read_all(source.read))
    assert len(messages) == 2
    for message in messages:
        assert (message.kind, message.fields) == ("kind", {"text": text})
        assert list(message.arrays) == list(sent)
        for name, array in sent.items():
            got = message.arrays[name]
            assert got.dtype == array.dtype and got.shape == array.shape
            np.testing.assert_array_equal(got, array)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_messages_are_refused_and_nothing_worse(data):
    whole = protocol.encode(Message("person", {"index": 1}, {"vertices": np.zeros((2, 5, 3), np.float32)}))
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= data.draw(st.integers(1, 255))
    for bytes_sent in (bytes(damaged), whole[:position]):
        try:
            protocol.decode(bytes_sent)
        except ProtocolError:
            continue


def test_pickles_and_false_sizes_are_refused_before_memory_is_taken():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ProtocolError, match="does not travel"):
        protocol.decode(_message([["bad", len(buffer.getvalue())]], buffer.getvalue()))

    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 20)})
    with pytest.raises(ProtocolError, match="size that it does not have"):
        protocol.decode(_message([["huge", len(huge.getvalue())]], huge.getvalue()))

    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.decode(_message([["many", 1 << 40]], b""), limit=1 << 20)
    with pytest.raises(ProtocolError, match="not travel"):
        protocol.encode(Message("x", {}, {"names": np.array(["a"])}))


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"kind": 1, "fields": {}, "arrays": []}', b"[" * 100_000,
                                    b'{"kind": "a", "fields": {}, "arrays": [["x", -1]]}',
                                    b'{"kind": "a", "fields": {}, "arrays": [["x", 0], ["x", 0]]}'])  # fmt: skip
def test_headers_that_are_none(header):
    with pytest.raises(ProtocolError):
        protocol.decode(b"MEGA" + struct.pack("<I", len(header)) + header)


def test_parameters_are_checked_with_a_sentence():
    given_fields = {"hypotheses": 3, "seed": 7, "temperature": 1}
    values = protocol.parameters(RecoverParameters, given_fields)
    assert values == RecoverParameters(hypotheses=3, seed=7, temperature=1.0)
    assert protocol.parameters(RecoverParameters, protocol.request(values).fields) == values
    for wrong, sentence in (
        ({"hypotheses": 0}, "'hypotheses' must be a whole number from 1"),
        ({"hypotheses": 1.5}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"seed": -1}, "from 0"),
        ({"temperature": "hot"}, "a number"),
        ({"temperature": float("nan")}, "a number"),
        ({"path": "/etc/passwd"}, "no parameter"),
    ):
        with pytest.raises(ProtocolError, match=sentence):
            protocol.parameters(RecoverParameters, wrong)


def test_parts_to_keep_are_known_ones():
    kept = protocol.parameters(ResampleParameters, {"keep": ["left_leg", "head"]}).keep
    assert kept == ("left_leg", "head")
    for wrong in (["tail"], "head", [1]):
        with pytest.raises(ProtocolError):
            protocol.parameters(ResampleParameters, {"keep": wrong})


def test_each_request_names_its_endpoint():
    for values in (RecoverParameters(), ResampleParameters(keep=("head",)), RandomParameters(), FindParameters(0.5)):
        message = protocol.request(values)
        assert message.kind in protocol.ENDPOINTS
        json.dumps(message.fields)
        assert protocol.parameters(type(values), message.fields) == values


def test_a_mismatch_says_which_side_to_update():
    assert protocol.compatible(2, 2) is None
    assert "update the backend" in protocol.compatible(2, 1)
    assert "update the add-on" in protocol.compatible(2, 3)
    assert "check the URL" in protocol.compatible(2, None)


def test_body_topology_travels_under_its_hash(fake_recoverer):
    body = protocol.topology_of(fake_recoverer.body)
    again = protocol.BodyTopology.of(protocol.decode(protocol.encode(body.message())))
    assert again.digest == body.digest
    np.testing.assert_array_equal(again.quads, body.quads)
    message = body.message()
    message.arrays["quads"] = message.arrays["quads"] + 10_000
    with pytest.raises(ProtocolError, match="hold together"):
        protocol.BodyTopology.of(message)


def _message(listing, data):
    header = json.dumps({"kind": "x", "fields": {}, "arrays": listing}).encode()
    return b"MEGA" + struct.pack("<I", len(header)) + header + data
