"""The parameter table: the paper's figures, counted."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import nn

from barnsight_export.cli import main
from barnsight_export.networks.parameters import PAPER, count


@pytest.fixture(scope="module")
def table() -> dict[str, float]:
    """What `params --preset orin --json` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["params", "--preset", "orin", "--json"]) == 0
    found: dict[str, float] = json.loads(printed.getvalue())
    return found


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 2)
    assert count(nn.ModuleList([layer, layer])) == 8


def test_the_figures_are_the_papers(table: dict[str, float]) -> None:
    assert table["trunk"] == pytest.approx(40.66e6, abs=0.01e6)
    assert table["system"] == pytest.approx(59.98e6, abs=0.05e6)
    assert round(table["ratio"], 2) == 7.77
    assert table["paper"] == PAPER
    for name in ("neck", "mask_decoder", "memory_attention", "memory_encoder"):
        assert table[name] == pytest.approx(PAPER[name], abs=0.006e6), name
    assert table["teacher_trunk"] == pytest.approx(446.2e6, abs=0.05e6)
    assert table["teacher_system"] == pytest.approx(465.78e6, abs=0.01e6)
    assert table["detector"] == pytest.approx(24.53e6, abs=0.01e6)
    assert table["embedder"] == pytest.approx(21.6e6, abs=0.05e6)
    assert table["behavior"] == pytest.approx(0.56e6, abs=0.005e6)


def test_the_sums_add_up(table: dict[str, float]) -> None:
    heads = sum(table[name] for name in ("neck", "mask_decoder", "memory_attention", "memory_encoder"))
    assert table["system"] == table["trunk"] + heads
    assert table["teacher_system"] == table["teacher_trunk"] + heads + table["uncounted"]
    assert table["ratio"] == pytest.approx(table["teacher_system"] / table["system"])


def test_the_plain_table_stands_beside_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "--preset", "orin-b"]) == 0
    rows = {name: figures for name, *figures in (line.split() for line in capsys.readouterr().out.splitlines())}
    assert rows["teacher_system"] == ["465.78", "465.78"]
    assert rows["trunk"] == ["20.69", "40.66"]
    assert float(rows["ratio"][0]) > 12


def test_a_preset_without_stock_heads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "--preset", "nano"]) == 64
    assert "nano" in capsys.readouterr().err
