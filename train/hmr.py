"""Train what recovers people, from landmarks (the bundled model) or from pictures (the papers'): `stage` says which.

    python -m train.hmr regressor --run runs/regressor data.bank=bank.pt data.validation=val.pt
    python -m train.hmr masked --run runs/masked data.bank=bank.pt … start=runs/regressor tokenizer=MODEL_FOLDER
    python -m train.hmr mega_hrnet --run runs/mega_hrnet tokenizer=MODEL_FOLDER                (see `train.images`)

Landmarks → tokens (`train.landmarks`) has two stages, the regressor (minutes) and the masked model on top of it. Bodies
come from a bank (`train.data.bank`), views of them are drawn anew in every step; both stages share these and losses.
"""

from __future__ import annotations

import json

from train import command
from train.config import load, parser, peek
from train.landmarks import HmrConfig, MaskedTask, RegressorTask
from train.loop import seeded, train


def main() -> None:
    cli = parser(__doc__.splitlines()[0], "regressor")
    args = cli.parse_intermixed_args()
    if (stage := str(peek(args.config, args.overrides, "stage"))).startswith("image"):
        from train import image_reader, images

        (image_reader if stage == "image_reader" else images).run(args.config, args.overrides, args.run)
        return
    config = load(HmrConfig, args.config, args.overrides)
    task = seeded({"regressor": RegressorTask, "masked": MaskedTask}[config.stage], config)
    if config.stage == "masked":  # what `train.bundle` builds the model from
        args.run.mkdir(parents=True, exist_ok=True)
        (args.run / "model.json").write_text(json.dumps(task.model.config, indent=2) + "\n")
    train(task, config.loop, args.run)


if __name__ == "__main__":
    command.run(main)
