"""People of photographs as a dataset: their landmarks lie in the small pictures where they lay in the large ones."""

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mega_backend.rotations import sixd_from_matrix
from train.data import annotations, photographs_as_dataset
from train.data.anny import AnnyBodies
from train.data.landmarks import with_landmarks
from train.data.photographs import Truth
from train.data.retarget import Retargeter


def test_people_lie_where_they_lay(tmp_path):
    bodies = AnnyBodies()
    numbers = 0.15 * torch.randn(2, 22, 4, generator=torch.Generator().manual_seed(0))
    numbers[..., 0] = 1
    rotations = Retargeter(bodies.body)(torch.nn.functional.normalize(numbers, dim=-1))
    camera = Rotation.from_euler("yx", [0.4, np.pi + 0.2]).as_matrix()
    translation = np.array([[0.3, 0.1, 4.0], [-0.5, 0.0, 5.0]])
    shape = bodies.body.shape_bank[:2]
    mesh = bodies.body.skin(rotations, shape)
    mesh = (mesh - mesh.mean(1, keepdim=True)).double().numpy() @ camera.T + translation[:, None]
    points = bodies.body.joints(torch.from_numpy(mesh).float(), "mediapipe33").double().numpy()
    pixels = 400 * points[..., :2] / points[..., 2:] + [160, 120]
    seen = np.ones((2, 33), bool)
    seen[1] = False
    truth = Truth(
        rotations=sixd_from_matrix(rotations).numpy(), shape=shape.numpy(), camera_rotation=camera,
        translation=translation, landmarks=pixels, seen=seen, size=np.array([320, 240]), focal_length=400.0,
    )  # fmt: skip
    picture = np.zeros((240, 320, 3), np.uint8)
    x, y = pixels[0, 15]
    cv2.circle(picture, (round(x - 0.5), round(y - 0.5)), 3, (255, 255, 255), -1)
    cv2.imwrite(str(tmp_path / "000000.jpg"), picture)
    truth.save(tmp_path / "000000.npz")

    photographs_as_dataset.main([str(tmp_path), str(tmp_path / "out"), "--size", "96"])
    table = with_landmarks(annotations.read(tmp_path / "out" / "people.npz"), bodies)
    assert len(table) == 1 and table.body == "anny" and (table.joints[..., 2] == 1).all()
    # The crop is one similarity for all landmarks.
    found = table.joints[0, :, :2].astype(np.float64)
    system = np.column_stack([pixels[0], np.ones(33)])
    solution, *_ = np.linalg.lstsq(system, found, rcond=None)
    assert np.abs(system @ solution - found).max() < 0.1
    assert np.allclose(solution[0, 0], solution[1, 1], rtol=1e-3) and np.abs(solution[:2][[0, 1], [1, 0]]).max() < 1e-2
    crop = cv2.imread(str(tmp_path / "out" / "pictures" / table.names[0]))[..., 0].astype(float)
    rows, columns = np.mgrid[:96, :96] + 0.5
    bright = crop * (crop > 60)
    middle = np.array([(bright * columns).sum(), (bright * rows).sum()]) / bright.sum()
    assert np.abs(middle - found[15]).max() < 1.0
