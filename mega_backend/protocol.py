"""What travels between a front end and the backend: the one definition, in NumPy and the standard library.

A *message* is `MEGA`, the length of its header (uint32, little endian), a JSON header and any number of `.npy`
arrays:

    {"kind": "person", "fields": {"index": 0}, "arrays": [["vertices", 823248], ["tokens", 668]]}

Nothing is ever pickled, and every size is checked before memory is taken for it. A request's body is one message (its
fields are the parameters, its arrays the picture or the tokens); an answer is a stream of them:

    queued*  progress*  scene  person*  (progress | person)*  done | error      (of /find: people, done)

Endpoints are in `ENDPOINTS`; for clips and rigs see `protocol_motion`. A front end compares `PROTOCOL` with the number
that `/health` reports when it connects.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

PROTOCOL: Final = 1
ENDPOINTS: Final = {"health": "/health", "body": "/body", "recover": "/recover", "resample": "/resample",
                    "random": "/random", "find": "/find", "video": "/video", "rig": "/rig",
                    "pose": "/pose"}  # fmt: skip
CONTENT_TYPE: Final = "application/x-mega-messages"

MAGIC: Final = b"MEGA"
HEADER_LIMIT: Final = 1 << 20
ARRAY_COUNT_LIMIT: Final = 64
MESSAGE_LIMIT: Final = 1 << 30
# A fixed list: object arrays would mean pickles, and nothing we send needs structured types or strings.
ARRAY_TYPES: Final = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<i4", "<u4", "<i8", "<f2", "<f4", "<f8"})

PARTS: Final = ("head", "torso", "left_arm", "right_arm", "left_hand", "right_hand", "left_leg", "right_leg",
                "left_foot", "right_foot")  # fmt: skip


class ProtocolError(ValueError):
    """Bytes or parameters that are not what this protocol says; the text is one sentence for the sender."""


@dataclass(frozen=True)
class Message:
    """One message: what it is, its JSON-able fields, its arrays by name."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """The bytes of one message."""
    parts = []
    for name, array in message.arrays.items():
        array = np.asarray(array, order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in ARRAY_TYPES:
            raise ProtocolError(f"Array {name!r} has type {array.dtype}, which does not travel.")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
        parts.append((name, buffer.getvalue()))
    listing = [[name, len(data)] for name, data in parts]
    header = json.dumps({"kind": message.kind, "fields": message.fields, "arrays": listing}, allow_nan=False).encode()
    if len(header) > HEADER_LIMIT:
        raise ProtocolError(f"The header of a {message.kind!r} message is too long ({len(header)} bytes).")
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *(data for _, data in parts)])


def read(source: Callable[[int], bytes], limit: int = MESSAGE_LIMIT) -> Message | None:
    """The next message of a stream, or None at its end.

    `source(n)` gives n bytes, fewer only at the end (`io.BytesIO.read`, `http.client.HTTPResponse.read`).
    Raises ProtocolError where the bytes are not a message, stop in its middle, or announce more than `limit` bytes.
    """
    start = source(8)
    if not start:
        return None
    if len(start) < 8 or start[:4] != MAGIC:
        raise ProtocolError("These bytes are not a MEGA message; is this the address of a MEGA backend?")
    (length,) = struct.unpack("<I", start[4:])
    if length > HEADER_LIMIT:
        raise ProtocolError(f"A header of {length} bytes is over the limit of {HEADER_LIMIT}.")
    kind, fields, listing = _header(_exactly(source, length))
    if sum(size for _, size in listing) > limit:
        raise ProtocolError(f"Arrays of {sum(size for _, size in listing)} bytes are over the limit of {limit}.")
    return Message(kind, fields, {name: _array(name, _exactly(source, size)) for name, size in listing})


def decode(data: bytes, limit: int = MESSAGE_LIMIT) -> Message:
    """The one message that `data` holds. Raises ProtocolError for anything else."""
    buffer = io.BytesIO(data)
    message = read(buffer.read, limit)
    if message is None or buffer.read(1):
        raise ProtocolError("Exactly one MEGA message was expected here.")
    return message


def take(buffer: bytearray, limit: int = MESSAGE_LIMIT) -> Message | None:
    """The first message of bytes that are still arriving, taken out of `buffer`; None while it is not whole.

    Raises ProtocolError as `read` does.
    """
    if len(buffer) < 8:
        return None
    length = 8 + struct.unpack_from("<I", buffer, 4)[0]
    if buffer[:4] == MAGIC and length <= 8 + HEADER_LIMIT:
        if len(buffer) < length:
            return None
        _, _, listing = _header(bytes(buffer[8:length]))
        size = sum(size for _, size in listing)
        length += size
        if size <= limit and len(buffer) < length:
            return None
    # Whatever is wrong with them, `read` says what.
    message = read(io.BytesIO(bytes(memoryview(buffer)[:length])).read, limit)
    del buffer[:length]
    return message


def _exactly(source: Callable[[int], bytes], size: int) -> bytes:
    data = source(size)
    if len(data) != size:
        raise ProtocolError("The connection ended in the middle of a message.")
    return data


def _header(data: bytes) -> tuple[str, dict[str, Any], list[tuple[str, int]]]:
    try:
        header = json.loads(data)
        kind, fields = header["kind"], header["fields"]
        listing = [(name, size) for name, size in header["arrays"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError("A message's header is not the JSON that this protocol describes.") from error
    names = {name for name, _ in listing if isinstance(name, str)}
    sizes_fit = all(type(size) is int and size >= 0 for _, size in listing)
    if not (isinstance(kind, str) and isinstance(fields, dict) and sizes_fit and len(names) == len(listing)):
        raise ProtocolError("A message's header is not the JSON that this protocol describes.")
    if len(listing) > ARRAY_COUNT_LIMIT:
        raise ProtocolError(f"{len(listing)} arrays in one message are over the limit of {ARRAY_COUNT_LIMIT}.")
    return kind, fields, listing


def _array(name: str, data: bytes) -> np.ndarray:
    """The array in one `.npy`, checked against its own size before memory is taken for it."""
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        if version != (1, 0):
            raise ProtocolError(f"Array {name!r} is a .npy of version {version}; only 1.0 travels.")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    except ProtocolError:
        raise
    # numpy hands the header to a literal parser, whose failures are of many kinds; all mean the same here.
    except Exception as error:
        raise ProtocolError(f"Array {name!r} is not a .npy array.") from error
    if dtype.str not in ARRAY_TYPES or fortran or any(size < 0 for size in shape):
        raise ProtocolError(f"Array {name!r} has a type or layout that does not travel.")
    offset = buffer.tell()
    if math.prod(shape) * dtype.itemsize != len(data) - offset:
        raise ProtocolError(f"Array {name!r} announces a size that it does not have.")
    return np.frombuffer(data, dtype, offset=offset).reshape(shape).copy()


# ----------------------------------------------------------------------------------------------------------------------
# Parameters


def bounded(default: Any, low: float, high: float) -> Any:
    """A parameter's default and its bounds."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Sampling:
    """What all three kinds of sampling share."""

    seed: int = bounded(0, 0, 2**31 - 1)
    steps: int = bounded(5, 1, 54)
    temperature: float = bounded(1.0, 0.0, 10.0)


@dataclass(frozen=True)
class RecoverParameters(Sampling):
    """`POST /recover`: arrays `picture` (bytes of an encoded picture, uint8) and optionally who is in it.

    `boxes` (P,4) float, in pixels: one person is looked for in each. With `landmarks` and `landmarks_3d` (P,33,3) too,
    as `/find` gave them, nobody is looked for.
    """

    hypotheses: int = bounded(5, 1, 1000)


@dataclass(frozen=True)
class FindParameters:
    """`POST /find`: who is in a picture, before anybody is recovered. Arrays as for `/recover`: `picture`, `boxes`.

    The answer's one message `people` has `FOUND` and `scores` (P,). `smallest` leaves out people smaller than this
    fraction of the largest.
    """

    smallest: float = bounded(0.0, 0.0, 1.0)


FOUND: Final = ("boxes", "landmarks", "landmarks_3d")
"""What is known of the people that were found in a picture: (P,4), (P,33,3), (P,33,3)."""

PERSON_STATE: Final = ("box", "landmarks", "landmarks_3d", "tokens", "log_probability", "rotation", "translation",
                       "vertices")  # fmt: skip
"""The arrays of a person from which it can be sampled again; the others follow from them."""


@dataclass(frozen=True)
class ResampleParameters(Sampling):
    """`POST /resample`: one hypothesis of a person (`PERSON_STATE`, N = 1); `keep` names the parts to leave alone.

    A model that looks at pictures itself also needs `picture`, as in `RecoverParameters`.
    """

    hypotheses: int = bounded(5, 1, 1000)
    keep: tuple[str, ...] = ()
    focal_length: float = bounded(1000.0, 1e-3, 1e9)
    picture_width: int = bounded(1, 1, 1 << 20)
    picture_height: int = bounded(1, 1, 1 << 20)


@dataclass(frozen=True)
class RandomParameters(Sampling):
    """`POST /random`: bodies out of nothing. Steps and temperature default to those for unconditional sampling."""

    count: int = bounded(1, 1, 1000)
    steps: int = bounded(20, 1, 54)
    temperature: float = bounded(1.3, 0.0, 10.0)


P = TypeVar("P", bound=Sampling | FindParameters)


def parameters(kind: type[P], fields: Mapping[str, Any]) -> P:
    """`fields` as parameters of the given kind. Raises ProtocolError with a sentence naming what is wrong."""
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in known:
            raise ProtocolError(f"{name!r} is no parameter here; there are: {', '.join(known)}.")
        values[name] = _parameter(known[name], value)
    return kind(**values)


def _parameter(entry: dataclasses.Field, value: Any) -> Any:
    if entry.name == "keep":
        if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
            raise ProtocolError("'keep' must be a list of names of body parts.")
        unknown = [part for part in value if part not in PARTS]
        if unknown:
            raise ProtocolError(f"{unknown[0][:40]!r} is no body part; there are: {', '.join(PARTS)}.")
        return tuple(value)
    if "choices" in entry.metadata:
        if value not in entry.metadata["choices"]:
            raise ProtocolError(f"{entry.name!r} must be one of {', '.join(entry.metadata['choices'])}.")
        return value
    if isinstance(entry.default, bool):
        if not isinstance(value, bool):
            raise ProtocolError(f"{entry.name!r} must be true or false.")
        return value
    low, high = entry.metadata["low"], entry.metadata["high"]
    whole = isinstance(entry.default, int)
    if isinstance(value, bool) or not isinstance(value, (int,) if whole else (int, float)) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ProtocolError(f"{entry.name!r} must be {kind} from {low} to {high}.")
    return value if whole else float(value)


def request(values: Sampling | FindParameters, **arrays: np.ndarray) -> Message:
    """The message that asks for something; its kind is the endpoint's name."""
    kinds = {RecoverParameters: "recover", ResampleParameters: "resample", RandomParameters: "random",
             FindParameters: "find"}  # fmt: skip
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(values).items()}
    return Message(kinds[type(values)], fields, arrays)


# ----------------------------------------------------------------------------------------------------------------------
# Results


def person_message(index: int, person: Any) -> Message:
    """One person of a result (`mega_backend.result.Person`): all its arrays."""
    arrays = {entry.name: getattr(person, entry.name) for entry in dataclasses.fields(person)}
    return Message("person", {"index": index}, {name: np.asarray(array) for name, array in arrays.items()})


def scene_message(recovery: Any) -> Message:
    """What holds for all people of a result (`mega_backend.result.Recovery`): picture size, focal length, meta data."""
    size = [int(side) for side in recovery.picture_size]
    fields = {"picture_size": size, "focal_length": float(recovery.focal_length), "people": len(recovery.people)}
    return Message("scene", {**fields, "meta": recovery.meta})


def people_message(picture_size: tuple[int, int], found: Sequence[Any]) -> Message:
    """Who was found in a picture (`mega_backend.people.Detection`): its size, their boxes, landmarks and scores."""
    shapes = {"box": (4,), "landmarks": (33, 3), "landmarks_3d": (33, 3), "score": ()}
    arrays = {
        name: np.array([getattr(person, name) for person in found], np.float32).reshape(-1, *shape)
        for name, shape in shapes.items()
    }
    arrays["boxes"], arrays["scores"] = arrays.pop("box"), arrays.pop("score")
    return Message("people", {"picture_size": [int(side) for side in picture_size]}, arrays)


def topology_of(body: Any) -> BodyTopology:
    """The topology of a body as `mega_backend.body.Body` has it; one without quads or UVs is sent as triangles."""
    quads = getattr(body, "quads", None)
    uv = getattr(body, "uv", None) if quads is not None else None
    return BodyTopology(
        quads=_on_host(body.faces if quads is None else quads).astype(np.int32),
        uv=np.zeros((0, 2), np.float32) if uv is None else _on_host(uv).astype(np.float32),
        face_uv=np.zeros((0, 4), np.int32) if uv is None else _on_host(body.face_uv).astype(np.int32),
        vertex_part=_on_host(body.vertex_part).astype(np.int32),
        part_names=tuple(body.part_names),
        name=str(getattr(body, "name", "anny")),
    )


def _on_host(values: Any) -> np.ndarray:
    """Values as an array; a tensor may lie on a GPU."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


# ----------------------------------------------------------------------------------------------------------------------
# The body


@dataclass(frozen=True)
class BodyTopology:
    """What a front end needs of a body: how its vertices join into a surface, and which part each belongs to."""

    quads: np.ndarray
    """(Q,4) int32 vertex indices; a triangle mesh has (Q,3)."""
    uv: np.ndarray
    """(U,2) float32; U is 0 where the body has none."""
    face_uv: np.ndarray
    """(Q,4) int32 indices into `uv`."""
    vertex_part: np.ndarray
    """(V,) int32 indices into `part_names`."""
    part_names: tuple[str, ...]
    name: str = "anny"

    @property
    def vertex_count(self) -> int:
        return len(self.vertex_part)

    def message(self) -> Message:
        arrays = {"quads": self.quads, "uv": self.uv, "face_uv": self.face_uv, "vertex_part": self.vertex_part}
        return Message("body", {"name": self.name, "part_names": list(self.part_names)}, arrays)

    @classmethod
    def of(cls, message: Message) -> BodyTopology:
        """The topology in a `body` message. Raises ProtocolError where it does not hold together."""
        try:
            arrays = {name: message.arrays[name] for name in ("quads", "uv", "face_uv", "vertex_part")}
            names = tuple(str(name) for name in message.fields["part_names"])
            body = cls(**arrays, part_names=names, name=str(message.fields["name"]))
            in_range = body.quads.max(initial=-1) < body.vertex_count and body.vertex_part.max(initial=-1) < len(names)
            if not in_range or (len(body.uv) and body.face_uv.shape != body.quads.shape):
                raise ValueError("indices out of range")
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("The backend's description of the body does not hold together.") from error
        return body

    @property
    def digest(self) -> str:
        """A hash of the content: the ETag under which a front end keeps it."""
        return hashlib.sha256(encode(self.message())).hexdigest()[:32]


# ----------------------------------------------------------------------------------------------------------------------


def compatible(ours: int, theirs: Any) -> str | None:
    """None where both sides speak the same protocol, else a sentence that says which one to update."""
    if theirs == ours:
        return None
    if not isinstance(theirs, int):
        return "This address answers, but not as a MEGA backend; check the URL."
    older = "backend" if theirs < ours else "add-on"
    return f"The backend speaks protocol {theirs}, this add-on {ours}: update the {older}."


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_sendable(token: str) -> bool:
    """Whether a header can carry a token: one line of ASCII letters, digits and signs."""
    return token.isascii() and token.isprintable()


def read_all(source: Callable[[int], bytes], limit: int = MESSAGE_LIMIT) -> Iterable[Message]:
    """Every message of a stream, as it arrives."""
    while (message := read(source, limit)) is not None:
        yield message
