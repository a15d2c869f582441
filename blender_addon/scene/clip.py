"""A whole clip: a collection named after it, camera and moving picture, an object for each person that was followed.

People stand under an empty, as those of a picture do (see `recovery`). Meshes move by absolute shape keys on one curve
(`eval_time`), or follow a point cache where a clip is long; armatures have an action. Frames are put in as they arrive;
curves and armatures follow at the end, in short steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bpy
import numpy as np

from ...mega_backend.protocol import BodyTopology
from ...mega_backend.protocol_motion import Build, ClipFacts, Moment, RigTopology
from . import actions, axes, camera, movies, pc2, person, place
from .armature import Motion, Rigger, visible_runs

MOST_KEYS = 250
"""Frames beyond which meshes follow a point cache: hundreds of shape keys make a file heavy and slow to work on."""
HIPS = 0.52
"""How high hips are, as a share of the body's height: where feet are, of people without a mesh."""


@dataclass(frozen=True)
class Options:
    """What is made of a clip.

    output: MESH, ARMATURE or BOTH. storage: AUTO, KEYS or CACHE. first: the scene frame of the first frame; None: where
    the movie clip has it. match_scene: the scene takes the clip's frame rate; otherwise the motion is timed to the
    scene's. set_range: the scene plays just the clip. cache: folder for point caches. label: before their names.
    """

    output: str = "MESH"
    storage: str = "AUTO"
    first: float = 1.0
    match_scene: bool = True
    set_range: bool = True
    cache: Path = Path()
    label: str = ""


@dataclass
class _Person:
    """What is known of a track. Names, not references: undo may come in between."""

    number: int
    build: Build | None = None
    mesh: str = ""
    stands: bool = False
    cache: pc2.Writer | None = None
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    frames: list[float] = field(default_factory=list)
    keyed: list[float] = field(default_factory=list)
    rotations: list[np.ndarray] = field(default_factory=list)
    root: list[np.ndarray] = field(default_factory=list)


class ClipImporter:
    """Takes facts, bodies and frames as they arrive, then `finish`."""

    def __init__(
        self, scene: bpy.types.Scene, source: movies.Source, topology: BodyTopology, rig: RigTopology | None,
        facts: ClipFacts, step: int, options: Options, clip: bpy.types.MovieClip | None = None,
    ):  # fmt: skip
        self.scene, self.source, self.topology, self.rig = scene.name, source, topology, rig
        self.facts, self.step, self.options = facts, step, options
        self.clip = clip.name if clip else ""
        self.objects: list[str] = []
        """Names of what was made for people."""
        self.frames = 0
        self._people: dict[int, _Person] = {}
        self._collection = self._root = self._camera = ""
        self._first: tuple[int, float] | None = None
        self._last = options.first
        self._cached = options.storage == "CACHE" or (options.storage == "AUTO" and not 0 < facts.count <= MOST_KEYS)
        render = scene.render
        self._scene_rate = facts.rate if options.match_scene else render.fps / render.fps_base

    @property
    def people(self) -> int:
        """How many people there are so far."""
        return sum(bool(each.frames) for each in self._people.values())

    def build(self, build: Build) -> None:
        """A person's own body, or a better one."""
        self._people.setdefault(build.track, _Person(len(self._people) + 1)).build = build

    def add(self, moment: Moment) -> None:
        """The people of a frame. Raises OSError where a point cache cannot be written."""
        if self._first is None:
            self._first = (moment.index, moment.time)
        self.frames += 1
        frame = self._last = self._scene_frame(moment.index, moment.time)
        for number, track in enumerate(moment.track.tolist()):
            known = self._people.setdefault(track, _Person(len(self._people) + 1))
            if self._collection not in bpy.data.collections or self._root not in bpy.data.objects:
                self._begin()
            if not known.stands:
                self._stand(known, moment, number)
            known.frames.append(frame)
            known.rotations.append(moment.rotations[number])
            known.root.append(moment.root[number])
            if self.options.output != "ARMATURE":
                self._add_mesh(known, frame, axes.to_blender(moment.vertices[number]))

    def finish(self, context: bpy.types.Context) -> Iterator[None]:
        """What remains, in steps that are short each; nothing where all of it was undone or deleted meanwhile."""
        if self._collection not in bpy.data.collections or self._root not in bpy.data.objects:
            return
        for known in self._people.values():
            if known.mesh in bpy.data.objects:
                self._finish_mesh(known)
                yield
            if self.rig is not None and known.build is not None and known.frames:
                yield from self._armature(context, known)
        if self._camera in bpy.data.objects:
            self._set_timeline()
        yield

    # ------------------------------------------------------------------------------------------------------------------

    def _scene_frame(self, index: int, time: float) -> float:
        first_index, first_time = self._first
        if self.options.match_scene:
            return self.options.first + (index - first_index)
        return round(self.options.first + (time - first_time) * self._scene_rate, 3)

    @property
    def _spacing(self) -> float:
        """Scene frames from one recovered frame to the next."""
        return self.step if self.options.match_scene else self.step / self.facts.rate * self._scene_rate

    def _begin(self) -> None:
        """Collection, root and camera, once there is somebody to look at, and again if they were undone or deleted."""
        scene = bpy.data.scenes[self.scene]
        for known in self._people.values():
            known.mesh, known.keyed, known.stands, known.cache = "", [], False, None
        self.objects = []
        collection = bpy.data.collections.new(self.source.name)
        scene.collection.children.link(collection)
        root = bpy.data.objects.new(self.source.name, None)
        root.empty_display_size = 0.25
        collection.objects.link(root)
        view = camera.add(f"{self.source.name} Camera", self.facts.focal_length, self.facts.size, None)
        view.parent = root
        collection.objects.link(view)
        camera.use(scene, view, self.facts.size)
        if self.options.match_scene:
            scene.render.fps = max(1, round(self.facts.rate))
            scene.render.fps_base = scene.render.fps / self.facts.rate
        self._collection, self._root, self._camera = collection.name, root.name, view.name

    def _stand(self, known: _Person, moment: Moment, number: int) -> None:
        """Put the root where the new person's feet are on the floor; the first one over the world's x axis."""
        root = bpy.data.objects[self._root]
        if moment.vertices.shape[1]:
            points = axes.to_blender(moment.vertices[number])
        else:
            height = 0.0 if known.build is None else float(np.ptp(known.build.vertices[:, 1]))
            points = axes.to_blender(moment.root[number])[None] + [[0.0, 0.0, 0.0], [0.0, 0.0, -HIPS * height]]
        middle, floor = points.mean(0), -float(points[:, 2].min())
        if not any(each.stands for each in self._people.values()):
            depth = float(middle[1])
            root[place.HALF_WIDTH] = depth * self.facts.size[0] / (2 * self.facts.focal_length)
            view = bpy.data.objects[self._camera]
            free = place.free(bpy.data.scenes[self.scene], {root, view})
            x = -float(middle[0]) if free is None else free + root[place.HALF_WIDTH]
            root.location = (x, -depth, floor)
            view.data.clip_end = max(view.data.clip_end, 4 * depth)
        root.location.z = max(root.location.z, floor)
        known.stands = True

    def _add_mesh(self, known: _Person, frame: float, points: np.ndarray) -> None:
        if known.mesh not in bpy.data.objects:
            self._new_mesh(known, points)
        mesh = bpy.data.objects[known.mesh]
        local = points - known.origin
        if self._cached:
            missing = 0
            if known.keyed:
                missing = round((frame - known.keyed[-1]) / self._spacing) - 1
            for _ in range(missing):
                known.cache.add(local)
            known.cache.add(local)
        else:
            keys = mesh.data.shape_keys
            if keys is not None:
                # A new absolute key takes its place from the time that is shown.
                keys.use_relative = False
                keys.eval_time = frame - known.keyed[0]
            key = mesh.shape_key_add(name=f"Frame {frame:g}", from_mix=False)
            key.points.foreach_set("co", local.astype(np.float32).ravel())
        known.keyed.append(frame)

    def _new_mesh(self, known: _Person, points: np.ndarray) -> None:
        known.origin, known.keyed = points.mean(0), []
        name = f"{self.source.name} Person {known.number}"
        made = person.add_plain(name, points - known.origin, self.topology)
        made.location = known.origin
        made.parent = bpy.data.objects[self._root]
        bpy.data.collections[self._collection].objects.link(made)
        self._note(made, known)
        known.mesh = made.name
        if self._cached:
            path = pc2.free_path(self.options.cache, f"{self.options.label}{name}".replace(" ", "_"))
            known.cache = pc2.Writer(path, self.topology.vertex_count)

    def _note(self, made: bpy.types.Object, known: _Person) -> None:
        made.mega_motion.is_tracked = True
        made.mega_motion.clip = str(self.source.movie or self.source.path)
        self.objects.append(made.name)

    def _finish_mesh(self, known: _Person) -> None:
        mesh = bpy.data.objects[known.mesh]
        first, last = known.keyed[0], known.keyed[-1]
        if self._cached:
            known.cache.close()
            pc2.use(mesh, str(known.cache.path), first, self._spacing)
        else:
            keys = mesh.data.shape_keys
            keys.use_relative = False
            frames = np.unique([first, last])
            actions.write(actions.channels(keys, f"{mesh.name} Time"), "eval_time", 0, frames, frames - first)
            keys.eval_time = 0.0
        runs = visible_runs(np.array(known.keyed))
        actions.hide_outside(mesh, actions.channels(mesh, f"{mesh.name} Visibility"), runs)

    def _armature(self, context: bpy.types.Context, known: _Person) -> Iterator[None]:
        name = f"{self.source.name} Person {known.number}"
        rigger = Rigger(name, self.rig, known.build, self.topology, self._collection, self._root)
        motion = Motion(np.array(known.frames), np.stack(known.rotations), np.stack(known.root))
        yield from rigger.steps(context, motion, animate=True)
        armature, skinned = bpy.data.objects[rigger.armature], bpy.data.objects[rigger.mesh]
        self._note(armature, known)
        if self.options.output == "BOTH":
            # The mesh with keys is there already; the one on the bones would lie in the same place.
            skinned.animation_data_clear()
            skinned.hide_viewport = skinned.hide_render = True
        else:
            self._note(skinned, known)

    def _set_timeline(self) -> None:
        scene = bpy.data.scenes[self.scene]
        first = self.options.first
        pace = 1.0 if self.options.match_scene else self.facts.rate / self._scene_rate
        clip = bpy.data.movieclips.get(self.clip) if self.clip else None
        data = bpy.data.objects[self._camera].data
        movies.show_behind(data, self.source, clip, first, self._first[0], self._last - first, pace)
        if self.options.set_range:
            scene.frame_start, scene.frame_end = round(first), max(round(first), round(np.ceil(self._last)))
        else:
            scene.frame_end = max(scene.frame_end, round(np.ceil(self._last)))
        scene.frame_set(round(first))
