"""People in a picture: where they are, their landmarks, and their crops. Nothing is loaded before the first search."""

from .crops import Crop, square_crop, visible_box
from .find import find, find_in_boxes
from .looking import Detection

__all__ = ["Crop", "Detection", "find", "find_in_boxes", "square_crop", "visible_box"]
