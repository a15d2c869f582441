"""Picture → people → hypotheses: the one pipeline that command line, server and Python callers share.

`recoverer` is what one calls; the others are its steps, in the order in which a picture passes them: `settings`,
`conditioning`, `answers`, `placing`, `building`. What begins otherwise: `resampling` and `random_people`; and
`generation` shows a single sample in the making.
"""

from mega_backend.people.landmarks import COCO17_LANDMARKS

from .placing import LANDMARK_ERROR
from .recoverer import Recoverer
from .settings import Progress

__all__ = ["COCO17_LANDMARKS", "LANDMARK_ERROR", "Progress", "Recoverer"]
