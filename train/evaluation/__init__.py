"""Evaluations on held-out data, one subcommand of `python -m train.evaluate` each."""
