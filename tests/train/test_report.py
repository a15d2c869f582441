"""Evaluations leave their numbers, a table and plots beside each other."""

import json

import numpy as np

from train import report


def test_numbers_table_and_plots_lie_beside_each_other(tmp_path, capsys):
    curves = {"one": np.array([1.0, 3.0, 2.0]), "other": np.array([4.0])}
    pair = {"spread, mm": np.ones((2, 3)), "error, mm": np.zeros((2, 3))}
    output = tmp_path / "deep" / "numbers.json"
    report.write(output, {"a": 1.5}, "| a |\n|---|", {"error, mm": curves, "error against spread": pair})
    assert json.loads(output.read_text()) == {"a": 1.5}
    assert output.with_suffix(".md").read_text() == "| a |\n|---|\n"
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "| a |" in capsys.readouterr().out


def test_without_a_file_the_table_is_only_printed(tmp_path, capsys):
    report.write(None, {}, "| b |")
    assert "| b |" in capsys.readouterr().out and not list(tmp_path.iterdir())
