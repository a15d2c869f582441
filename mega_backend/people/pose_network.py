"""MediaPipe's two pose networks as plain functions of small pictures.

The wheel of `mediapipe` carries a detector (224 × 224 picture → people as hip centre, body circle, score) and a
landmark network (256 × 256 crop of one person → 33 landmarks in the picture and in space). Its ready-made solutions
follow one person through a video; several people in one picture need the two networks by themselves, so each gets a
graph of its own. Cropping, projecting back and choosing happen in `find.py`, where they can be seen and tested.
"""

import os
import re
import warnings
from functools import lru_cache

import numpy as np

from mega_backend.quiet import standard_error_without
from mega_backend.turns import Pool

DETECTOR_SIDE = 224
LANDMARK_SIDE = 256

_DETECTOR_GRAPH = """
input_stream: "image"
output_stream: "detections"
node {
  calculator: "ImageToTensorCalculator"
  input_stream: "IMAGE:image"
  output_stream: "TENSORS:input"
  options { [mediapipe.ImageToTensorCalculatorOptions.ext] {
    output_tensor_width: 224 output_tensor_height: 224 keep_aspect_ratio: true
    output_tensor_float_range { min: -1.0 max: 1.0 } border_mode: BORDER_ZERO } }
}
node {
  calculator: "InferenceCalculator"
  input_stream: "TENSORS:input"
  output_stream: "TENSORS:output"
  options { [mediapipe.InferenceCalculatorOptions.ext] {
    model_path: "mediapipe/modules/pose_detection/pose_detection.tflite" delegate { xnnpack { num_threads: 1 } } } }
}
node {
  calculator: "SsdAnchorsCalculator"
  output_side_packet: "anchors"
  options { [mediapipe.SsdAnchorsCalculatorOptions.ext] {
    num_layers: 5 min_scale: 0.1484375 max_scale: 0.75 input_size_height: 224 input_size_width: 224
    anchor_offset_x: 0.5 anchor_offset_y: 0.5 strides: 8 strides: 16 strides: 32 strides: 32 strides: 32
    aspect_ratios: 1.0 fixed_anchor_size: true } }
}
node {
  calculator: "TensorsToDetectionsCalculator"
  input_stream: "TENSORS:output"
  input_side_packet: "ANCHORS:anchors"
  output_stream: "DETECTIONS:raw"
  options { [mediapipe.TensorsToDetectionsCalculatorOptions.ext] {
    num_classes: 1 num_boxes: 2254 num_coords: 12 box_coord_offset: 0 keypoint_coord_offset: 4 num_keypoints: 4
    num_values_per_keypoint: 2 sigmoid_score: true score_clipping_thresh: 100.0 reverse_output_order: true
    x_scale: 224.0 y_scale: 224.0 h_scale: 224.0 w_scale: 224.0 min_score_thresh: 0.3 } }
}
node {
  calculator: "NonMaxSuppressionCalculator"
  input_stream: "raw"
  output_stream: "detections"
  options { [mediapipe.NonMaxSuppressionCalculatorOptions.ext] {
    min_suppression_threshold: 0.3 overlap_type: INTERSECTION_OVER_UNION algorithm: WEIGHTED } }
}
"""

_LANDMARK_GRAPH = """
input_stream: "image"
input_stream: "roi"
input_side_packet: "complexity"
output_stream: "landmarks"
output_stream: "auxiliary"
output_stream: "world"
node {
  calculator: "PoseLandmarkByRoiCpu"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  input_side_packet: "MODEL_COMPLEXITY:complexity"
  output_stream: "LANDMARKS:landmarks"
  output_stream: "AUXILIARY_LANDMARKS:auxiliary"
  output_stream: "WORLD_LANDMARKS:world"
}
"""

LOG_NOISE = re.compile(
    rb"^(INFO: Created TensorFlow Lite XNNPACK|WARNING: All log messages before absl|[IW]\d{4} |[IW]\d{8} )"
)
"""How lines of the networks' start begin that say nothing to a user."""


class PoseNetwork:
    """The two networks, several times over: as many threads as it has `lanes` may use it at once, others wait.

    Args:
        lanes: how many; by default one for each of the first four cores.
    """

    def __init__(self, lanes: int | None = None) -> None:
        self.lanes = lanes or min(4, os.cpu_count() or 1)
        warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype")
        with standard_error_without(LOG_NOISE):
            import mediapipe
            from mediapipe.framework.formats import rect_pb2
            from mediapipe.python import packet_creator, packet_getter
            from mediapipe.python._framework_bindings import resource_util

            # Model paths in the graphs are relative to the folder that holds the `mediapipe` package.
            package = os.path.dirname(os.path.abspath(mediapipe.__file__))
            resource_util.set_resource_dir(os.path.dirname(package))
            self._rgb = mediapipe.ImageFormat.SRGB
            self._create, self._get = packet_creator, packet_getter
            self._whole = rect_pb2.NormalizedRect(x_center=0.5, y_center=0.5, width=1.0, height=1.0)
            detectors, landmarkers = [], []
            complexity = {"complexity": packet_creator.create_int(1)}
            blank = np.zeros((LANDMARK_SIDE, LANDMARK_SIDE, 3), np.uint8)
            for _ in range(self.lanes):
                detector = _Graph(_DETECTOR_GRAPH, ["detections"], {})
                landmarker = _Graph(_LANDMARK_GRAPH, ["landmarks", "auxiliary", "world"], complexity)
                # The first run of a graph builds its network, and logs about it.
                detector.run(image=self._image(blank[:DETECTOR_SIDE, :DETECTOR_SIDE]))
                landmarker.run(image=self._image(blank), roi=packet_creator.create_proto(self._whole))
                detectors.append(detector)
                landmarkers.append(landmarker)
            self._detectors, self._landmarkers = Pool(detectors), Pool(landmarkers)

    def detect(self, picture: np.ndarray) -> np.ndarray:
        """People in a square picture.

        Args:
            picture: (224, 224, 3) uint8 RGB.

        Returns:
            (D, 5) float32: hip centre x, y, a point on the circle round the body x, y (all relative to the
            picture's side; the circle's point lies above the head of an upright body), score in [0, 1].
        """
        with self._detectors.one() as graph:
            output = graph.run(image=self._image(picture))
        if "detections" not in output:
            return np.zeros((0, 5), np.float32)
        found = self._get.get_proto_list(output["detections"])
        rows = [
            [
                *(value for point in item.location_data.relative_keypoints[:2] for value in (point.x, point.y)),
                item.score[0],
            ]
            for item in found
        ]
        return np.array(rows, np.float32).reshape(-1, 5)

    def landmarks(self, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The landmarks of the person that fills a crop, or None where the network sees nobody.

        Args:
            crop: (256, 256, 3) uint8 RGB, body upright and centred on the hips.

        Returns:
            landmarks (33, 4): x, y relative to the crop's side, visibility and presence in [0, 1];
            circle (2, 2): hip centre and a point on the circle round the body, relative to the crop's side;
            world (33, 3): metres, hip-centred, x right, y down, z away from the camera.
        """
        with self._landmarkers.one() as graph:
            output = graph.run(image=self._image(crop), roi=self._create.create_proto(self._whole))
        if "landmarks" not in output:
            return None
        landmarks = self._get.get_proto(output["landmarks"]).landmark
        circle = self._get.get_proto(output["auxiliary"]).landmark
        world = self._get.get_proto(output["world"]).landmark
        return (
            np.array([[p.x, p.y, p.visibility, p.presence] for p in landmarks], np.float32),
            np.array([[p.x, p.y] for p in circle[:2]], np.float32),
            np.array([[p.x, p.y, p.z] for p in world], np.float32),
        )

    def _image(self, picture: np.ndarray):
        return self._create.create_image_frame(np.ascontiguousarray(picture), image_format=self._rgb)


class _Graph:
    """A running MediaPipe graph that answers one set of inputs at a time."""

    def __init__(self, text: str, outputs: list[str], side_packets: dict) -> None:
        from google.protobuf import text_format
        from mediapipe.framework import calculator_pb2
        from mediapipe.python._framework_bindings import calculator_graph

        config = text_format.Parse(text, calculator_pb2.CalculatorGraphConfig())
        self._graph = calculator_graph.CalculatorGraph(graph_config=config)
        self._packets: dict = {}
        self._time = 0
        for name in outputs:
            self._graph.observe_output_stream(name, self._packets.__setitem__, False)
        self._graph.start_run(side_packets)

    def run(self, **inputs) -> dict:
        self._packets.clear()
        self._time += 1
        for name, packet in inputs.items():
            self._graph.add_packet_to_input_stream(name, packet.at(self._time))
        self._graph.wait_until_idle()
        return dict(self._packets)


@lru_cache(maxsize=1)
def shared_network() -> PoseNetwork:
    """The networks of this process, loaded at the first call (about two seconds)."""
    return PoseNetwork()
