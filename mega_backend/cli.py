"""The command line: `mega recover | random | resample | video | explain | batch | info | import | serve`.

Each command lists its options only when it is the one that was asked for, so that `mega --help` is instant and only
`mega serve` needs the server's packages. Exit codes: 0 done, 1 failed, 2 bad input or bad options.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import __version__, export
from .files import OutputError, atomic_write
from .pictures import PictureError
from .result import Recovery, ResultError

BAD_INPUT = 2


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
        return _complain(error)


def _complain(error: Exception) -> int:
    from tqdm import tqdm

    tqdm.write(f"mega: {error}", file=sys.stderr)  # above the progress bars, where there are any
    return BAD_INPUT


# recover ------------------------------------------------------------------------------------------------------------


def _recover_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="JPEG, PNG, WebP, TIFF, BMP or GIF")
    _sampling_arguments(parser, hypotheses=1, steps=5, temperature=1.0)
    _output_arguments(parser, "for several pictures a folder")
    parser.add_argument(
        "--format", choices=[ending[1:] for ending in export.FORMATS], default="npz", help="in a folder"
    )
    parser.add_argument("--focal", type=_positive, metavar="PIXELS", help="focal length (EXIF, or 4.46 × longer side)")
    parser.add_argument(
        "--smallest",
        type=_fraction,
        default=0.4,
        metavar="F",
        help="leave out people smaller than F × the largest (0.4)",
    )
    parser.add_argument(
        "--report", action="store_true", help="print how far projected joints lie from the detected ones"
    )
    _model_arguments(parser)


def _recover(options: argparse.Namespace) -> int:
    _needs_output(options, options.report)
    several = len(options.pictures) > 1 or _is_folder(options.output)
    outputs = _names(options.pictures, options.output, f".{options.format}", several)
    overlays = _names(options.pictures, options.overlay, ".png", several)
    recoverer = _load(options)
    code = 0
    with _bar(len(options.pictures), "pictures", several) as pictures_done:
        for path, output, overlay in zip(options.pictures, outputs, overlays, strict=True):
            try:
                with _steps(Path(path).name) as progress:
                    recovery = recoverer.recover(
                        path,
                        hypotheses=options.hypotheses,
                        seed=options.seed,
                        steps=options.steps,
                        temperature=options.temperature,
                        focal_length=options.focal,
                        smallest=options.smallest,
                        refine=options.refine,
                        progress=progress,
                    )
                recovery.meta["picture"] = Path(path).name
                _write(recovery, recoverer, output, overlay, options, path)
                _say(f"{path}: {_people(recovery)}")
                if options.report:
                    _report(recoverer, recovery)
            except PictureError as error:
                code = _complain(error)
            pictures_done()
    return code


def _people(recovery: Recovery) -> str:
    count = len(recovery.people)
    return "no person found" if count == 0 else "1 person" if count == 1 else f"{count} people"


def _report(recoverer, recovery: Recovery) -> None:
    for number, errors in enumerate(recoverer.landmark_errors(recovery), 1):
        best = np.nanmin(errors) if np.isfinite(errors).any() else np.nan
        further = f", nearest of {len(errors)}: {100 * best:.1f} %" if len(errors) > 1 else ""
        _say(f"  person {number}: main joints {100 * errors[0]:.1f} % of the box side from the detected ones{further}")


# random, resample ---------------------------------------------------------------------------------------------------


def _random_arguments(parser: argparse.ArgumentParser) -> None:
    _sampling_arguments(parser, hypotheses=1, steps=20, temperature=1.3, what="how many people")
    _output_arguments(parser)
    _model_arguments(parser)


def _random(options: argparse.Namespace) -> int:
    _needs_output(options)
    recoverer = _load(options)
    with _steps("random people") as progress:
        recovery = recoverer.random(
            options.hypotheses,
            options.seed,
            steps=options.steps,
            temperature=options.temperature,
            refine=options.refine,
            progress=progress,
        )
    _write(recovery, recoverer, options.output, options.overlay, options)
    _say(f"{_people(recovery)} made up")
    return 0


def _resample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", metavar="RESULT.npz", help="what `mega recover` or `mega random` wrote")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PART",
        help="body part to keep, or arms, hands, legs, feet; repeat",
    )
    parser.add_argument("--hypothesis", type=_count_from_0, default=0, metavar="K", help="whose parts are kept (0)")
    parser.add_argument("--picture", help="the picture, for models that look at it and for --overlay")
    _sampling_arguments(parser, hypotheses=5, steps=5, temperature=1.0)
    _output_arguments(parser)
    _model_arguments(parser)


def _resample(options: argparse.Namespace) -> int:
    _needs_output(options)
    before = Recovery.load(options.result)
    keep = [part for words in options.keep for part in words.split(",") if part]
    recoverer = _load(options)
    with _steps("resampling") as progress:
        recovery = recoverer.resample(
            before,
            keep=keep,
            hypothesis=options.hypothesis,
            hypotheses=options.hypotheses,
            seed=options.seed,
            steps=options.steps,
            temperature=options.temperature,
            progress=progress,
            picture=options.picture,
            refine=options.refine,
        )
    _write(recovery, recoverer, options.output, options.overlay, options, options.picture)
    _say(f"{_people(recovery)} resampled")
    return 0


# info ---------------------------------------------------------------------------------------------------------------


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="default", metavar="FOLDER", help="default, or a model folder")


def _info(options: argparse.Namespace) -> int:
    import platform

    import torch

    from . import checkpoint, importing

    print(f"mega         {__version__}")
    print(f"Python       {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}")
    devices = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"devices      {', '.join(devices)}")
    loaded = checkpoint.load(options.model)
    print(f"model        {loaded.config['name']} ({loaded.folder})")
    if loaded.body is not None:
        print(f"body         {loaded.config['body']['kind']}, {loaded.body.vertex_count} vertices")
        print(f"body parts   {', '.join(loaded.body.part_names)}")
    if loaded.tokenizer is not None:
        print(f"tokenizer    {loaded.tokenizer.token_count} tokens × {loaded.tokenizer.code_count} codes")
    if loaded.model is not None:
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        print(f"network      {loaded.config['model']['kind']}, {count / 1e6:.1f} million parameters")
    for line in importing.origins(loaded.config):
        print(f"from         {line}")
    card = loaded.folder / "MODEL_CARD.md"
    if card.is_file():
        print(f"how good     {card}")
    for line in importing.missing(loaded.config):
        print(f"missing      {line}")
    return 0


# batch, import, serve: their modules say what they take ---------------------------------------------------------


def _batch_arguments(parser: argparse.ArgumentParser) -> None:
    from .batch import add_arguments

    add_arguments(parser)
    _sampling_arguments(parser, hypotheses=1, steps=5, temperature=1.0)
    _model_arguments(parser)


def _batch(options: argparse.Namespace) -> int:
    from .batch import main as batch

    return batch(options)


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    from .explain import add_arguments

    add_arguments(parser)
    _sampling_arguments(parser, hypotheses=25, steps=5, temperature=1.0)
    _model_arguments(parser)


def _explain(options: argparse.Namespace) -> int:
    from .explain import main as explain

    recoverer = _load(options)
    with _steps("explaining") as progress:
        written = explain(options, recoverer, progress)
    _say(f"{len(written)} sheets in {options.output}")
    return 0


def _video_arguments(parser: argparse.ArgumentParser) -> None:
    from .video.command import add_arguments

    add_arguments(parser)
    _sampling_arguments(parser, hypotheses=5, steps=2, temperature=1.0)
    _model_arguments(parser)


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
    "recover": Command("recover the people in pictures as meshes", _recover_arguments, _recover),
    "random": Command("make up people out of nothing", _random_arguments, _random),
    "resample": Command("keep parts of a result's bodies and draw the rest anew", _resample_arguments, _resample),
    "video": Command("recover the moving people of a clip", _video_arguments, _video),
    "explain": Command("draw how an answer comes about and how sure it is", _explain_arguments, _explain),
    "batch": Command("recover all pictures and videos of a folder, here or on a cluster", _batch_arguments, _batch),
    "info": Command("say what is installed and what the model is", _info_arguments, _info),
    "import": Command("make a model folder of the authors' files", _import_arguments, _import),
    "serve": Command("answer requests over HTTP, for Blender and other programs", _serve_arguments, _serve),
}


# Options and outputs that commands share ----------------------------------------------------------------------------


def _sampling_arguments(
    parser: argparse.ArgumentParser,
    hypotheses: int,
    steps: int,
    temperature: float,
    what: str = "hypotheses per person",
) -> None:
    add = parser.add_argument
    add("-n", dest="hypotheses", type=_count, default=hypotheses, metavar="N", help=f"{what} ({hypotheses})")
    add("--seed", type=_count_from_0, default=0, metavar="S", help="same seed, same result (0)")
    add("--steps", type=_count, default=steps, metavar="K", help=f"sampling steps ({steps})")
    add("--temperature", type=_not_negative, default=temperature, metavar="A", help=f"diversity ({temperature})")


def _output_arguments(parser: argparse.ArgumentParser, folder: str = "") -> None:
    endings = f"{', '.join(export.FORMATS[:-1])} or {export.FORMATS[-1]}"
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="; ".join(filter(None, (f"a file ending in {endings}", folder)))
    )
    parser.add_argument("--overlay", metavar="OUT.png", help="; ".join(filter(None, ("draw the meshes", folder))))
    parser.add_argument("--no-refine", dest="refine", action="store_false", help="meshes as the tokens say: no rig")
    parser.add_argument("--opacity", type=_fraction, default=0.9, metavar="A", help="of the drawn meshes, 0 to 1 (0.9)")
    parser.add_argument("--spread", action="store_true", help="draw them coloured by how unsure the model is")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="default", metavar="FOLDER", help="default, or a model folder")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is faster and rougher"
    )


def _needs_output(options: argparse.Namespace, other: bool = False) -> None:
    if options.output is None and options.overlay is None and not other:
        raise OutputError("nothing to write: give -o OUT or --overlay OUT.png")


def _load(options: argparse.Namespace):
    """Load the model; its import of torch takes seconds, so options are checked before."""
    from . import load

    return load(options.model, device=options.device, precision=options.precision)


def _is_folder(output: str | None) -> bool:
    return output is not None and (output.endswith(("/", os.sep)) or Path(output).is_dir())


def _names(pictures: list[str], output: str | None, ending: str, several: bool) -> list[Path | None]:
    """Where the result for each picture goes: OUT itself, or in the folder OUT a file named after the picture."""
    if output is None:
        return [None] * len(pictures)
    if not several:
        if ending != ".png":
            export.check_format(output)
        elif Path(output).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise OutputError(f"'{output}' must end in .png, .jpg or .webp")
        return [Path(output)]
    if Path(output).suffix.lower() in (*export.FORMATS, ".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(f"several pictures need a folder, not the one file '{output}'")
    used: set[str] = set()
    names = []
    for picture in pictures:
        stem = name = Path(picture).stem or "picture"
        number = 2
        while name in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name)
        names.append(Path(output) / f"{name}{ending}")
    return names


def _write(
    recovery: Recovery, recoverer, output, overlay, options: argparse.Namespace, picture: str | None = None
) -> None:
    """Write the result and the drawing, whichever are asked for."""
    if output is not None:
        from .protocol import topology_of

        export.save(recovery, output, topology_of(recoverer.body))
    if overlay is not None:
        import cv2

        from . import overlay as drawing
        from . import pictures

        if picture is None:
            width, height = recovery.picture_size
            background = np.full((height, width, 3), 236, np.uint8)
        else:
            background = pictures.read(picture)
        drawn = drawing.overlay(recovery, background, opacity=options.opacity, spread=options.spread)
        done, data = cv2.imencode(Path(overlay).suffix.lower(), drawn[..., ::-1])
        if not done:
            raise OutputError(f"'{overlay}' cannot be written as a picture: choose a name ending in .png")
        atomic_write(overlay, lambda stream: stream.write(data.tobytes()))


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)


@contextmanager
def _bar(total: int, text: str, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error over a number of things; gives what to call after each."""
    from tqdm import tqdm

    with tqdm(total=total, desc=text, file=sys.stderr, disable=None if shown else True, leave=False) as bar:
        yield lambda: bar.update(1)


@contextmanager
def _steps(text: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error for one piece of work; gives the `progress` function to hand on."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
    with tqdm(total=100, desc=text, file=sys.stderr, disable=None, leave=False, bar_format=form) as bar:

        def progress(fraction: float, what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(round(100 * fraction) - bar.n)

        yield progress


def _number(low: float, high: float, whole: bool) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            most = f" to {high:g}" if np.isfinite(high) else " or more"
            raise argparse.ArgumentTypeError(f"'{text}' is not {kind} from {low:g}{most}")
        return value

    return parse


_count, _count_from_0 = _number(1, 10_000, True), _number(0, 2**31 - 1, True)
_positive, _not_negative, _fraction = _number(1e-3, np.inf, False), _number(0, np.inf, False), _number(0, 1, False)
