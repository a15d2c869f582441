"""People are found in pictures, each once, and nobody is found where nobody is."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from mega_backend import camera, overlay, pictures
from mega_backend.body import Body
from mega_backend.people import find, find_in_boxes, square_crop
from mega_backend.people.find import _without_phantoms
from mega_backend.people.landmarks import MAIN
from mega_backend.people.looking import Circle, Pose

SKIN = np.array([0.82, 0.62, 0.52])


def drawn_people(count: int, size: tuple[int, int] = (960, 640), apart: float = 1.1, cut: float = 0.0):
    """A picture (H, W, 3) of shaded bodies side by side, and where their 33 landmarks are: (count, 33, 2) pixels.

    cut: metres by which they are moved down, so that the frame cuts off their legs.
    """
    body = Body.bundled()
    rest = body.rest(body.shape_bank[:count])[0]
    rest = (rest - rest.mean(1, keepdim=True)) * torch.tensor([1.0, -1.0, -1.0])
    places = torch.tensor([[apart * (i - (count - 1) / 2), 0.1 + cut, 4.2] for i in range(count)])
    vertices = rest + places[:, None]
    focal = 0.9 * size[0]
    gradient = np.linspace(200, 120, size[1])[:, None, None]
    background = np.broadcast_to(gradient, (size[1], size[0], 3)).astype(np.uint8)
    meshes = [overlay.Mesh(mesh.numpy(), body.faces.numpy(), SKIN) for mesh in vertices]
    landmarks = camera.project(body.joints(vertices, "mediapipe33").numpy(), focal, size)
    return overlay.render(meshes, focal, background), landmarks


@pytest.mark.parametrize("count", [1, 3])
def test_drawn_people_are_found_where_they_are(count):
    picture, truth = drawn_people(count)
    found = find(picture)
    assert len(found) == count
    for person in found:
        distance = np.linalg.norm(truth[:, list(MAIN)] - person.landmarks[list(MAIN), :2], axis=-1).mean(1)
        height = person.box[3] - person.box[1]
        assert distance.min() < 0.04 * height
        assert (person.landmarks[list(MAIN), 2] > 0.5).all() and person.score > 0.3
        # Standing upright and facing us: shoulders above hips, the left side on the right, in metres.
        estimate = person.landmarks_3d
        assert estimate[11, 1] < estimate[23, 1] - 0.3 and estimate[11, 0] > estimate[12, 0] + 0.15


def test_half_a_body():
    picture, truth = drawn_people(1, cut=0.95)
    assert truth[0, 25, 1] > picture.shape[0]
    (person,) = find(picture)
    upper = [11, 12, 13, 14]
    assert np.linalg.norm(truth[0, upper] - person.landmarks[upper, :2], axis=-1).mean() < 30
    assert person.box[3] <= picture.shape[0]


def test_small_and_lying_people():
    picture, truth = drawn_people(1)
    small = np.full((900, 1400, 3), 150, np.uint8)
    small[500:756, 900:1284] = cv2.resize(picture, (384, 256), interpolation=cv2.INTER_AREA)
    (person,) = find(small)
    expected = truth[0] / 2.5 + [900, 500]
    assert np.linalg.norm((expected - person.landmarks[:, :2])[list(MAIN)], axis=-1).mean() < 8
    (lying,) = find(np.ascontiguousarray(np.rot90(picture)))
    turned = np.stack([truth[0, :, 1], picture.shape[1] - truth[0, :, 0]], axis=-1)
    assert np.linalg.norm((turned - lying.landmarks[:, :2])[list(MAIN)], axis=-1).mean() < 30


def test_same_picture_same_answer():
    picture, _ = drawn_people(2)
    for one, other in zip(find(picture), find(picture), strict=True):
        assert np.array_equal(one.landmarks, other.landmarks) and np.array_equal(one.landmarks_3d, other.landmarks_3d)


def test_the_person_in_a_box():
    picture, truth = drawn_people(2)
    boxes = np.concatenate([truth.min(1), truth.max(1)], axis=1)[::-1]
    found = find_in_boxes(picture, boxes)
    for person, expected in zip(found, truth[::-1], strict=True):
        assert np.linalg.norm((expected - person.landmarks[:, :2])[list(MAIN)], axis=-1).mean() < 30
    with pytest.raises(ValueError, match="nobody is recognised in box 1"):
        find_in_boxes(np.zeros_like(picture), boxes[:1])
    with pytest.raises(ValueError, match="box 1 is empty"):
        find_in_boxes(picture, np.array([[5, 5, 5, 5]]))


def test_passers_by_are_left_out_unless_asked_for():
    picture, _ = drawn_people(1)
    both = np.full((640, 1200, 3), 150, np.uint8)
    both[:, :960] = picture
    both[340:552, 860:1180] = cv2.resize(picture, (320, 212), interpolation=cv2.INTER_AREA)
    assert len(find(both)) == 1
    assert len(find(both, smallest=0)) == 2
    assert len(find(both, smallest=0, limit=1)) == 1


def nothing(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "black":
        return np.zeros((480, 640, 3), np.uint8)
    if kind == "noise":
        return random.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    if kind == "one pixel":
        return np.zeros((1, 1, 3), np.uint8)
    if kind == "narrow":
        return np.full((3, 2000, 3), 90, np.uint8)
    blurred = cv2.GaussianBlur(random.normal(size=(480, 640, 3)).astype(np.float32), (0, 0), 10)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize("kind", ["black", "noise", "clouds", "one pixel", "narrow"])
def test_nobody_in_nothing(kind):
    assert find(nothing(kind)) == []


@pytest.mark.parametrize(
    ("name", "count"),
    [("group_pexels.jpg", 4), ("yoga_pexels.jpg", 1), ("coco_785_ccby.jpg", 1), ("intel_onebyone_00697.jpg", 0)],
)
def test_photographs(shared, name, count):
    found = find(pictures.read(shared / "photos" / name))
    assert len(found) == count
    middles = [person.landmarks[[11, 12], :2].mean(0) for person in found]
    for number, person in enumerate(found):
        # No two are the same person.
        side = person.box[2:] - person.box[:2]
        assert all(np.abs(middles[number] - other).max() > 0.2 * side.max() for other in middles[:number])


def test_one_person_seen_from_above_and_behind(shared):
    """Folds of dark clothes once made a second, smaller body within the person."""
    clip = cv2.VideoCapture(str(shared / "photos" / "walking_intel_ccby.mp4"))
    for frame, count in ((280, 1), (390, 1), (500, 0), (830, 1)):
        clip.set(cv2.CAP_PROP_POS_FRAMES, frame)
        _, picture = clip.read()
        assert len(find(np.ascontiguousarray(picture[..., ::-1]))) == count


def test_a_doubtful_body_on_top_of_a_plain_one_is_no_second_person():
    """The same person upside down; two who stand close, or one half behind the other, remain two."""
    _, (standing, _) = drawn_people(2)
    upside_down = 2 * standing.mean(0) - standing
    aside = standing + np.array([0.7 * np.ptp(standing[:, 0]), 0.0])

    def pose(points, sight):
        middle = points[[23, 24]].mean(0)
        circle = Circle(middle, middle - [0.0, np.ptp(points[:, 1]) / 2], 0.7)
        return Pose(points, np.full(33, sight), np.zeros((33, 3)), circle)

    for other, sight, expected in ((upside_down, 0.35, 1), (upside_down, 0.8, 2), (aside, 0.35, 2)):
        people = [pose(standing, 0.9), pose(other, sight)]
        assert len(_without_phantoms(people, (640, 960))) == expected


def test_crops_hold_the_visible_landmarks():
    landmarks = np.full((33, 3), [100.0, 200.0, 0.9])
    landmarks[:10] = [300.0, 260.0, 0.9]
    landmarks[20:] = [-4000.0, 9000.0, 0.9]  # outside the picture: guessed
    crop = square_crop(landmarks, (640, 480))
    assert (crop.x, crop.y, crop.side) == (200, 230, 250)
    points = crop.from_picture(landmarks[:20, :2])
    assert (np.abs(points) <= 1).all() and np.allclose(crop.to_picture(points), landmarks[:20, :2])


def test_cut_crops_show_what_they_frame():
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[100:200, 150:250] = 200
    landmarks = np.full((33, 3), [150.0, 100.0, 1.0])
    landmarks[1] = [250.0, 200.0, 1.0]
    for resolution in (32, 224):
        cut = square_crop(landmarks, (400, 300)).cut(picture, resolution)
        assert cut.shape == (resolution, resolution, 3)
        bright = (cut[..., 0] > 100).mean()
        assert abs(bright - 1 / 1.25**2) < 0.03


def test_quiet_but_not_deaf():
    """MediaPipe's start-up chatter does not reach the user; other messages do."""
    program = """if True:
        import os, numpy as np
        from mega_backend.people import find, pose_network
        from mega_backend.quiet import standard_error_without
        find(np.zeros((64, 64, 3), np.uint8))
        with standard_error_without(pose_network.LOG_NOISE):
            os.write(2, b"I0000 00:00:1 chatter\\nE0000 00:00:1 something broke\\n")
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "E0000 00:00:1 something broke\n"


def test_looks_that_differ_make_a_landmark_doubtful_and_one_astray_moves_nothing():
    from mega_backend.people.looking import Circle, Pose, combined

    circle = Circle(np.zeros(2), np.array([0.0, -100.0]), 0.9)
    points = np.column_stack([np.linspace(0, 80, 33), np.linspace(0, 200, 33)])
    looks = [Pose(points, np.full(33, 0.9), np.zeros((33, 3)), circle) for _ in range(6)]
    astray = points.copy()
    astray[15] += [120, 0]
    looks[3] = Pose(astray, np.full(33, 0.9), np.zeros((33, 3)), circle)
    together = combined(looks, 0.01)
    assert np.allclose(together.points, points)
    assert together.visibility[15] < 0.2 and np.allclose(np.delete(together.visibility, 15), 0.9)
