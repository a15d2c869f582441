"""Photograph-like pictures of posed bodies, rendered with Cycles through the `bpy` package.

Bodies get skin, hair and clothes-like colours and offsets; a floor, a wall or sky, lights and occluders make the
scene. What is rendered is known exactly: `Scene.project` gives the pixels of any point of it.

Coordinates: camera space of the project, metres, x right, y down, z forward; the camera sits at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Colour = tuple[float, float, float]

SKIN: tuple[Colour, ...] = ((0.74, 0.50, 0.39), (0.56, 0.35, 0.25), (0.36, 0.20, 0.13), (0.17, 0.09, 0.06))
HAIR: tuple[Colour, ...] = ((0.02, 0.015, 0.01), (0.12, 0.06, 0.03), (0.40, 0.26, 0.10), (0.45, 0.45, 0.45))


@dataclass(frozen=True)
class Outfit:
    """Colours of one person (linear RGB), lengths of sleeves and trouser legs in [0, 1], looseness in metres."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    sleeve: float = 0.5
    leg: float = 1.0
    looseness: float = 0.012

    @classmethod
    def random(cls, random: np.random.Generator) -> Outfit:
        def cloth() -> Colour:
            return tuple(random.uniform(0.02, 0.7, 3))

        return cls(
            skin=SKIN[random.integers(len(SKIN))],
            hair=HAIR[random.integers(len(HAIR))],
            shirt=cloth(),
            trousers=cloth(),
            shoes=tuple(random.uniform(0.01, 0.3, 3)),
            sleeve=float(random.uniform(0.2, 1)),
            leg=float(random.uniform(0.3, 1)),
            looseness=float(random.uniform(0.004, 0.02)),
        )


@dataclass(frozen=True)
class Scene:
    """What is rendered. `vertices` (V,3) of each person are in camera space; `up` is the world's up
    direction there, `sun` points to the sun."""

    vertices: list[np.ndarray]
    outfits: list[Outfit]
    size: tuple[int, int] = (960, 720)
    focal_length: float = 960.0
    up: Colour = (0.0, -1.0, 0.0)
    floor: float | None = None
    floor_colour: Colour = (0.35, 0.33, 0.30)
    sky: Colour = (0.55, 0.70, 0.95)
    sun: Colour = (-0.4, -0.8, -0.6)
    sun_strength: float = 3.0
    occluders: list[tuple[Colour, Colour, Colour]] = field(default_factory=list)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (…,2) of points (…,3) in camera space."""
        centre = np.array(self.size) / 2
        return self.focal_length * points[..., :2] / points[..., 2:] + centre


def dress(
    rest: np.ndarray, posed: np.ndarray, quads: np.ndarray, part: np.ndarray, part_names: list[str], outfit: Outfit
) -> tuple[np.ndarray, np.ndarray]:
    """Clothed vertices (V,3) and linear colours (V,3) of one person.

    Args:
        rest: the body's rest vertices (V,3), Y up, from which heights on limbs are measured; posed: as it stands.
    """
    colours = np.tile(np.array(outfit.skin), (len(rest), 1))
    clothed = np.zeros(len(rest), bool)

    def where(*names: str) -> np.ndarray:
        return np.isin(part, [part_names.index(n) for n in names])

    def paint(mask: np.ndarray, colour: Colour) -> None:
        colours[mask] = colour
        clothed[mask] = True

    paint(where("torso"), outfit.shirt)
    for side in ("left", "right"):
        arm = where(f"{side}_arm")
        reach = np.abs(rest[:, 0])
        low, high = reach[arm].min(), reach[arm].max()
        paint(arm & (reach < low + outfit.sleeve * (high - low)), outfit.shirt)
        leg = where(f"{side}_leg")
        low, high = rest[leg, 1].min(), rest[leg, 1].max()
        paint(leg & (rest[:, 1] > high - outfit.leg * (high - low)), outfit.trousers)
        paint(where(f"{side}_foot"), outfit.shoes)
    torso = where("torso")
    low, high = rest[torso, 1].min(), rest[torso, 1].max()
    paint(torso & (rest[:, 1] < low + 0.22 * (high - low)), outfit.trousers)
    head = where("head")
    low, high = rest[head, 1].min(), rest[head, 1].max()
    back = rest[head, 2].mean()
    paint(head & (rest[:, 1] > low + 0.55 * (high - low)) & (rest[:, 2] < back + 0.01), outfit.hair)
    paint(head & (rest[:, 1] > low + 0.86 * (high - low)), outfit.hair)
    offset = outfit.looseness * clothed[:, None] * _normals(posed, quads)
    return posed + offset, colours


def render(
    scene: Scene, body: tuple[np.ndarray, np.ndarray, np.ndarray, list[str]], path: Path, samples: int = 48
) -> None:
    """Render the scene to a picture file (the suffix decides: .png or .jpg).

    Args:
        body: rest vertices (V,3), quads (Q,4), part of each vertex (V,), names of the parts.
        samples: light paths per pixel, denoised.
    """
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (*scene.sky, 1)
    settings = bpy.context.scene
    settings.world = world
    rest, quads, part, names = body
    for vertices, outfit in zip(scene.vertices, scene.outfits, strict=True):
        dressed, colours = dress(rest, vertices, quads, part, names, outfit)
        _add_mesh("person", dressed, quads, colours)
    if scene.floor is not None:
        _add_mesh("floor", *_plane(np.array(scene.up), scene.floor), np.tile(np.array(scene.floor_colour), (4, 1)))
    for centre, half_size, colour in scene.occluders:
        corners = np.array(centre) + np.array(half_size) * np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
        _add_mesh("occluder", corners, _BOX, np.tile(np.array(colour), (8, 1)))
    _add_camera_and_sun(scene)

    settings.render.engine = "CYCLES"
    settings.cycles.samples = samples
    settings.cycles.use_denoising = True
    settings.cycles.seed = 0
    settings.render.resolution_x, settings.render.resolution_y = scene.size
    settings.render.image_settings.file_format = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    settings.render.image_settings.quality = 92
    settings.view_settings.view_transform = "Standard"
    settings.render.filepath = str(path.resolve())
    bpy.ops.render.render(write_still=True)


_BOX = np.array([[0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5], [0, 1, 3, 2], [4, 5, 7, 6]])


def _blender(points: np.ndarray) -> np.ndarray:
    """Camera space (x right, y down, z forward) to Blender's world with the camera looking along +Y."""
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    return np.stack([x, z, -y], -1)


def _add_mesh(name: str, vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> None:
    import bpy

    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(_blender(vertices).tolist(), [], faces.tolist())
    mesh.shade_smooth()
    attribute = mesh.color_attributes.new("colour", "FLOAT_COLOR", "POINT")
    attribute.data.foreach_set("color", np.column_stack([colours, np.ones(len(colours))]).astype(np.float32).ravel())
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    nodes = material.node_tree.nodes
    source = nodes.new("ShaderNodeVertexColor")
    source.layer_name = "colour"
    surface = nodes["Principled BSDF"]
    surface.inputs["Roughness"].default_value = 0.75
    material.node_tree.links.new(source.outputs["Color"], surface.inputs["Base Color"])
    mesh.materials.append(material)
    bpy.context.scene.collection.objects.link(bpy.data.objects.new(name, mesh))


def _plane(up: np.ndarray, height: float, half: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """A large quad with normal `up`, through the point `height` · up."""
    side = np.cross(up, [0.3, 0.1, 1.0])
    side /= np.linalg.norm(side)
    ahead = np.cross(side, up)
    corners = [height * up + half * (a * side + b * ahead) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return np.array(corners), np.array([[0, 1, 2, 3]])


def _add_camera_and_sun(scene: Scene) -> None:
    import bpy
    from mathutils import Vector

    data = bpy.data.cameras.new("camera")
    data.sensor_fit = "HORIZONTAL"
    data.lens = scene.focal_length / scene.size[0] * data.sensor_width
    camera = bpy.data.objects.new("camera", data)
    camera.rotation_euler = (np.pi / 2, 0, 0)
    sun = bpy.data.lights.new("sun", "SUN")
    sun.energy = scene.sun_strength
    sun.angle = 0.05
    light = bpy.data.objects.new("sun", sun)
    light.rotation_euler = Vector(_blender(scene.sun)).to_track_quat("Z", "Y").to_euler()
    for thing in (camera, light):
        bpy.context.scene.collection.objects.link(thing)
    bpy.context.scene.camera = camera


def _normals(vertices: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Area-weighted vertex normals (V,3)."""
    a, b, c, d = (vertices[quads[:, k]] for k in range(4))
    face = np.cross(c - a, d - b)
    normals = np.zeros_like(vertices)
    for k in range(4):
        np.add.at(normals, quads[:, k], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
