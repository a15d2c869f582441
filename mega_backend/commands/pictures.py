"""`mega recover`, `random` and `resample`: people in pictures, out of nothing, and out of other results."""

import argparse
from pathlib import Path

import numpy as np

from mega_backend import export
from mega_backend.pictures import PictureError
from mega_backend.result import Recovery

from .options import count_from_0, fraction, model_arguments, output_arguments, positive, sampling, sampling_arguments
from .outputs import check_output, is_folder, load_model, names_of, write
from .telling import complain, counting_bar, progress_bar, say


def recover_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega recover`."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="JPEG, PNG, WebP, TIFF, BMP or GIF")
    sampling_arguments(parser, hypotheses=1, steps=5, temperature=1.0)
    output_arguments(parser, "for several pictures a folder")
    parser.add_argument(
        "--format", choices=[ending[1:] for ending in export.FORMATS], default="npz", help="in a folder"
    )
    parser.add_argument("--focal", type=positive, metavar="PIXELS", help="focal length (EXIF, or 4.46 × longer side)")
    parser.add_argument(
        "--smallest",
        type=fraction,
        default=0.4,
        metavar="F",
        help="leave out people smaller than F × the largest (0.4)",
    )
    parser.add_argument(
        "--report", action="store_true", help="print how far projected joints lie from the detected ones"
    )
    model_arguments(parser)


def recover(options: argparse.Namespace) -> int:
    """Run `mega recover`; returns the exit code. A picture that cannot be used does not stop the others."""
    check_output(options, options.report)
    several = len(options.pictures) > 1 or is_folder(options.output)
    outputs = names_of(options.pictures, options.output, f".{options.format}", several)
    overlays = names_of(options.pictures, options.overlay, ".png", several)
    recoverer = load_model(options)
    code = 0
    with counting_bar(len(options.pictures), "pictures", several) as pictures_done:
        for path, output, overlay in zip(options.pictures, outputs, overlays, strict=True):
            try:
                with progress_bar(Path(path).name) as progress:
                    recovery = recoverer.recover(
                        path,
                        hypotheses=options.hypotheses,
                        **sampling(options),
                        focal_length=options.focal,
                        smallest=options.smallest,
                        refine=options.refine,
                        progress=progress,
                    )
                recovery.meta["picture"] = Path(path).name
                write(recovery, recoverer, output, overlay, options, path)
                say(f"{path}: {_people(recovery)}")
                if options.report:
                    _report(recoverer, recovery)
            except PictureError as error:
                code = complain(error)
            pictures_done()
    return code


def _people(recovery: Recovery) -> str:
    count = len(recovery.people)
    return "no person found" if count == 0 else "1 person" if count == 1 else f"{count} people"


def _report(recoverer, recovery: Recovery) -> None:
    for number, errors in enumerate(recoverer.landmark_errors(recovery), 1):
        best = np.nanmin(errors) if np.isfinite(errors).any() else np.nan
        further = f", nearest of {len(errors)}: {100 * best:.1f} %" if len(errors) > 1 else ""
        say(f"  person {number}: main joints {100 * errors[0]:.1f} % of the box side from the detected ones{further}")


def random_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega random`."""
    sampling_arguments(parser, hypotheses=1, steps=20, temperature=1.3, what="how many people")
    output_arguments(parser)
    model_arguments(parser)


def random(options: argparse.Namespace) -> int:
    """Run `mega random`; returns the exit code."""
    check_output(options)
    recoverer = load_model(options)
    with progress_bar("random people") as progress:
        recovery = recoverer.random(options.hypotheses, **sampling(options), refine=options.refine, progress=progress)
    write(recovery, recoverer, options.output, options.overlay, options)
    say(f"{_people(recovery)} made up")
    return 0


def resample_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega resample`."""
    parser.add_argument("result", metavar="RESULT.npz", help="what `mega recover` or `mega random` wrote")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PART",
        help="body part to keep, or arms, hands, legs, feet; repeat",
    )
    parser.add_argument("--hypothesis", type=count_from_0, default=0, metavar="K", help="whose parts are kept (0)")
    parser.add_argument("--picture", help="the picture, for models that look at it and for --overlay")
    sampling_arguments(parser, hypotheses=5, steps=5, temperature=1.0)
    output_arguments(parser)
    model_arguments(parser)


def resample(options: argparse.Namespace) -> int:
    """Run `mega resample`; returns the exit code."""
    check_output(options)
    before = Recovery.load(options.result)
    keep = [part for words in options.keep for part in words.split(",") if part]
    recoverer = load_model(options)
    with progress_bar("resampling") as progress:
        recovery = recoverer.resample(
            before,
            keep=keep,
            hypothesis=options.hypothesis,
            hypotheses=options.hypotheses,
            **sampling(options),
            progress=progress,
            picture=options.picture,
            refine=options.refine,
        )
    write(recovery, recoverer, options.output, options.overlay, options, options.picture)
    say(f"{_people(recovery)} resampled")
    return 0
