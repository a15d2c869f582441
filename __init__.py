"""The entry of the Blender extension; what it does lies in blender_addon."""

from .blender_addon import register, unregister  # noqa: F401
