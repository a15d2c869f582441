"""How commands of training end: what the user can put right is one sentence on standard error, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from tqdm import tqdm

from mega_backend.checkpoint import CheckpointError
from train.config import UserError

BAD_INPUT, STOPPED = 2, 130


def run(main: Callable[[], int | None]) -> NoReturn:
    """Leave the program with the status that `main` returns (None: 0), 2 after bad input, 130 when interrupted."""
    try:
        sys.exit(main())
    except (UserError, CheckpointError, FileNotFoundError) as error:
        say, status = f"error: {error}", BAD_INPUT
    except KeyboardInterrupt as error:
        say, status = str(error) or "stopped", STOPPED
    tqdm.write(say, file=sys.stderr)  # above the progress bars, where there are any
    sys.exit(status)
