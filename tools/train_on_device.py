"""Train the bundled landmark model on a GPU in pieces of a few minutes, from a bank of bodies and nothing else.

    python -m tools.train_on_device WORK --bank bank.pt --validation validation.pt [--tokenizer FOLDER] [--minutes 9]

Regressor, masked model and model folder, one after the other below WORK; views are drawn on the device, in bfloat16.
After `--minutes` it saves and ends with exit status 75: run the same command again, on any machine that has WORK, and
it goes on bit for bit where it was; 0 means that WORK/model is finished, a folder for `mega --model`.

A bank is made there, too (`python -m train.data.bank --mocap … --workers 16 --tokenizer … --device cuda`). On a machine
lent for a while, let the stages end by the clock: `--regressor loop.minutes=6 loop.steps=1000000 --masked …`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

AGAIN = 75
"""Exit status of a run that is not finished (sysexits.h: a temporary failure, try again)."""
# What a GPU takes more of than the configurations for a CPU say: views a step, and steps.
REGRESSOR = ("data.batch=16384", "loop.steps=20000", "loop.warmup_steps=300", "loop.learning_rate=1e-3")
MASKED = ("data.batch=2048", "loop.steps=4000", "loop.warmup_steps=100", "loop.ema_decay=0.995")


def stages(options: argparse.Namespace) -> list[list[str]]:
    """The modules to run and their arguments, in order."""
    common = [f"data.bank={options.bank}", f"data.validation={options.validation}", f"tokenizer={options.tokenizer}"]
    common += [f"loop.accelerator={options.device}", "loop.precision=bf16-mixed", "loop.threads=null"]
    regressor, masked, model = (options.work / name for name in ("regressor", "masked", "model"))
    sources = ["--tokenizer", str(options.tokenizer), "--run", str(masked)]
    return [
        ["train.hmr", "regressor", *REGRESSOR, *common, *options.regressor, "--run", str(regressor)],
        ["train.hmr", "masked", *MASKED, *common, f"start={regressor}", *options.masked, "--run", str(masked)],
        ["train.bundle", *sources, "--bank", str(options.validation), "-o", str(model)],
    ]


def main(arguments: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("work", type=Path, help="folder of the runs and of the result")
    cli.add_argument("--bank", type=Path, required=True)
    cli.add_argument("--validation", type=Path, required=True)
    cli.add_argument("--tokenizer", default="default", help="model folder")
    cli.add_argument("--minutes", type=float, default=9.0, help="then save and stop")
    cli.add_argument("--device", default="cuda", help="Fabric's name of the accelerator: cuda, cpu, …")
    cli.add_argument("--regressor", nargs="*", default=[], metavar="KEY=VALUE", help="settings of that stage")
    cli.add_argument("--masked", nargs="*", default=[], metavar="KEY=VALUE", help="settings of that stage")
    options = cli.parse_args(arguments)
    stop = threading.Timer(60 * options.minutes, os.kill, (os.getpid(), signal.SIGTERM))
    stop.daemon = True
    stop.start()
    # Between the stages, where no training loop listens.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(AGAIN))
    try:
        for module, *given in stages(options):
            _run(module, given)
    except KeyboardInterrupt as stopped:
        print(stopped)
        return AGAIN
    finally:
        stop.cancel()
        signal.signal(signal.SIGTERM, before)
    return 0


def _run(module: str, arguments: list[str]) -> None:
    """The module's `main` in this process, as if from the command line."""
    import importlib

    before, sys.argv = sys.argv, [module, *arguments]
    try:
        importlib.import_module(module).main()
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
