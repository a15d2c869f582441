"""Picture → people → hypotheses: the one pipeline that command line, server and Python callers share.

`recoverer` is what one calls; the others are its steps, in the order in which a picture passes them: `settings`,
`conditioning`, `answers`, `placing`, `building`. What begins otherwise: `resampling` and `random_people`; and
`generation` shows a single sample in the making.
"""

from .recoverer import Recoverer
from .settings import Progress

__all__ = ["Progress", "Recoverer"]
