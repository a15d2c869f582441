"""How plausible poses are: `mega_backend.plausibility`, under the name that the data modules know it by."""

from mega_backend.plausibility import Plausibility

__all__ = ["Plausibility"]
