"""The command line: `mega recover | random | resample | video | explain | batch | info | import | serve`.

Each command lists its options only when it is the one that was asked for, so that `mega --help` is instant and only
`mega serve` needs the server's packages. Exit codes: 0 done, 1 failed, 2 bad input or bad options.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import __version__
from .commands import info, pictures
from .commands.options import model_arguments, sampling_arguments
from .commands.outputs import load_model
from .commands.telling import BAD_INPUT, complain, progress_bar, say
from .files import OutputError
from .pictures import PictureError
from .result import ResultError

__all__ = ["BAD_INPUT", "COMMANDS", "Command", "main", "parser"]


@dataclass(frozen=True)
class Command:
    """One `mega` command: what it does in a line, its options, and what runs it."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """What reads these arguments: of the commands, only the one that they name knows its options."""
    top = argparse.ArgumentParser(
        prog="mega", description="MEGA Mesh Recovery: photographs to body meshes, one best guess or many alternatives."
    )
    top.add_argument("--version", action="version", version=f"mega {__version__}")
    choices = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in arguments if word in COMMANDS), None)
    for name, command in COMMANDS.items():
        # Whole names only: `--token SECRET` must not be taken for the start of `--token-file`.
        sub = choices.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        if name == wanted:
            command.add_arguments(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Errors of the user's making are one sentence on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser(arguments).parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except KeyboardInterrupt:
        print("mega: stopped", file=sys.stderr)
        return 130
    except (PictureError, ResultError, OutputError, ValueError) as error:
        return complain(error)


# Commands with modules of their own, which are imported when they are asked for -------------------------------------


def _batch_arguments(parser: argparse.ArgumentParser) -> None:
    from .batch import add_arguments

    add_arguments(parser)
    sampling_arguments(parser, hypotheses=1, steps=5, temperature=1.0)
    model_arguments(parser)


def _batch(options: argparse.Namespace) -> int:
    from .batch import main as batch

    return batch(options)


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    from .explain import add_arguments

    add_arguments(parser)
    sampling_arguments(parser, hypotheses=25, steps=5, temperature=1.0)
    model_arguments(parser)


def _explain(options: argparse.Namespace) -> int:
    from .explain import main as explain

    recoverer = load_model(options)
    with progress_bar("explaining") as progress:
        written = explain(options, recoverer, progress)
    say(f"{len(written)} sheets in {options.output}")
    return 0


def _video_arguments(parser: argparse.ArgumentParser) -> None:
    from .video.command import add_arguments

    add_arguments(parser)
    sampling_arguments(parser, hypotheses=5, steps=2, temperature=1.0)
    model_arguments(parser)


def _video(options: argparse.Namespace) -> int:
    from .video.command import main as video

    return video(options)


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    from .importing import add_import_arguments

    add_import_arguments(parser)


def _import(options: argparse.Namespace) -> int:
    from .importing import run_import

    return run_import(options)


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    from .server import add_arguments

    add_arguments(parser)


def _serve(options: argparse.Namespace) -> int:
    from .server import main as serve

    return serve(options)


COMMANDS = {
    "recover": Command("recover the people in pictures as meshes", pictures.recover_arguments, pictures.recover),
    "random": Command("make up people out of nothing", pictures.random_arguments, pictures.random),
    "resample": Command(
        "keep parts of a result's bodies and draw the rest anew", pictures.resample_arguments, pictures.resample
    ),
    "video": Command("recover the moving people of a clip", _video_arguments, _video),
    "explain": Command("draw how an answer comes about and how sure it is", _explain_arguments, _explain),
    "batch": Command("recover all pictures and videos of a folder, here or on a cluster", _batch_arguments, _batch),
    "info": Command("say what is installed and what the model is", info.add_arguments, info.main),
    "import": Command("make a model folder of the authors' files", _import_arguments, _import),
    "serve": Command("answer requests over HTTP, for Blender and other programs", _serve_arguments, _serve),
}
