"""Put a trained tokenizer and a trained model into one model folder, as `mega --model` takes it.

python -m train.bundle --tokenizer MODEL_FOLDER --run runs/masked --bank bank.pt --name "…" -o FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mega_backend import checkpoint
from mega_backend.model.mega import Mega
from train import command
from train.config import UserError
from train.data.bank import Bank
from train.landmarks import fit_together
from train.loop import read_checkpoint
from train.weights import averaged_state


def bundle(
    tokenizer: Path, run: Path, bank: Path, config: dict[str, Any], output: Path, name: str, precision: str = "float16"
) -> Path:
    """Write a model folder from a tokenizer's folder and a run's averaged weights; config: that of `Mega`.

    bank: bodies with tokens on which is measured how errors of different places go together (best none trained on).
    """
    source = checkpoint.load(tokenizer)
    model = Mega.from_config(config)
    model.load_state_dict(averaged_state(run, "model."))
    fit_together(model.eval(), Bank.load(bank))
    saved = read_checkpoint(run)
    stage = {"stage": "hmr masked", "steps": saved["step"], "weights": "averaged" if saved["ema"] else "last"}
    settings = {
        "format": checkpoint.FORMAT,
        "name": name,
        "body": source.config["body"],
        "tokenizer": source.tokenizer.config,
        "model": model.config,
        "provenance": [*source.config["provenance"], stage],
        "precision": precision,
    }
    return checkpoint.save(output, settings, checkpoint.collect_state(None, source.tokenizer, model))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--tokenizer", type=Path, required=True, help="model folder that holds the tokenizer")
    cli.add_argument("--run", type=Path, required=True, help="folder of the masked stage's run")
    cli.add_argument("--bank", type=Path, required=True, help="bodies with tokens, best none that were trained on")
    cli.add_argument("--name", default="anny-landmarks")
    cli.add_argument("--precision", default="float16", choices=checkpoint.PRECISIONS)
    cli.add_argument("-o", "--output", type=Path, required=True)
    args = cli.parse_args()
    if not (args.run / "model.json").is_file():
        raise UserError(f"{args.run} holds no model.json: give the folder of a run of `python -m train.hmr masked`")
    config = json.loads((args.run / "model.json").read_text())
    print(bundle(args.tokenizer, args.run, args.bank, config, args.output, args.name, args.precision))


if __name__ == "__main__":
    command.run(main)
