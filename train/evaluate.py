"""Evaluations on held-out data: `python -m train.evaluate tokenizer|mega|… [options]`.

Every module of `train/evaluation` is a subcommand: it defines `HELP`, `configure(parser)` and `run(arguments)`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil

from train import command, evaluation


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__.splitlines()[0])
    commands = cli.add_subparsers(dest="command", required=True)
    for module in sorted(pkgutil.iter_modules(evaluation.__path__), key=lambda found: found.name):
        stage = importlib.import_module(f"{evaluation.__name__}.{module.name}")
        command = commands.add_parser(module.name, help=stage.HELP, description=stage.__doc__.splitlines()[0])
        stage.configure(command)
        command.set_defaults(run=stage.run)
    chosen = cli.parse_args(arguments)
    chosen.run(chosen)


if __name__ == "__main__":
    command.run(main)
