"""Options that commands share, and what their values may be."""

import argparse
from collections.abc import Callable

import numpy as np

from mega_backend import export


def _number(low: float, high: float, whole: bool) -> Callable[[str], float]:
    """What reads a number within bounds, for argparse's `type`."""

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


count, count_from_0 = _number(1, 10_000, True), _number(0, 2**31 - 1, True)
positive, not_negative, fraction = _number(1e-3, np.inf, False), _number(0, np.inf, False), _number(0, 1, False)


def sampling_arguments(
    parser: argparse.ArgumentParser,
    hypotheses: int,
    steps: int,
    temperature: float,
    what: str = "hypotheses per person",
) -> None:
    """-n, --seed, --steps and --temperature with these defaults; what: that -n counts."""
    add = parser.add_argument
    add("-n", dest="hypotheses", type=count, default=hypotheses, metavar="N", help=f"{what} ({hypotheses})")
    add("--seed", type=count_from_0, default=0, metavar="S", help="same seed, same result (0)")
    add("--steps", type=count, default=steps, metavar="K", help=f"sampling steps ({steps})")
    add("--temperature", type=not_negative, default=temperature, metavar="A", help=f"diversity ({temperature})")


def sampling(options: argparse.Namespace) -> dict[str, float]:
    """What `sampling_arguments` read, but for -n, as `Recoverer` takes it."""
    return {"seed": options.seed, "steps": options.steps, "temperature": options.temperature}


def output_arguments(parser: argparse.ArgumentParser, folder: str = "") -> None:
    """-o, --overlay and how meshes are drawn; folder: when they may name folders, in words."""
    endings = f"{', '.join(export.FORMATS[:-1])} or {export.FORMATS[-1]}"
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="; ".join(filter(None, (f"a file ending in {endings}", folder)))
    )
    parser.add_argument("--overlay", metavar="OUT.png", help="; ".join(filter(None, ("draw the meshes", folder))))
    parser.add_argument("--no-refine", dest="refine", action="store_false", help="meshes as the tokens say: no rig")
    parser.add_argument("--opacity", type=fraction, default=0.9, metavar="A", help="of the drawn meshes, 0 to 1 (0.9)")
    parser.add_argument("--spread", action="store_true", help="draw them coloured by how unsure the model is")


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --device and --precision."""
    parser.add_argument("--model", default="default", metavar="FOLDER", help="default, or a model folder")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is faster and rougher"
    )
