"""Motion as binary glTF: a skinned body with an animation for each person, which Blender imports as an armature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mega_backend.export import split_at_seams, vertex_normals
from mega_backend.gltf import Gltf
from mega_backend.protocol import BodyTopology

from .animation import Animation, Skeleton

if TYPE_CHECKING:
    from mega_backend.body import Body

STILL = 1e-6
"""Turns that differ by less than this all along are no motion."""


def write_glb(
    people: Sequence[Animation],
    body: Body,
    topology: BodyTopology,
    focal_length: float,
    picture_size: tuple[int, int],
    stream: BinaryIO,
) -> None:
    """Everybody's motion and the picture's camera. Who is away is scaled to nothing: glTF cannot hide things."""
    builder = Gltf()
    builder.add_camera(focal_length, picture_size)
    builder.document["animations"] = [{"name": "motion", "channels": [], "samplers": []}]
    origin, triangles, uv = split_at_seams(body.faces.numpy(), topology)
    index = builder.accessor(triangles.ravel(), builder.INDEX_BUFFER)
    coordinates = None if uv is None else builder.accessor(uv, builder.VERTEX_BUFFER)
    skin = _influences(builder, body, origin)
    for person in people:
        skeleton = person.skeleton(body)
        normals = vertex_normals(skeleton.rest, body.faces.numpy())
        attributes = {
            "POSITION": builder.accessor(skeleton.rest[origin], builder.VERTEX_BUFFER, bounds=True),
            "NORMAL": builder.accessor(normals[origin], builder.VERTEX_BUFFER),
            **skin,
        }
        if coordinates is not None:
            attributes["TEXCOORD_0"] = coordinates
        primitive = {"attributes": attributes, "indices": index, "material": builder.skin_material()}
        meshes = builder.document.setdefault("meshes", [])
        meshes.append({"name": person.name, "primitives": [primitive]})
        _add_moving(builder, person, skeleton, body, len(meshes) - 1)
    stream.write(builder.binary({"picture_size": list(picture_size), "focal_length": float(focal_length)}))


def _influences(builder: Gltf, body: Body, origin: np.ndarray) -> dict[str, int]:
    """Which bones move each written vertex and how much: two sets of four."""
    weights = body.weights.numpy()
    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :8]
    share = np.take_along_axis(weights, strongest, axis=1)
    share = share / share.sum(1, keepdims=True)
    strongest = np.where(share > 0, strongest, 0)
    attributes = {}
    for number in range(2):
        part = slice(4 * number, 4 * number + 4)
        joints = builder.accessor(strongest[origin, part], builder.VERTEX_BUFFER, kind="<u2")
        attributes[f"JOINTS_{number}"] = joints
        attributes[f"WEIGHTS_{number}"] = builder.accessor(share[origin, part], builder.VERTEX_BUFFER)
    return attributes


def _add_moving(builder: Gltf, person: Animation, skeleton: Skeleton, body: Body, mesh: int) -> None:
    """The person's nodes (one above, the bones, the skinned mesh) and channels."""
    count = len(skeleton.heads)
    top = builder.node({"name": person.name, "children": []})
    joints = []
    for joint, name in enumerate(body.joint_names):
        first = {"rotation": skeleton.local[0, joint].tolist(), "translation": skeleton.offsets[joint].tolist()}
        if joint == 0:
            first["translation"] = skeleton.root[0].tolist()
        joints.append(builder.node({"name": name} | first, top=False))
    for joint, parent in enumerate(body.parents):
        above = builder.document["nodes"][top if parent < 0 else joints[parent]]
        above.setdefault("children", []).append(joints[joint])
    # Bones lie unturned at rest: binding only takes their heads' places away. Columns first, as glTF has it.
    inverse = np.tile(np.eye(4), (count, 1, 1))
    inverse[:, 3, :3] = -skeleton.heads
    skins = builder.document.setdefault("skins", [])
    binding = builder.accessor(inverse.reshape(count, 16))
    skins.append({"name": person.name, "inverseBindMatrices": binding, "joints": joints, "skeleton": joints[0]})
    builder.node({"name": f"{person.name}_body", "mesh": mesh, "skin": len(skins) - 1})

    motion = builder.document["animations"][0]
    times = builder.accessor(person.times, bounds=True)

    def channel(node: int, path: str, values: np.ndarray, interpolation: str = "LINEAR") -> None:
        sampler = {"input": times, "output": builder.accessor(values), "interpolation": interpolation}
        motion["samplers"].append(sampler)
        target = {"node": node, "path": path}
        motion["channels"].append({"sampler": len(motion["samplers"]) - 1, "target": target})

    channel(joints[0], "translation", skeleton.root)
    for joint in range(count):
        if np.ptp(skeleton.local[:, joint], axis=0).max() > STILL:
            channel(joints[joint], "rotation", skeleton.local[:, joint])
    if not person.present.all():
        channel(top, "scale", np.repeat(person.present[:, None].astype(np.float32), 3, axis=1), "STEP")
