"""The backend as seen from Blender: its state, its process, its environment. Nothing here touches bpy."""
