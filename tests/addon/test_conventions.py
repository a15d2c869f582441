"""What Blender's guidelines and impatient people ask of an interface: tooltips, menus, words that can be translated."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def ours(bpy):
    """All operator and property group classes of ours."""
    for base in (bpy.types.Operator, bpy.types.PropertyGroup, bpy.types.AddonPreferences):
        for cls in base.__subclasses__():
            if cls.__module__.startswith("mega_mesh_recovery."):
                yield cls


def test_everything_has_a_tooltip(blender):
    found = list(ours(blender))
    assert len(found) > 20
    wrong = []
    for cls in found:
        properties = cls.bl_rna.properties
        if issubclass(cls, blender.types.Operator):
            properties = getattr(blender.ops.mega, cls.bl_idname.split(".")[1]).get_rna_type().properties
            assert (cls.__doc__ or "").strip(), cls
            assert not cls.__doc__.strip().endswith("."), cls  # Blender adds it
        for name in cls.__annotations__:
            entry = properties[name]
            if not entry.is_hidden and (not entry.description or entry.description.endswith(".")):
                wrong.append(f"{cls.__name__}.{name}")
    assert not wrong


def test_what_can_be_done_is_in_menus_where_the_search_finds_it(blender):
    text = (ROOT / "blender_addon" / "menus.py").read_text()
    for operator in ("recover", "find_people", "choose_picture", "random", "step", "keep", "keyframe", "resample",
                     "show_uncertainty"):  # fmt: skip
        assert f"mega.{operator}" in text


def test_words_of_the_interface_are_whole_and_can_be_translated(blender):
    """Labels that are put together from values are translated first and filled in afterwards."""
    for name in ("panels", "panels_clip", "preferences", "menus"):
        for node in ast.walk(ast.parse((ROOT / "blender_addon" / f"{name}.py").read_text())):
            called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if called in ("label", "operator", "prop", "menu", "main_button"):
                for keyword in node.keywords:
                    assert not (keyword.arg == "text" and isinstance(keyword.value, ast.JoinedStr)), ast.unparse(node)


def test_a_translation_is_used(blender, extension):
    if "de_DE" not in blender.app.translations.locales:
        pytest.skip("this Blender has no languages")
    from mega_mesh_recovery.blender_addon import text

    words = {("*", "Recover {count} of {all} People"): "{count} von {all} Menschen herstellen"}
    blender.app.translations.register("mega_test", {"de_DE": words})
    view = blender.context.preferences.view
    before = view.language
    try:
        view.language, view.use_translate_interface = "de_DE", True
        said = text.say("Recover {count} of {all} People", count=2, all=3)
        assert said == "2 von 3 Menschen herstellen"
    finally:
        view.language = before
        blender.app.translations.unregister("mega_test")
    assert text.say("Recover {count} of {all} People", count=2, all=3) == "Recover 2 of 3 People"
