"""Results → Blender data: objects, shape keys, keyframes, camera, background. All bpy data code, and Blender's axes."""
