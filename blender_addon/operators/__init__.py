"""One file per action."""

from __future__ import annotations

import bpy

from . import armature, backend, clip, find, hypotheses, random_people, recover, resample, setup, uncertainty

CLASSES = (
    recover.MEGA_OT_recover,
    recover.MEGA_OT_choose_picture,
    recover.MEGA_OT_cancel,
    *find.CLASSES,
    hypotheses.MEGA_OT_step,
    hypotheses.MEGA_OT_keep,
    hypotheses.MEGA_OT_keyframe,
    uncertainty.MEGA_OT_show_uncertainty,
    resample.MEGA_OT_resample,
    random_people.MEGA_OT_random,
    setup.MEGA_OT_set_up_backend,
    setup.MEGA_OT_remove_backend,
    setup.MEGA_OT_show_log,
    backend.MEGA_OT_test_backend,
    backend.MEGA_OT_stop_backend,
    backend.MEGA_OT_preferences,
    backend.MEGA_OT_allow_online,
    backend.MEGA_OT_dismiss,
    recover.MEGA_FH_pictures,
    *clip.CLASSES,
    *armature.CLASSES,
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
