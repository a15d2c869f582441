"""The documented commands, one after the other, as a researcher gives them: datasets as they are released at one end,
evaluated and exported models at the other. At toy size; what a command cannot use is said in one sentence."""

import json

import numpy as np
import pytest
import torch
import yaml
from released_fixture import command, world_sequence, write_3dpw, write_emdb
from smpl_fixture import bodies, write_connections, write_models, write_training
from test_motion_capture import as_bvh, random_poses
from test_motions import write_motion

import mega_backend
from mega_backend import checkpoint, people
from mega_backend.people import Detection
from train.data import mocap

SHORT = ["loop.steps=3", "loop.warmup_steps=0", "loop.accelerator=cpu", "loop.threads=1", "loop.workers=0",
         "loop.shards=1", "batch=4"]  # fmt: skip
SMALL = {"width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
RESNET = {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 8, "input_size": 64}


SMPL_TOKENIZER = ["train.mesh_vqvae", "mesh_vqvae_smpl", "--run", "run", "connections=CONNECTIONS"]


def setting(name, value):
    return f"{name}={yaml.safe_dump(value, default_flow_style=True).strip()}"


@pytest.fixture(scope="module")
def smpl(tmp_path_factory):
    """A folder with SMPL files, motions, connections, pictures to train on, 3DPW and EMDB."""
    folder = tmp_path_factory.mktemp("papers")
    write_models(folder / "body_models")
    model = bodies(folder / "body_models")
    for number, gender in enumerate(("male", "female", "neutral", "male")):
        path = folder / "AMASS" / "CMU" / f"{number:02d}" / f"{number:02d}_01_poses.npz"
        write_motion(path, frames=40, seed=number, gender=np.array(gender))
    write_motion(
        folder / "AMASS" / "BEDLAM" / "motion_seq.npz", frames=9, poses=np.zeros((9, 165)), mocap_framerate=None
    )
    (folder / "AMASS" / "broken_poses.npz").write_bytes(b"PK half a download")
    write_connections(folder / "CONNECTIONS")
    write_training(folder / "coco", model, count=8, size=64)
    for seed, (name, split) in enumerate((("downtown_arguing_00", "test"), ("outdoors_golf_00", "train"))):
        write_3dpw(folder / "3DPW", world_sequence(model, 6, seed), name, split)
    boxes = np.tile([200.0, 100, 400, 400], (5, 1))
    write_emdb(folder / "EMDB", world_sequence(model, 5, 3), np.ones(5, bool), boxes, invalid=[4])
    return folder


def test_the_papers_models_from_released_files(smpl, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(smpl)
    files = {gender: f"body_models/{gender}.npz" for gender in ("neutral", "male", "female")}
    given = [f"--{gender}={path}" for gender, path in files.items()]
    body = [f"body.models.{gender}={path}" for gender, path in files.items()]
    h36m = "body_models/h36m.npy"
    tokens = ["motions=AMASS", "connections=CONNECTIONS", "levels=1", "codes=32", "held_out_every=3"]
    assert command("train.mesh_vqvae", "mesh_vqvae_smpl", "--run", "runs/vq", *tokens, *SHORT, *body) == 0
    assert "broken_poses.npz" in capsys.readouterr().out  # skipped, and said so
    encode = ["--motions", "AMASS", *given, "--held-out-every", 3, "-o", "data/tokens"]
    assert command("train.smpl_tokenizer", "runs/vq/final", *encode) == 0
    look = ["--model", "runs/vq/final", "--motions", "AMASS", *given, "--bodies", 60, "-o", "results/tokenizer.json"]
    assert command("train.evaluate", "tokenizer", *look) == 0
    found = json.loads((smpl / "results" / "tokenizer.json").read_text())["motions"]
    noted = checkpoint.read_config(smpl / "runs" / "vq" / "final")["provenance"][0]["vertex_error_mm"]
    assert found["bodies"] == 60 and found["vertex_error"] == pytest.approx(
        noted, rel=0.3
    )  # other bodies, as untrained
    pretrain = ["tokenizer=runs/vq/final", "code_count=32", setting("model", SMALL), *SHORT]
    assert command("train.pretrain", "pretrain_smpl", "--run", "runs/pretrain_smpl", *pretrain) == 0
    source = {"file": "coco/people.npz", "pictures": "coco/pictures"}
    model = {"kind": "mega", **SMALL, "conditioning": {"backbone": RESNET}}
    pictures = [setting("sources", [source]), setting("validation", source), setting("model", model), *body, *SHORT]
    pictures += [f"body.h36m={h36m}", "tokenizer=runs/vq/final"]
    assert command("train.hmr", "mega_resnet50", "--run", "runs/mega_resnet50", *pictures) == 0
    taken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("runs/pretrain_smpl")]
    assert taken and "tensors taken" in taken[0]
    mix = [*pictures, "start=runs/mega_resnet50"]
    mix[0] = setting("sources", [{**source, "share": share} for share in (0.3, 0.7)])
    assert command("train.hmr", "mega_mix", "--run", "runs/mega_mix", *mix) == 0
    vqhps = {"kind": "vqhps", "width": 32, "heads": 2, "hidden": 32, "pose_width": 32, "backbone": RESNET}
    run = ["--run", "runs/vqhps_resnet50", *pictures, setting("model", vqhps)]
    assert command("train.hmr", "vqhps_resnet50", *run) == 0

    assert command("train.data.prepare_3dpw", "3DPW", "data/3dpw.npz") == 0
    assert command("train.data.prepare_3dpw", "3DPW", "data/3dpw_all.npz", "--split", "all") == 0
    assert command("train.data.prepare_emdb", "EMDB", "data/emdb.npz") == 0
    for name, dataset, table, folder, count in (
        ("mega_mix", "3dpw", "3dpw", "3DPW/imageFiles", 6),
        ("mega_mix", "3dpw-occ", "3dpw_all", "3DPW/imageFiles", 6),
        ("vqhps_resnet50", "emdb", "emdb", "EMDB", 4),
    ):
        options = ["--model", f"runs/{name}/final", "--data", f"data/{table}.npz", "--pictures", folder, *given]
        options += ["--h36m", h36m, "--dataset", dataset, "--samples", 3, "--steps", 2, "-o", f"results/{dataset}.json"]
        assert command("train.evaluate", "hmr", *options) == 0
        result = json.loads((smpl / "results" / f"{dataset}.json").read_text())
        assert result["people"] == count and result["skipped"] == 0, dataset
        assert np.isfinite(list(result["deterministic"].values())).all()
        assert (smpl / "results" / f"{dataset}.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr(people, "find", lambda picture, smallest: [somebody()])
    recovered = mega_backend.load(smpl / "runs" / "mega_mix" / "final").recover(np.zeros((120, 160, 3), np.uint8))
    assert recovered.people[0].vertices.shape == (5, 192, 3) and np.isfinite(recovered.people[0].vertices).all()


def somebody():
    random = np.random.default_rng(0)
    landmarks = np.concatenate([random.normal((80, 60), (8, 20), (33, 2)), np.full((33, 1), 0.9)], axis=1)
    box = np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
    return Detection(box.astype(np.float32), landmarks.astype(np.float32), np.zeros((33, 3), np.float32), 0.9)


def test_the_bundled_kind_of_model_from_bvh_and_amass(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("walk", "dance", "sit"):
        (tmp_path / "bvh").mkdir(exist_ok=True)
        (tmp_path / "bvh" / f"{name}.bvh").write_text(as_bvh(random_poses(60, seed=len(name))))
    write_motion(tmp_path / "amass" / "s" / "01_poses.npz", frames=60)
    assert command("train.data.convert", "bvh", "amass", "-o", "MOCAP", "--name", "one") == 0
    for split in ("val", "test"):
        assert command("train.data.convert", "bvh/sit.bvh", "-o", "MOCAP", "--split", split, "--name", split) == 0
    assert len(mocap.recordings(tmp_path / "MOCAP", "train")) == 4
    (tmp_path / "broken.npz").write_bytes(b"PK half a download")
    assert command("train.data.convert", "broken.npz", "-o", "MOCAP") == 2
    assert "broken.npz" in capsys.readouterr().err

    layers = [{"level": 1, "reach": 3, "channels": 24}, {"level": 1, "reach": 1, "channels": 9}]
    decoder = [{"level": 1, "reach": 1, "channels": 24}, {"level": 0, "reach": 4, "channels": 3}]
    network = [
        setting("sizes", [120, 20]),
        setting("tokens", {}),
        setting("encoder", layers),
        setting("decoder", decoder),
    ]
    network += ["codes=32", "lift_bodies=8", "statistics_bodies=64", "quantise_from=1", "place_again=[]"]
    small = [*SHORT, "loop.precision=32-true", "freeze_encoder_from=null"]
    assert command("train.mesh_vqvae", "tokenizer", "mocap=MOCAP", "--run", "runs/tokenizer", *network, *small) == 0
    look = ["--model", "runs/tokenizer/final", "--mocap", "MOCAP", "--bodies", 6, "-o", "tokenizer.json"]
    assert command("train.evaluate", "tokenizer", *look) == 0
    assert json.loads((tmp_path / "tokenizer.json").read_text())["mocap"]["bodies"] == 6
    bank = ["--mocap", "MOCAP", "--tokenizer", "runs/tokenizer/final"]
    assert command("train.data.bank", *bank, "--count", 24, "-o", "bank.pt") == 0
    assert command("train.data.bank", *bank, "--split", "val", "--count", 12, "-o", "validation.pt") == 0
    data = ["data.bank=bank.pt", "data.validation=validation.pt", "data.batch=8", "tokenizer=runs/tokenizer/final"]
    loop = ["loop.steps=3", "loop.warmup_steps=0", "loop.accelerator=cpu", "loop.precision=32-true"]
    regressor = ["model.width=64", "model.depth=1"]
    assert command("train.hmr", "regressor", "--run", "runs/regressor", *data, *loop, *regressor) == 0
    masked = [setting("model", {**SMALL, "prior": {"width": 64, "depth": 1}}), "start=runs/regressor"]
    assert command("train.hmr", "masked", "--run", "runs/masked", *data, *loop, *masked) == 0
    bundle = ["--tokenizer", "runs/tokenizer/final", "--run", "runs/masked", "--bank", "validation.pt", "-o", "model"]
    assert command("train.bundle", *bundle) == 0
    assert checkpoint.load(tmp_path / "model").model.kind == "landmarks"
    pretrain = [setting("model", SMALL), "bank=bank.pt", "validation=validation.pt", "code_count=32", *SHORT]
    assert command("train.pretrain", "pretrain", "--run", "runs/pretrain", *pretrain) == 0
    saved = torch.load(tmp_path / "runs" / "pretrain" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("surprise", ["train.hmr", "regressor", "--run", "run", "surprise=1"]),
        ("not readable as YAML", ["train.hmr", "regressor", "--run", "run", "model={width: ["]),
        ("bank.pt", ["train.hmr", "regressor", "--run", "run"]),
        ("train.data.bank", ["train.pretrain", "pretrain", "--run", "run"]),
        ("mocap=FOLDER", ["train.mesh_vqvae", "tokenizer", "--run", "run"]),
        ("data/coco.npz", ["train.hmr", "mega_hrnet", "--run", "run"]),
        ("_pool1.npy", ["train.mesh_vqvae", "mesh_vqvae_smpl", "--run", "run", "connections=CONNECTIONS"]),
        (
            "SMPLH_NEUTRAL.npz",
            ["train.mesh_vqvae", "mesh_vqvae_smpl", "--run", "run", "connections=CONNECTIONS", "levels=1"],
        ),
        ("sequenceFiles", ["train.data.prepare_3dpw", "nowhere", "out.npz"]),
        ("nowhere", ["train.data.prepare_emdb", "nowhere", "out.npz"]),
        ("nowhere", ["train.data.convert", "nowhere", "-o", "out"]),
        ("nowhere", ["train.data.bank", "--mocap", "nowhere", "-o", "out.pt"]),
        ("hmr masked", ["train.bundle", "--tokenizer", "default", "--run", "run", "--bank", "b", "-o", "o"]),
        ("nowhere", ["train.smpl_tokenizer", "default", "--motions", "m", "-o", "o", "--neutral", "nowhere"]),
        ("run holds no checkpoint", ["train.images", "image_anny", "--run", "run", "--export", "out"]),
        ("nowhere", ["train.evaluate", "hmr", "--model", "nowhere", "--data", "d", "--pictures", "p"]),
        ("nowhere", ["train.evaluate", "tokenizer", "--mocap", "nowhere"]),
        ("--mocap", ["train.evaluate", "tokenizer"]),
    ],
)
def test_what_a_command_cannot_use_is_one_sentence(words, given, smpl, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_connections(tmp_path / "CONNECTIONS")
    status = command(*given)
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and words in "\n".join(said), said
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
