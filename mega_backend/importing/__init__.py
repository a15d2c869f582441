"""`mega import`: the authors' files and SMPL, in any order, into a model folder.

Every input is recognised by what is in it, never by its name (`inputs`); every tensor's shape is checked; what belongs
nowhere is refused by name. Then the folder is put together (`assembly`), told where each part came from (`provenance`)
and what it still lacks (`lacking`). No code in a foreign file is ever run (`mega_backend.foreign`), nothing is
downloaded.
"""

from .assembly import Imported, import_files
from .command import add_import_arguments, run_import
from .inputs import Input, recognise
from .lacking import missing
from .provenance import origins

__all__ = [
    "Imported",
    "Input",
    "add_import_arguments",
    "import_files",
    "missing",
    "origins",
    "recognise",
    "run_import",
]
