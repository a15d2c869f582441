"""Motion as USD: a skinned, animated body (UsdSkel) for each person. Needs the package `usd-core`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mega_backend.files import OutputError
from mega_backend.protocol import BodyTopology

from .animation import Animation

if TYPE_CHECKING:
    from mega_backend.body import Body

INFLUENCES = 8


def check_available() -> None:
    """Raise OutputError, saying what to install, where USD cannot be written."""
    try:
        import pxr.UsdSkel  # noqa: F401
    except ImportError:
        raise OutputError("USD files need one package more: pip install usd-core, or choose .glb") from None


def write_usd(
    people: Sequence[Animation], body: Body, topology: BodyTopology, rate: float, ending: str, stream: BinaryIO
) -> None:
    """Everybody's motion. rate: frames a second. ending: .usd, .usda (text) or .usdc."""
    from pxr import Usd, UsdGeom

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"motion{ending}"
        stage = Usd.Stage.CreateNew(str(path))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetTimeCodesPerSecond(rate)
        stage.SetFramesPerSecond(rate)
        stage.SetStartTimeCode(min((rate * person.times[0] for person in people), default=0.0))
        stage.SetEndTimeCode(max((rate * person.times[-1] for person in people), default=0.0))
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/clip").GetPrim())
        for person in people:
            _add(stage, person, body, topology, rate)
        stage.GetRootLayer().Save()
        stream.write(path.read_bytes())


def _add(stage, person: Animation, body: Body, topology: BodyTopology, rate: float) -> None:
    from pxr import Gf, Sdf, UsdGeom, UsdSkel, Vt

    skeleton = person.skeleton(body)
    root = UsdSkel.Root.Define(stage, f"/clip/{person.name}")
    paths: list[str] = []
    for name, parent in zip(body.joint_names, body.parents, strict=True):
        own = name.replace(".", "_").replace("-", "_")
        paths.append(own if parent < 0 else f"{paths[parent]}/{own}")

    rig = UsdSkel.Skeleton.Define(stage, f"{root.GetPath()}/rig")
    rig.CreateJointsAttr(paths)
    places = [Gf.Matrix4d().SetTranslate(Gf.Vec3d(*head)) for head in skeleton.heads.tolist()]
    rig.CreateBindTransformsAttr(Vt.Matrix4dArray(places))
    steps = [Gf.Matrix4d().SetTranslate(Gf.Vec3d(*step)) for step in skeleton.offsets.tolist()]
    rig.CreateRestTransformsAttr(Vt.Matrix4dArray(steps))

    motion = UsdSkel.Animation.Define(stage, f"{rig.GetPath()}/motion")
    motion.CreateJointsAttr(paths)
    motion.CreateScalesAttr([(1, 1, 1)] * len(paths))
    translations, rotations = motion.CreateTranslationsAttr(), motion.CreateRotationsAttr()
    offsets = skeleton.offsets.astype(np.float32)
    for number, time in enumerate(rate * person.times):
        moved = offsets.copy()
        moved[0] = skeleton.root[number]
        translations.Set(Vt.Vec3fArray.FromNumpy(moved), float(time))
        turns = [Gf.Quatf(float(w), float(x), float(y), float(z)) for x, y, z, w in skeleton.local[number]]
        rotations.Set(Vt.QuatfArray(turns), float(time))
    UsdSkel.BindingAPI.Apply(rig.GetPrim()).CreateAnimationSourceRel().SetTargets([motion.GetPath()])

    mesh = UsdGeom.Mesh.Define(stage, f"{root.GetPath()}/body")
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(skeleton.rest.astype(np.float32)))
    mesh.CreateFaceVertexCountsAttr([topology.quads.shape[1]] * len(topology.quads))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(topology.quads.ravel().astype(np.int32)))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    if len(topology.uv):
        values = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
        )
        corners = topology.uv[topology.face_uv.ravel()].astype(np.float32)
        values.Set(Vt.Vec2fArray.FromNumpy(corners))
    binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
    weights = body.weights.numpy()
    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
    share = np.take_along_axis(weights, strongest, axis=1)
    share = (share / share.sum(1, keepdims=True)).astype(np.float32)
    binding.CreateJointIndicesPrimvar(False, INFLUENCES).Set(Vt.IntArray.FromNumpy(strongest.ravel().astype(np.int32)))
    binding.CreateJointWeightsPrimvar(False, INFLUENCES).Set(Vt.FloatArray.FromNumpy(share.ravel()))
    binding.CreateSkeletonRel().SetTargets([rig.GetPath()])
    binding.CreateGeomBindTransformAttr(Gf.Matrix4d(1.0))
    if not person.present.all():
        shown = mesh.CreateVisibilityAttr()
        for number, time in enumerate(rate * person.times):
            if number == 0 or person.present[number] != person.present[number - 1]:
                shown.Set(UsdGeom.Tokens.inherited if person.present[number] else UsdGeom.Tokens.invisible, float(time))
