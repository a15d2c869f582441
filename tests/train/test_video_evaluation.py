"""Clips to evaluate on: noise that lasts, halves that are hidden, errors that are counted."""

import math

import numpy as np
import pytest
import torch

from mega_backend.body import Body
from train.data.mocap import Recording
from train.evaluation import video
from train.evaluation.video import Lasting, errors, film, half_hidden


def test_noise_lasts_and_is_as_usual_frame_by_frame():
    rate = 30.0
    normal = Lasting(torch.Generator().manual_seed(0), rate).normal(3000, 400)
    assert abs(normal.mean()) < 0.05 and normal.std() == pytest.approx(1, abs=0.03)
    for frames in (3, 9, 30):
        together = (normal[frames:] * normal[:-frames]).mean().item()
        expected = Lasting.kept + Lasting.fading * math.exp(-frames / rate / Lasting.time)
        assert together == pytest.approx(expected, abs=0.04)
    uniform = Lasting(torch.Generator().manual_seed(0), rate).uniform(1000, 400, low=2, high=4)
    shares = torch.histc(uniform, 4, 2, 4) / uniform.numel()
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.03)


def test_the_share_that_was_asked_for_is_hidden():
    hidden = half_hidden(900, 0.3, torch.Generator().manual_seed(0), 30.0)
    frames = hidden.any(1)
    assert frames.float().mean() == pytest.approx(0.3, abs=0.02)
    assert {tuple(row.tolist()) for row in hidden[frames][:, [0, 32]]} == {(True, False), (False, True)}


@pytest.fixture(scope="module")
def recording():
    """Somebody in T-pose who walks with stiff legs."""
    still = torch.zeros(50, 22, 4)
    still[..., 0] = 1
    positions = torch.stack([torch.linspace(0, 1, 50), torch.ones(50), torch.zeros(50)], dim=1)
    return Recording("nobody", "1", still, positions, 30.0)


def test_sightings_lie_round_the_truth(recording):
    body = Body.bundled().subset(torch.arange(1))
    filmed = film(recording, body, 40, torch.Generator().manual_seed(0), 0.3)
    assert len(filmed.sightings) == 40 and filmed.joints.shape == (40, 22, 3)
    inside = [(seen.box[:2] >= 0).all() and (seen.box[2:] <= np.array(video.SIZE)).all() for seen in filmed.sightings]
    assert all(inside)
    again = film(recording, body, 40, torch.Generator().manual_seed(0), 0.3)
    assert np.array_equal(filmed.sightings[5].landmarks, again.sightings[5].landmarks)
    # Hips of the detector round the pelvis of the truth.
    focal = video.camera.default_focal_length(video.SIZE)
    pelvis = video.camera.project(filmed.joints[:, 0].numpy(), focal, video.SIZE)
    hips = np.stack([seen.landmarks[[23, 24], :2].mean(0) for seen in filmed.sightings])
    size = np.stack([np.ptp(seen.landmarks[:, :2], axis=0).max() for seen in filmed.sightings])
    assert (np.linalg.norm(hips - pelvis, axis=1) / size).mean() < 0.1


def test_errors_of_known_size():
    truth = torch.zeros(20, 22, 3)
    truth[..., 0] = torch.arange(22)
    times = np.arange(20) / 30
    still = errors(truth, truth, times)
    assert still["mpjpe"] == still["acceleration"] == still["sliding"] == 0 and still["pa_mpjpe"] < 0.1
    moved = truth + torch.tensor([0.0, 0.0, 1.0]) * (torch.arange(20) / 30)[:, None, None]
    assert errors(moved, truth, times)["sliding"] == pytest.approx(1.0, abs=1e-4)
    assert errors(moved, truth, times)["mpjpe"] == pytest.approx(0.0, abs=1e-3)
