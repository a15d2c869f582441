"""The measures of random people: a natural pose passes, a broken one does not, similar poses are near."""

import pytest
import torch

from mega_backend import rotations as R
from mega_backend.body import Body
from mega_backend.plausibility import Judge
from train.data import mocap
from train.data.retarget import Retargeter
from train.evaluation import people


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


def test_broken_poses_are_not_plausible(body):
    local = torch.zeros(4, 22, 4)
    local[..., 0] = 1
    # The second bends a knee forwards, the third puts an arm through the chest, the others stand with arms out.
    local[1, mocap.JOINTS.index("left_knee")] = R.quaternion_from_axis_angle(torch.tensor([-1.2, 0.0, 0.0]))
    local[2, mocap.JOINTS.index("left_shoulder")] = R.quaternion_from_axis_angle(torch.tensor([0.0, 3.0, 0.0]))
    vertices = body.skin(Retargeter(body)(local), torch.zeros(4, body.shape_count))
    judge = Judge(body)
    fine = people.plausible(judge, vertices[[0, 3]])
    assert fine["both"] == 1 and fine["rig_error_mm"] < 5
    assert people.plausible(judge, vertices[1:2])["inside_limits"] == 0
    assert people.plausible(judge, vertices[2:3])["free_of_intersection"] == 0


def test_nearest_ignores_size_place_and_heading():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 22, 3, generator=generator)
    turn = R.random_matrices(5, generator)
    others = torch.cat((torch.randn(9, 22, 3, generator=generator), 2 * points @ turn + 1))
    assert people.nearest(points, others).max() < 0.1
    assert people.nearest(points, others[:9]).min() > 100
    # A mirrored pose is another pose.
    assert people.nearest(points, points * torch.tensor([-1.0, 1.0, 1.0])).min() > 100
