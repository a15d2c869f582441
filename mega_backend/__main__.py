"""`python -m mega_backend …` is the same as `mega …`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
