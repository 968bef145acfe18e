"""What the notebooks cannot show of helpers/plots.py: most of it they run themselves."""

import matplotlib.pyplot as plt
import pytest

from helpers import plots


@pytest.fixture
def calls(monkeypatch):
    """A `draw` for sliders, and the arguments that it was called with."""
    seen = []

    def draw(width=0.2, height=0.5):
        seen.append((width, height))
        return plt.figure()

    return draw, seen


def test_a_slider_draws_where_somebody_is_there(calls, monkeypatch, capsys):
    draw, seen = calls
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.delenv("COURSE_UNATTENDED", raising=False)
    plots.slider(draw, width=(0.0, 1.0, 0.1))
    assert seen == [(0.2, 0.5)]
    assert not plt.get_fignums()


def test_no_slider_where_nobody_is_there(calls, monkeypatch):
    draw, seen = calls
    plots.slider(draw, width=(0.0, 1.0, 0.1))
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.setenv("COURSE_UNATTENDED", "1")
    plots.slider(draw, width=(0.0, 1.0, 0.1))
    assert seen == []


def test_a_microscope_shows_each_token_and_number_once():
    tokens = [f" t{number}" for number in range(45)]
    figure = plots.microscope(tokens, {"ratio": [1.0] * 44 + [2.5], "log π": [-0.004] * 45}, centres={"ratio": 1.0})
    shown = [label.get_text() for axis in figure.axes for label in axis.get_xticklabels()]
    numbers = [text.get_text() for axis in figure.axes for text in axis.texts]
    plt.close(figure)
    assert shown == [token.replace(" ", "␣") for token in tokens]
    assert numbers.count("1.00") == 44 and numbers.count("2.50") == 1 and numbers.count(".00") == 45
    assert [len(axis.get_xticks()) for axis in figure.axes] == [15, 15, 15]
