"""The found people's boxes over their picture: in a 3D view, which shows the picture for as long as one chooses, and in
every image editor that has the image open.

Points come in three kinds: pixels of the region, pixels of the upright picture (as the backend sees it), and for the
image editor relative coordinates of the image as it is stored, which may lie on its side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import blf
import bpy
import gpu
from gpu_extras.batch import batch_for_shader

from .scene import exif, found

DIM = (0.02, 0.02, 0.02, 0.85)
CHOSEN, LEFT_OUT, NEW = (1.0, 0.62, 0.15, 1.0), (0.75, 0.75, 0.75, 0.8), (0.4, 0.8, 1.0, 1.0)
MARGIN = 16
"""Pixels round the picture at a UI scale of 1."""

Point = tuple[float, float]


@dataclass
class Choosing:
    """What is shown while somebody chooses."""

    area: int = 0
    """Where somebody chooses, as a pointer; 0 where nobody does. A 3D view shows the picture meanwhile."""
    image: str = ""
    """The picture's name among Blender's images."""
    orientation: int = 1
    drag: tuple[Point, Point] | None = None
    """Two corners of a box that is being drawn, in pixels of the picture."""
    looking: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Drawn boxes in which somebody is looked for right now."""


state = Choosing()
_handles: list[tuple[type, object]] = []


def begin(area: bpy.types.Area, picture: Path, image: str) -> None:
    """Choose in a 3D view or an image editor. Raises RuntimeError where Blender cannot load the picture."""
    loaded = bpy.data.images.get(image) or bpy.data.images.load(str(picture), check_existing=True)
    state.image, state.orientation = loaded.name, exif.tag_of(picture)
    state.area, state.drag = area.as_pointer(), None


def end() -> None:
    """Show nothing any more."""
    state.area, state.drag = 0, None


def frame(area: bpy.types.Area, size: tuple[int, int]) -> tuple[float, float, float]:
    """Where a picture of this size lies in a 3D view: x and y of its lower left corner in the region, and its scale.

    It keeps clear of the header, the tools and the sidebar.
    """
    regions = {region.type: region for region in area.regions}
    width, height = regions["WINDOW"].width, regions["WINDOW"].height
    margin = MARGIN * bpy.context.preferences.system.ui_scale
    left = right = top = 0
    if bpy.context.preferences.system.use_region_overlap:
        left, right = (_shown(regions.get(name), "width") for name in ("TOOLS", "UI"))
        top = sum(_shown(regions.get(name), "height") for name in ("HEADER", "TOOL_HEADER"))
    room = max(width - left - right - 2 * margin, 32), max(height - top - 2 * margin, 32)
    scale = min(room[0] / size[0], room[1] / size[1])
    x = left + margin + (room[0] - scale * size[0]) / 2
    y = margin + (room[1] - scale * size[1]) / 2
    return x, y, scale


def _shown(region: bpy.types.Region | None, side: str) -> int:
    """A region's size; one that is closed has a size of 1."""
    size = getattr(region, side, 0)
    return size if size > 1 else 0


class Mapping:
    """Between the pixels of an editor's region and those of the picture."""

    def __init__(self, area: bpy.types.Area, size: tuple[int, int]):
        self.size = size
        self._view = None
        if area.type == "IMAGE_EDITOR":
            self._view = next(region for region in area.regions if region.type == "WINDOW").view2d
        else:
            self._frame = frame(area, size)

    def to_region(self, x: float, y: float) -> Point:
        """Where a pixel of the picture (from its top left corner) is drawn in the region."""
        width, height = self.size
        if self._view is not None:
            u, v = exif.stored(state.orientation, x / width, y / height)
            return self._view.view_to_region(u, 1 - v, clip=False)
        left, bottom, scale = self._frame
        return left + x * scale, bottom + (height - y) * scale

    def to_picture(self, x: float, y: float) -> Point:
        """Pixels of the picture; outside of it they are cut to its edge."""
        width, height = self.size
        if self._view is not None:
            u, v = self._view.region_to_view(x, y)
            u, v = exif.upright(state.orientation, u, 1 - v)
            x, y = u * width, v * height
        else:
            left, bottom, scale = self._frame
            x, y = (x - left) / scale, height - (y - bottom) / scale
        return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))


def _draw_view() -> None:
    context = bpy.context
    if not state.area or context.area.as_pointer() != state.area:
        return
    image = bpy.data.images.get(state.image)
    if image is None:
        return
    size = tuple(context.scene.mega.found_size)
    region = context.region
    _rectangle((0, 0), (region.width, region.height), DIM)
    mapping = Mapping(context.area, size)
    _picture(image, mapping.to_region(0, size[1]), mapping.to_region(size[0], 0))
    _boxes(context, mapping)


def _draw_image() -> None:
    context = bpy.context
    settings = context.scene.mega
    image = context.space_data.image
    if image is None or not settings.found_in:
        return
    if settings.found_in not in (f"image:{image.name}", bpy.path.abspath(image.filepath)):
        return
    if state.image != image.name:
        state.image, state.orientation = image.name, exif.tag_of(Path(bpy.path.abspath(image.filepath)))
    _boxes(context, Mapping(context.area, tuple(settings.found_size)))


def _boxes(context: bpy.types.Context, mapping: Mapping) -> None:
    scale = context.preferences.system.ui_scale
    settings = context.scene.mega
    for number, (person, box) in enumerate(zip(settings.found, found.shown(settings).tolist(), strict=True), 1):
        colour = CHOSEN if person.chosen else LEFT_OUT
        _box(mapping, box, colour, (2.5 if person.chosen else 1.2) * scale)
        x, y = mapping.to_region(box[0], box[1])
        _label(f"{number}" if person.chosen else f"{number}  left out", x, y, colour, scale)
    for box in state.looking:
        _box(mapping, box, NEW, 1.2 * scale)
        _label("looking\u2026", *mapping.to_region(box[0], box[1]), NEW, scale)
    if state.drag is not None:
        (x0, y0), (x1, y1) = state.drag
        _box(mapping, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), NEW, 2 * scale)


def _box(mapping: Mapping, box: tuple[float, ...], colour: tuple[float, ...], width: float) -> None:
    corners = [(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3]), (box[0], box[1])]
    points = [(*mapping.to_region(x, y), 0.0) for x, y in corners]
    shader = gpu.shader.from_builtin("POLYLINE_UNIFORM_COLOR")
    gpu.state.blend_set("ALPHA")
    shader.uniform_float("viewportSize", gpu.state.viewport_get()[2:])
    shader.uniform_float("lineWidth", width)
    shader.uniform_float("color", colour)
    batch_for_shader(shader, "LINE_STRIP", {"pos": points}).draw(shader)
    gpu.state.blend_set("NONE")


def _label(text: str, x: float, y: float, colour: tuple[float, ...], scale: float) -> None:
    """White letters on a tag of the box's colour, inside its upper left corner."""
    blf.size(0, 13 * scale)
    width, height = blf.dimensions(0, text)
    pad = 5 * scale
    _rectangle((x, y - height - 2 * pad), (x + width + 2 * pad, y), (*colour[:3], 0.9))
    blf.color(0, 0.05, 0.05, 0.05, 1)
    blf.position(0, x + pad, y - height - pad, 0)
    blf.draw(0, text)


def _rectangle(low: Point, high: Point, colour: tuple[float, ...]) -> None:
    shader = gpu.shader.from_builtin("UNIFORM_COLOR")
    gpu.state.blend_set("ALPHA")
    points = [(low[0], low[1]), (high[0], low[1]), (low[0], high[1]), (high[0], high[1])]
    shader.uniform_float("color", colour)
    batch_for_shader(shader, "TRI_STRIP", {"pos": points}).draw(shader)
    gpu.state.blend_set("NONE")


def _picture(image: bpy.types.Image, low: Point, high: Point) -> None:
    texture = gpu.texture.from_image(image)
    # Textures are in linear light; what is drawn over a 3D view is not.
    shader = gpu.shader.from_builtin("IMAGE_SCENE_LINEAR_TO_REC709_SRGB")
    shader.uniform_sampler("image", texture)
    points = [(low[0], low[1]), (high[0], low[1]), (low[0], high[1]), (high[0], high[1])]
    corners = [exif.stored(state.orientation, u, v) for u, v in ((0, 1), (1, 1), (0, 0), (1, 0))]
    coordinates = [(u, 1 - v) for u, v in corners]
    batch_for_shader(shader, "TRI_STRIP", {"pos": points, "texCoord": coordinates}).draw(shader)


def register() -> None:
    if not bpy.app.background:
        for space, draw in ((bpy.types.SpaceView3D, _draw_view), (bpy.types.SpaceImageEditor, _draw_image)):
            _handles.append((space, space.draw_handler_add(draw, (), "WINDOW", "POST_PIXEL")))


def unregister() -> None:
    end()
    while _handles:
        space, handle = _handles.pop()
        space.draw_handler_remove(handle, "WINDOW")
