"""What native libraries write on standard error behind Python's back: held back where it says nothing."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def standard_error_without(noise: re.Pattern[bytes]) -> Iterator[None]:
    """Hold back lines that begin as `noise` says; pass on all others when this ends."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not noise.match(line):
                    os.write(2, line)
