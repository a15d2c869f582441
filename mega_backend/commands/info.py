"""`mega info`: what is installed and what the model is."""

import argparse

import numpy as np

from mega_backend import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega info`."""
    parser.add_argument("--model", default="default", metavar="FOLDER", help="default, or a model folder")


def main(options: argparse.Namespace) -> int:
    """Run `mega info`; returns the exit code."""
    import platform

    import torch

    from mega_backend import checkpoint, importing

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
