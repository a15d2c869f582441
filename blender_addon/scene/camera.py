"""A camera that sees the meshes where the picture shows the people, with the picture behind them."""

from __future__ import annotations

from pathlib import Path

import bpy

from . import axes
from .exif import orientation

SENSOR_WIDTH = 36.0
"""Millimetres; only its ratio to the focal length matters."""


def add(
    name: str, focal_length: float, size: tuple[int, int], picture: Path | None, image: bpy.types.Image | None = None
) -> bpy.types.Object:
    """A camera at its parent's origin looking along +Y.

    Args:
        name: of the object.
        focal_length: in pixels of the picture; the principal point is the picture's centre.
        size: of the upright picture, (width, height) in pixels.
        picture: shown behind the scene, where there is one.
        image: the picture, where Blender has it already.
    """
    data = bpy.data.cameras.new(name)
    data.sensor_fit = "HORIZONTAL"
    data.sensor_width = SENSOR_WIDTH
    data.lens = focal_length * SENSOR_WIDTH / size[0]
    data.clip_start, data.clip_end = 0.05, 1000.0
    camera = bpy.data.objects.new(name, data)
    camera.rotation_euler = axes.CAMERA_ROTATION
    if picture is not None:
        set_background(data, picture, image)
    return camera


def set_background(data: bpy.types.Camera, picture: Path, image: bpy.types.Image | None = None) -> None:
    """Show a picture behind everything that the camera sees, filling its frame."""
    data.show_background_images = True
    background = data.background_images.new()
    background.image = image or bpy.data.images.load(str(picture), check_existing=True)
    background.alpha = 1.0
    background.display_depth = "BACK"
    background.frame_method = "FIT"
    # Blender shows the pixels as stored; the backend, as everybody, sees the picture as the photographer held it.
    background.rotation, background.use_flip_x, background.use_flip_y = orientation(picture)


def use(scene: bpy.types.Scene, camera: bpy.types.Object, size: tuple[int, int]) -> None:
    """Make it the scene's camera and give the render the picture's shape, so that its frame is the picture's."""
    scene.camera = camera
    render = scene.render
    render.resolution_x, render.resolution_y = size
    render.resolution_percentage = 100
    render.pixel_aspect_x = render.pixel_aspect_y = 1.0


def look_through(context: bpy.types.Context) -> None:
    """Let the 3D views of the window look through the scene's camera, its frame as large as they are."""
    for area in context.screen.areas if context.screen else ():
        if area.type == "VIEW_3D":
            area.spaces.active.region_3d.view_perspective = "CAMERA"
            region = next(region for region in area.regions if region.type == "WINDOW")
            with context.temp_override(area=area, region=region):
                bpy.ops.view3d.view_center_camera()
