"""MEGA Mesh Recovery's backend: photographs to body meshes. Importing it loads no torch."""

__version__ = "0.1.0"
