"""`mega import`: every published file is recognised by its contents, checked, and gives the same numbers afterwards."""

import argparse
import json
import sys

import numpy as np
import published_fixture as fixture
import pytest
import torch

import mega_backend
from mega_backend import checkpoint, cli, importing, published, smpl
from mega_backend.checkpoint import CheckpointError
from mega_backend.tokenizer.parts import measure_token_parts


def run(*arguments):
    parser = argparse.ArgumentParser()
    importing.add_import_arguments(parser)
    return importing.run_import(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def files(tmp_path):
    """Paths of everything that a licence holder has, at toy size."""
    here = tmp_path / "files"
    arrays = fixture.smpl_arrays()
    fixture.write_connections(here / "connections")
    np.savez(here / "model.npz", **arrays)
    np.save(here / "J_regressor_h36m.npy", np.random.default_rng(1).random((17, fixture.VERTICES)))
    np.save(here / "tpose.npy", arrays["v_template"][None])
    return {
        "connections": here / "connections",
        "tokenizer": fixture.write_checkpoint(here / "vq", fixture.authors_tokenizer(fixture.small_tokenizer())),
        "mega": fixture.write_checkpoint(here / "mega", fixture.small_mega().state_dict(), prefix="module."),
        "vqhps": fixture.write_checkpoint(here / "vqhps", fixture.authors_vqhps(fixture.small_vqhps())),
        "smpl": here / "model.npz",
        "pickle": fixture.write_chumpy_pickle(here / "SMPL.pkl", arrays),
        "h36m": here / "J_regressor_h36m.npy",
        "tpose": here / "tpose.npy",
    }


# The reference numbers


def agree(value, expected):
    assert (value - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reference_numbers_through_the_command(shared, tmp_path, prefix):
    golden = shared / "golden" / "small"
    sys.path.insert(0, str(shared / "golden"))
    from checkpoint import state_dict

    shapes = json.loads((golden / "state_dict_shapes.json").read_text())
    expected = {name: torch.tensor(value) for name, value in np.load(golden / "expected.npz").items()}
    paths = {
        name: fixture.write_checkpoint(tmp_path / name, state_dict(shape), prefix) for name, shape in shapes.items()
    }
    for output, files in {
        "a": [paths["mesh_vqvae"], golden / "connections", paths["vqmae"]],
        "b": [golden / "connections", paths["cvqmae"], paths["mesh_vqvae"]],
        "c": [paths["vqhps"]],
    }.items():
        assert cli.main(["import", *map(str, files), "-o", str(tmp_path / output)]) == 0
    pretrained, conditioned, hps = (mega_backend.load(tmp_path / name) for name in "abc")
    with torch.no_grad():
        for tokenizer in (pretrained.tokenizer, conditioned.tokenizer):
            agree(tokenizer.latent(expected["mesh_vertices"]), expected["mesh_latent"])
            assert torch.equal(tokenizer.encode(expected["mesh_vertices"]), expected["mesh_tokens"])
            agree(tokenizer.decode(expected["mesh_tokens"]), expected["mesh_decoded"])
            agree(tokenizer.decode(expected["mesh_random_tokens"]), expected["mesh_random_decoded"])
        agree(pretrained.model.logits(expected["pre_tokens"], expected["pre_visible"]), expected["pre_logits"])
        features, tokens, visible = (expected[f"hmr_{name}"] for name in ("features", "tokens", "visible"))
        model = conditioned.model
        agree(model.logits(tokens, torch.zeros_like(visible), features), expected["hmr_masked_logits"])
        agree(model.logits(tokens, visible, features), expected["hmr_partial_logits"])
        for value, name in zip(model.pose(features), ("rotation_6d", "camera"), strict=True):
            agree(value, expected[f"hmr_{name}"])
        features, start = expected["vqhps_input"], expected["vqhps_initial_pose"]
        logits = hps.model.logits(features, start)
        agree(logits, expected["vqhps_logits"])
        assert torch.equal(logits.argmax(-1), expected["vqhps_tokens"])
        for value, name in zip(hps.model.pose(features, start), ("rotation_6d", "camera"), strict=True):
            agree(value, expected[f"vqhps_{name}"])


# Every kind of checkpoint


def same_model(imported, original):
    assert imported.config == original.config
    for name, value in original.state_dict().items():
        assert torch.equal(imported.state_dict()[name], value), name


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("backbone", [*fixture.BACKBONES, None])
def test_mega_with_every_backbone(tmp_path, backbone, prefix):
    model = fixture.small_mega(backbone)
    run(fixture.write_checkpoint(tmp_path / "file", model.state_dict(), prefix), "-o", tmp_path / "out")
    same_model(mega_backend.load(tmp_path / "out").model, model)


def test_mega_pretrained(tmp_path):
    model = fixture.small_mega(conditioned=False, backbone=None)
    run(fixture.write_checkpoint(tmp_path / "file", model.state_dict()), "-o", tmp_path / "out")
    same_model(mega_backend.load(tmp_path / "out").model, model)


@pytest.mark.parametrize("backbone", ["hrnet", "resnet", None])
def test_vqhps_with_every_backbone(tmp_path, backbone):
    model = fixture.small_vqhps(backbone)
    run(fixture.write_checkpoint(tmp_path / "file", fixture.authors_vqhps(model)), "-o", tmp_path / "out")
    imported = mega_backend.load(tmp_path / "out").model
    same = imported.config | {"feature_channels": None} == model.config | {"feature_channels": None}
    assert same
    features = torch.randn(2, model.feature_channels, 2, 2)
    torch.testing.assert_close(imported.logits(features), model.logits(features))


@pytest.mark.parametrize(
    "options",
    [{}, {"quantisers": 0}, {"quantisers": 3}, {"quantisers": 3, "shared_codebook": True}],
    ids=["one", "none", "three", "shared"],
)
def test_tokenizers_with_any_number_of_quantisers(tmp_path, options):
    model = fixture.small_tokenizer(**options)
    for quantiser in model.quantiser.quantisers:
        quantiser.codebook.normal_()
    path = fixture.write_checkpoint(tmp_path / "file", fixture.authors_tokenizer(model))
    run(path, fixture.write_connections(tmp_path / "connections"), "-o", tmp_path / "out")
    imported = mega_backend.load(tmp_path / "out").tokenizer
    vertices = torch.randn(2, fixture.VERTICES, 3)
    with torch.no_grad():
        assert torch.equal(imported.latent(vertices), model.latent(vertices))
        if model.quantiser.stages:
            tokens = model.encode(vertices)
            assert torch.equal(imported.encode(vertices), tokens)
            assert torch.equal(imported.decode(tokens), model.decode(tokens))
    assert imported.config["shared_codebook"] == model.config["shared_codebook"]


def test_heads_can_be_said(tmp_path):
    model = fixture.small_mega(heads=2)
    path = fixture.write_checkpoint(tmp_path / "file", model.state_dict())
    run(path, "-o", tmp_path / "out", "--heads", 2)
    assert mega_backend.load(tmp_path / "out").model.config["heads"] == 2


def test_layers_that_nothing_reads_are_left_out(tmp_path):
    model = fixture.small_mega("hrnet")
    unused = {"backbone.final_layer.weight": torch.zeros(24, 4, 1, 1), "backbone.final_layer.bias": torch.zeros(24)}
    run(fixture.write_checkpoint(tmp_path / "file", model.state_dict() | unused), "-o", tmp_path / "out")
    same_model(mega_backend.load(tmp_path / "out").model, model)


def published_shapes(kind, **options):
    """The state dictionary of a model at published size, without memory behind it."""
    with torch.device("meta"):
        return checkpoint.build("model", {"kind": kind, **options}).state_dict()


@pytest.mark.parametrize(
    ("backbone", "channels", "expected"),
    [
        ("hrnet", 720, {"width": 48, "stem": 64, "modules": [1, 4, 3], "blocks": 4}),
        ("resnet", 2048, {"width": 64, "blocks": [3, 4, 6, 3]}),
        ("vit", 1280, {"width": 1280, "depth": 32, "heads": 16, "picture": [256, 192], "patch": 16, "ratio": 4}),
    ],
)
def test_published_sizes_are_read_off_the_tensors(backbone, channels, expected):
    image = {"kind": "image", "channels": channels, "backbone": {"name": backbone}}
    state = published_shapes("mega", conditioning=image)
    config, kept = published.mega(state, "mega")
    assert config["conditioning"]["backbone"] == {"name": backbone, **expected}
    sizes = [config[name] for name in ("token_count", "code_count", "width", "encoder_depth", "decoder_depth", "heads")]
    assert sizes == [54, 512, 1024, 12, 4, 4]
    assert set(kept) == set(state)


@pytest.mark.parametrize("backbone", ["hrnet", "resnet"])
def test_published_size_of_vqhps(backbone):
    config, _ = published.vqhps(published_shapes("vqhps", backbone={"name": backbone}), "vqhps")
    names = ("token_count", "code_count", "width", "heads", "hidden", "encoder_layers", "decoder_layers", "head_layers")
    assert [config[name] for name in names] == [54, 512, 512, 8, 1024, 1, 1, 1]
    assert config["backbone"]["name"] == backbone


def test_published_tokenizer_with_the_published_matrices(shared, tmp_path):
    """All 6890 vertices: sizes from the tensors, and a mesh there and back."""
    from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE, layer_names, published_config

    folder = shared / "connections" / "dfaust2"
    matrices = {name: np.load(folder / f"{name}.npy") for name in layer_names(7)}
    model = MeshVQVAE.build(published_config(matrices), [matrices[name] for name in layer_names(7)])
    path = fixture.write_checkpoint(tmp_path / "mesh_vqvae_54", fixture.authors_tokenizer(model))
    run(path, folder, "-o", tmp_path / "out")
    imported = mega_backend.load(tmp_path / "out").tokenizer
    assert (imported.token_count, imported.code_count, imported.config["vertices"]) == (54, 512, 6890)
    channels = [layer["channels"] for layer in [*imported.config["encoder"], *imported.config["decoder"]]]
    assert channels == [32, 32, 64, 64, 128, 128, 9, 128, 128, 64, 64, 32, 32, 3]
    tokens = torch.randint(512, (1, 54))
    with torch.no_grad():
        torch.testing.assert_close(imported.decode(tokens), model.eval().decode(tokens))


# One command, many commands


def test_everything_in_one_command_in_any_order(tmp_path, files, capsys):
    order = ["h36m", "vqhps", "smpl", "connections", "tpose", "tokenizer"]
    run(*(files[name] for name in order), "-o", tmp_path / "out")
    text = capsys.readouterr().out
    assert "missing" not in text
    for name in order:
        assert f"recognised  {files[name].name}: " in text
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.body.vertex_count == fixture.VERTICES
    assert loaded.model.initial_pose is not None
    assert loaded.tokenizer.token_part.min() >= 0


def test_later_imports_add_to_a_folder(tmp_path, files):
    folder = tmp_path / "out"
    for names in (["tokenizer", "connections"], ["vqhps"], ["smpl"], ["h36m"]):
        run(*(files[name] for name in names), "-o", folder)
    apart = checkpoint.load(folder)
    run(*(files[name] for name in ("h36m", "smpl", "vqhps", "connections", "tokenizer")), "-o", tmp_path / "together")
    together = checkpoint.load(tmp_path / "together")
    assert importing.missing(apart.config) == []
    for name, value in together.state().items():
        assert torch.equal(apart.state()[name], value), name
    assert apart.config["model"] == together.config["model"]
    # A second model takes the place of the first, and of its provenance.
    run(files["mega"], "-o", folder)
    config = checkpoint.read_config(folder)
    assert config["model"]["kind"] == "mega"
    assert [entry["role"] for entry in config["provenance"]].count("vqhps") == 0


@pytest.mark.parametrize("precision", checkpoint.PRECISIONS)
def test_imported_folders_keep_their_bytes(tmp_path, files, precision):
    names = ("tokenizer", "connections", "mega", "smpl", "h36m")
    run(*(files[name] for name in names), "-o", tmp_path / "a", "--precision", precision)
    checkpoint.load(tmp_path / "a").save(tmp_path / "b")
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_missing_is_said_with_where_to_get_it(tmp_path, files, capsys):
    run(files["vqhps"], "-o", tmp_path / "out")
    text = capsys.readouterr().out
    for word in (
        "mesh_vqvae_54",
        "zenodo.org/records/14974141",
        "tpose.npy",
        "zenodo.org/records/12651812",
        "SMPL file",
    ):
        assert word in text
    recoverer = mega_backend.load(tmp_path / "out")
    with pytest.raises(CheckpointError, match="no body and no tokenizer"):
        recoverer.recover(np.zeros((8, 8, 3), np.uint8))
    assert cli.main(["info", "--model", str(tmp_path / "out")]) == 0
    info = capsys.readouterr().out
    assert "vqhps: VQ-HPS checkpoint" in info
    assert "SHA-256" in info
    assert "missing      the body: an SMPL file from" in info


# Refusals


def refuse(match, *arguments):
    with pytest.raises(CheckpointError, match=match) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_leftovers_are_refused_by_name(tmp_path, files):
    state = fixture.small_mega().state_dict() | {"decoder.surprise.weight": torch.zeros(1)}
    refuse(r"decoder\.surprise\.weight", fixture.write_checkpoint(tmp_path / "file", state), "-o", tmp_path / "out")
    state = fixture.authors_tokenizer(fixture.small_tokenizer()) | {"vq_vae.more": torch.zeros(1)}
    path = fixture.write_checkpoint(tmp_path / "file", state)
    refuse(r"vq_vae\.more", path, files["connections"], "-o", tmp_path / "out")
    state = fixture.authors_vqhps(fixture.small_vqhps()) | {"fc3.weight": torch.zeros(1)}
    refuse(r"fc3\.weight", fixture.write_checkpoint(tmp_path / "file", state), "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_tensors_and_wrong_shapes_are_named(tmp_path):
    state = fixture.small_mega().state_dict()
    del state["encoder.layer_norm.bias"]
    refuse(r"lacks encoder\.layer_norm\.bias", fixture.write_checkpoint(tmp_path / "a", state), "-o", tmp_path / "out")
    state = fixture.small_mega().state_dict()
    state["decoder.head.bias"] = torch.zeros(3)
    refuse(
        r"decoder\.head\.bias has shape \(3,\)", fixture.write_checkpoint(tmp_path / "b", state), "-o", tmp_path / "o"
    )


def test_connection_matrices_of_another_network_are_refused(tmp_path, files):
    other = tmp_path / "other"
    fixture.write_connections(other)
    matrix = np.load(other / "_pool1.npy")
    np.save(other / "_pool1.npy", np.vstack([matrix, matrix[:1]]))
    refuse("belong to another network", files["tokenizer"], other, "-o", tmp_path / "out")
    np.save(other / "_pool1.npy", np.where(matrix == fixture.VERTICES, fixture.VERTICES - 1, matrix))
    refuse("does not belong behind a layer of 60 points", files["tokenizer"], other, "-o", tmp_path / "out")
    (other / "_pool1.npy").unlink()
    refuse(r"lacks _pool1\.npy", files["tokenizer"], other, "-o", tmp_path / "out")
    refuse("needs its connection matrices", files["tokenizer"], "-o", tmp_path / "out")


def test_parts_that_do_not_belong_together_are_refused(tmp_path, files):
    other = tmp_path / "other.npz"
    np.savez(other, **fixture.smpl_arrays(vertices=70))
    refuse("70 vertices, the Mesh-VQ-VAE 60", files["tokenizer"], files["connections"], other, "-o", tmp_path / "out")
    run(files["smpl"], "-o", tmp_path / "out")
    before = checkpoint.read_config(tmp_path / "out")
    np.save(tmp_path / "h36m.npy", np.ones((17, 70)))
    refuse("for 70 vertices, this model has 60", tmp_path / "h36m.npy", "-o", tmp_path / "out")
    assert checkpoint.read_config(tmp_path / "out") == before
    refuse("both a model", files["mega"], files["vqhps"], "-o", tmp_path / "new")


def test_the_command_refuses_with_one_sentence(tmp_path, files, capsys):
    assert cli.main(["import", str(files["tokenizer"]), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mega: vq needs its connection matrices")
    assert error.count("\n") == 1


def test_what_is_nothing_is_refused(tmp_path, files):
    note = tmp_path / "note.txt"
    note.write_text("hello")
    refuse("not a file that `mega import` knows", note, "-o", tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse("without connection matrices", empty, "-o", tmp_path / "out")
    np.save(tmp_path / "odd.npy", np.zeros((5, 7)))
    refuse("neither a joint regressor", tmp_path / "odd.npy", "-o", tmp_path / "out")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "odd.pth")
    refuse("unknown model", tmp_path / "odd.pth", "-o", tmp_path / "out")
    refuse("give the name of a new folder", files["mega"], "-o", files["connections"])
    refuse("is a file", files["mega"], "-o", note)
    refuse("belongs to a body", files["h36m"], "-o", tmp_path / "out")
    refuse("give a VQ-HPS checkpoint", files["tpose"], files["smpl"], "-o", tmp_path / "out")


# SMPL


@pytest.mark.parametrize("name", ["smpl", "pickle"])
def test_smpl_files_give_the_body_that_smplx_poses(tmp_path, files, name):
    import smplx
    from smplx.utils import Struct
    from smplx.vertex_ids import vertex_ids

    run(files[name], files["h36m"], "-o", tmp_path / "out")
    body = checkpoint.load(tmp_path / "out").body
    arrays = fixture.smpl_arrays()
    # smplx also picks single vertices as joints, which this toy body has too few of.
    ids = {key: 0 for key in vertex_ids["smplh"]}
    reference = smplx.SMPL("", data_struct=Struct(**arrays), vertex_ids=ids, batch_size=2)
    pose, shape, root = torch.randn(2, 69) * 0.3, torch.randn(2, 10), torch.randn(2, 3)
    with torch.no_grad():
        expected = reference(betas=shape, body_pose=pose, global_orient=root).vertices
    torch.testing.assert_close(body.posed(pose, shape, root), expected, rtol=1e-4, atol=1e-5)
    assert body.faces.shape == (40, 3)
    vertices = body.posed(pose[:, :63], shape)
    assert body.joints(vertices, "body22").shape == (2, 22, 3)
    assert body.joints(vertices, "h36m17").shape == (2, 17, 3)


def test_world_rotations_pose_the_same_body(tmp_path, files):
    from mega_backend.rotations import matrix_from_axis_angle

    run(files["smpl"], "-o", tmp_path / "out")
    body = checkpoint.load(tmp_path / "out").body
    pose, shape = torch.randn(1, 69) * 0.3, torch.randn(1, 10)
    world = [torch.eye(3)[None]]
    for joint, local in enumerate(matrix_from_axis_angle(pose.view(1, 23, 3))[0], start=1):
        world.append(world[int(body.parents[joint])] @ local)
    torch.testing.assert_close(body.skin(torch.stack(world, 1), shape), body.posed(pose, shape), rtol=1e-4, atol=1e-5)


def test_smplh_files(tmp_path):
    np.savez(tmp_path / "model.npz", **fixture.smpl_arrays(joints=52))
    run(tmp_path / "model.npz", "-o", tmp_path / "out")
    body = checkpoint.load(tmp_path / "out").body
    assert (body.joint_count, body.shape_count) == (52, 10)
    assert body.posed(torch.zeros(1, 63), torch.zeros(1, 10)).shape == (1, fixture.VERTICES, 3)
    assert body.joints(body.template[None], "smpl24").shape == (1, 24, 3)


def test_parts_follow_the_skinning_weights():
    weights = np.eye(24)
    parts = [smpl.PARTS[part] for part in smpl.parts_of(weights)]
    expected = {0: "torso", 4: "left_leg", 8: "right_foot", 12: "head", 13: "torso", 16: "left_arm", 23: "right_hand"}
    assert {joint: parts[joint] for joint in expected} == expected
    hands = [smpl.PARTS[part] for part in smpl.parts_of(np.eye(52))]
    assert hands[22:37] == ["left_hand"] * 15
    assert hands[37:] == ["right_hand"] * 15


def test_smpl_files_that_do_not_fit_together_are_refused(tmp_path):
    for change, match in (
        ({"weights": np.zeros((60, 23))}, "weights has shape"),
        ({"f": np.full((4, 3), 99)}, "faces name vertices"),
        ({"kintree_table": np.zeros((2, 24))}, "another skeleton"),
    ):
        np.savez(tmp_path / "model.npz", **{**fixture.smpl_arrays(), **change})
        refuse(match, tmp_path / "model.npz", "-o", tmp_path / "out")


def test_the_initial_pose_is_the_template_s_joints(tmp_path, files):
    expected = np.load(files["h36m"]).astype(np.float32) @ fixture.smpl_arrays()["v_template"].astype(np.float32)
    run(files["vqhps"], files["tpose"], files["h36m"], "-o", tmp_path / "a")
    run(files["vqhps"], files["smpl"], files["h36m"], "-o", tmp_path / "b")
    np.save(tmp_path / "joints.npy", expected.ravel())
    run(files["vqhps"], tmp_path / "joints.npy", "-o", tmp_path / "c")
    for name in "abc":
        pose = checkpoint.load(tmp_path / name).model.initial_pose
        np.testing.assert_allclose(pose.numpy().reshape(17, 3), expected, rtol=1e-4, atol=1e-5)
    refuse("J_regressor_h36m", files["vqhps"], files["tpose"], "-o", tmp_path / "d")


def test_token_parts_follow_the_vertices_that_a_token_moves():
    """A decoder in which every token moves its own vertices and a little of everything."""

    class Decoder:
        token_count, code_count = 4, 8

        @staticmethod
        def decode(tokens):
            own = tokens.float().repeat_interleave(3, dim=1)
            return (own + 0.1 * tokens.float().mean(1, keepdim=True))[..., None].expand(-1, -1, 3)

    parts = torch.tensor([2, 2, 2, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert measure_token_parts(Decoder, parts, 3).tolist() == [2, 0, 1, 0]
