"""Every figure of the course: one style, a caption computed from the data, a live curve while a trainer runs."""

import html
import os
import tempfile
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import HTML, Image, display
from ipywidgets import interact
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from transformers import TrainerCallback

from helpers.tldr import kept_facts, whole_sentences

plt.style.use(Path(__file__).with_name("course.mplstyle"))


def show(figure, caption):
    """Show a figure or a movie and print its caption: a sentence computed from the data, so that it is checked and can be read aloud."""
    display(figure)
    if isinstance(figure, Figure):
        plt.close(figure)
    print("Figure:", caption)


class LiveCurve(TrainerCallback):
    """A progress bar and a curve of one logged metric that grow while a trainer runs in a notebook; silent elsewhere and under pytest.

    metric: a key of `trainer.state.log_history`, e.g. "reward"; None for the bar alone. Give an instance in the trainer's `callbacks`.
    """

    def __init__(self, metric="reward"):
        self.metric = metric

    def on_train_begin(self, args, state, control, **kwargs):
        self.quiet = "PYTEST_VERSION" in os.environ or get_ipython() is None
        if not self.quiet:
            self.bar = display(self._bar(state), display_id=True)
            self.plot = self.metric and display(HTML(""), display_id=True)

    def on_step_end(self, args, state, control, **kwargs):
        if not self.quiet:
            self.bar.update(self._bar(state))

    def on_log(self, args, state, control, **kwargs):
        if self.metric and not self.quiet:
            figure = curves(state.log_history, [self.metric])
            self.plot.update(figure)
            plt.close(figure)

    def _bar(self, state):
        return HTML(f'<progress value="{state.global_step}" max="{state.max_steps}"></progress> step {state.global_step} of {state.max_steps}')


KINDS = {  # of boxes in a diagram: colour, line, line width
    "trained": ("#D6E8F5", "-", 2.2),
    "frozen": ("#EEEEEE", "--", 1.5),
    "data": ("white", "-", 0.8),
    "computed": ("#FFF3D6", ":", 1.5),
}


def diagram(boxes, arrows, size=(9, 4)):
    """Boxes joined by arrows; returns the figure.

    boxes: text -> (x, y, kind), the centre in inches from the lower left, kind one of `KINDS`. A legend names the kinds.
    arrows: (from, to), by the boxes' texts; both may lie side by side or one above the other.
    """
    figure, axis = plt.subplots(figsize=size)
    axis.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axis.axis("off")
    drawn = {}
    for text, (x, y, kind) in boxes.items():
        colour, line, width = KINDS[kind]
        style = dict(boxstyle="round,pad=0.4", facecolor=colour, linestyle=line, linewidth=width)
        drawn[text] = axis.text(x, y, text, ha="center", va="center", bbox=style, fontsize=10, zorder=2)
    for start, end in arrows:
        tip = dict(arrowstyle="-|>", color="black", linewidth=1.2, patchA=drawn[start].get_bbox_patch(), patchB=drawn[end].get_bbox_patch(), shrinkA=2, shrinkB=2)
        axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=tip, zorder=1)
    kinds = [kind for kind in KINDS if kind in {box[2] for box in boxes.values()}]
    keys = [plt.Rectangle((0, 0), 1, 1, facecolor=KINDS[kind][0], edgecolor="black", linestyle=KINDS[kind][1], linewidth=KINDS[kind][2]) for kind in kinds]
    axis.legend(keys, kinds, loc="lower center", bbox_to_anchor=(0.5, -0.12), ncols=len(kinds), fontsize=9)
    return figure


def ppo_and_grpo():
    """PPO above, GRPO below, part by part: `(figure, {name: its models})`."""
    above = {
        "prompt": (0.7, 4.6, "data"),
        "policy": (2.2, 4.6, "trained"),
        "1 completion": (4.0, 4.6, "data"),
        "reward": (5.9, 5.4, "frozen"),
        "reference": (5.9, 4.6, "frozen"),
        "value model": (5.9, 3.7, "trained"),
        "reward\n− β KL": (7.6, 5.0, "computed"),
        "GAE": (7.6, 3.7, "computed"),
        "advantage\nper token": (9.3, 4.3, "computed"),
        "clipped loss\n+ value loss": (11.2, 4.3, "computed"),
    }
    flow = [("prompt", "policy"), ("policy", "1 completion"), ("1 completion", "reward"), ("1 completion", "reference"), ("1 completion", "value model")]
    flow += [("reward", "reward\n− β KL"), ("reference", "reward\n− β KL"), ("reward\n− β KL", "GAE"), ("value model", "GAE")]
    flow += [("GAE", "advantage\nper token"), ("advantage\nper token", "clipped loss\n+ value loss")]
    below = {
        "prompt ": (0.7, 1.6, "data"),
        "policy ": (2.2, 1.6, "trained"),
        "G completions": (4.0, 1.6, "data"),
        "reward ": (5.9, 2.1, "frozen"),
        "reference ": (5.9, 1.1, "frozen"),
        "group\ncomputation": (7.6, 2.1, "computed"),
        "KL": (9.3, 1.1, "computed"),
        "advantage\nper completion": (9.3, 2.1, "computed"),
        "clipped loss\n+ β KL": (11.2, 1.6, "computed"),
    }
    flow += [("prompt ", "policy "), ("policy ", "G completions"), ("G completions", "reward "), ("G completions", "reference ")]
    flow += [("reward ", "group\ncomputation"), ("group\ncomputation", "advantage\nper completion"), ("reference ", "KL")]
    flow += [("advantage\nper completion", "clipped loss\n+ β KL"), ("KL", "clipped loss\n+ β KL")]
    models = {name: {box.strip() for box, (_, _, kind) in part.items() if kind in ("trained", "frozen")} for name, part in (("PPO", above), ("GRPO", below))}
    return diagram(above | below, flow, size=(12.2, 6)), models


def token_map(tokens, by_model, label="probability"):
    """A row for each model, a cell for each token of one text, coloured by a number from 0 to 1 that is also printed in it; returns the figure.

    tokens: the tokens as text. by_model: name -> one value a token.
    """
    figure, axis = plt.subplots(figsize=(max(6, 0.62 * len(tokens)), 0.5 * len(by_model) + 1.3))
    values = np.array(list(by_model.values()))
    axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=8, color="white" if value < 0.55 else "black")
    axis.set(yticks=range(len(by_model)), yticklabels=by_model, xticks=range(len(tokens)), title=label)
    axis.set_xticklabels([repr(token)[1:-1].replace(" ", "␣") for token in tokens], rotation=45, ha="right")
    axis.grid(False)
    return figure


def microscope(tokens, rows, centres=None, framed=(), per_line=20):
    """The tokens of one completion, line by line, and below each a number for each row, coloured by its distance from the row's centre; returns the figure.

    tokens: the tokens as text. rows: label -> one value a token. centres: label -> the value without colour, by default
    0; rows of one centre given here share their scale. framed: places of tokens with a frame around their numbers.
    per_line: at most so many tokens in a line.
    """
    lines = -(-len(tokens) // per_line)
    per_line = -(-len(tokens) // lines)
    centres = centres or {}
    away = {label: np.asarray(row, dtype=float) - centres.get(label, 0.0) for label, row in rows.items()}
    scale = {label: max(np.abs(away[other]).max() for other in rows if other == label or (label in centres and centres.get(other) == centres[label])) for label in rows}
    figure, axes = plt.subplots(lines, 1, figsize=(13, lines * (0.3 * len(rows) + 0.6)), dpi=72, squeeze=False)
    for line, axis in enumerate(axes[:, 0]):
        own = range(line * per_line, min((line + 1) * per_line, len(tokens)))
        for place, label in enumerate(rows):
            colour = away[label][own] / max(scale[label], 1e-9)
            axis.imshow(colour[None], cmap="PuOr", vmin=-1.2, vmax=1.2, extent=(-0.5, len(own) - 0.5, place + 0.5, place - 0.5), aspect="auto")
            for column, at in enumerate(own):
                text = f"{float(rows[label][at]):.2f}".replace("0.", ".", 1).replace("-.00", ".00")
                axis.text(column, place, text, ha="center", va="center", fontsize=8, color="white" if abs(colour[column]) > 0.75 else "black")
        for column in (at - own.start for at in framed if at in own):
            axis.add_patch(plt.Rectangle((column - 0.47, -0.47), 0.94, len(rows) - 0.06, fill=False, linewidth=2))
        axis.set(xlim=(-0.5, per_line - 0.5), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows, xticks=range(len(own)))
        axis.set_xticklabels([repr(tokens[at])[1:-1].replace(" ", "␣") for at in own], fontsize=9)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure


def slider(draw, **values):
    """Sliders that call `draw` anew, which returns a figure; nothing where nobody can move them (pytest, `make run`).

    values: name of an argument of `draw` -> (lowest, highest, step); it starts at the argument's default.
    """
    if {"PYTEST_VERSION", "COURSE_UNATTENDED"} & os.environ.keys():
        return

    @wraps(draw)
    def redraw(**chosen):
        figure = draw(**chosen)
        display(figure)
        plt.close(figure)

    interact(redraw, **values)


def movie(draw, frames, size=(8, 2.6), per_second=6):
    """An animated GIF, which every notebook viewer plays without JavaScript. draw(axis, frame) draws one frame on an empty axis."""
    figure, axis = plt.subplots(figsize=size)

    def update(frame):
        axis.clear()
        draw(axis, frame)

    animation = FuncAnimation(figure, update, frames=frames)
    with tempfile.TemporaryDirectory() as folder:
        animation.save(Path(folder) / "movie.gif", writer=PillowWriter(fps=per_second), dpi=60)
        image = (Path(folder) / "movie.gif").read_bytes()
    plt.close(figure)
    return Image(data=image, format="gif")


def bands(by_name, x, xlabel, ylabel):
    """A line for each name, the mean over its runs, in a band from the lowest to the highest run; returns the figure.

    by_name: name -> array of shape (runs, points).
    """
    figure, axis = plt.subplots()
    for number, (name, runs) in enumerate(by_name.items()):
        runs = np.asarray(runs)
        axis.plot(x, runs.mean(0), marker="os^v"[number % 4], label=name, markevery=max(1, len(x) // 15))
        axis.fill_between(x, runs.min(0), runs.max(0), color=f"C{number}", alpha=0.15)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure


def curves(log_history, metrics, columns=3):
    """Logged metrics over the optimizer steps, one panel each. log_history: `trainer.state.log_history`; returns the figure."""
    rows = -(-len(metrics) // columns)
    columns = min(columns, len(metrics))
    figure, axes = plt.subplots(rows, columns, figsize=(8 if columns == 1 else 4 * columns, 3 * rows), squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        points = [(entry["step"], entry[metric]) for entry in log_history if metric in entry]
        axis.plot(*zip(*points, strict=True) if points else ([], []), marker="o")
        axis.set(title=metric, xlabel="optimizer step")
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    return figure


def hacks(logs, rows, metrics, parted, window=5):
    """A row for each hack and its cures, a panel for each metric, averaged over `window` steps; returns the figure.

    logs: name -> data frame, a row for each step. rows: lists of names, the hacked run first. metrics: column -> label.
    parted: name -> the step where reward and facts part, drawn as a dotted line, or None. A cure's `reward` is another
    sum, so only the first run's is drawn.
    """
    figure, axes = plt.subplots(len(rows), len(metrics), figsize=(4 * len(metrics), 2.5 * len(rows)), squeeze=False)
    for place, (names, line) in enumerate(zip(rows, axes, strict=True)):
        for axis, (metric, label) in zip(line, metrics.items(), strict=True):
            for number, name in enumerate(names[:1] if metric == "reward" else names):
                axis.plot(logs[name][metric].rolling(window).mean(), marker="os^v"[number], markevery=4, color=f"C{number}", label=name)
            if parted[names[0]]:
                axis.axvline(parted[names[0]], color="black", linestyle=":", linewidth=1.2, label="they part")
            axis.set(title="" if place else label, xlabel="optimizer step" if place == len(rows) - 1 else "")
            axis.xaxis.get_major_locator().set_params(integer=True)
        line[0].set_ylabel(names[0])
        line[-1].legend(fontsize=8)
    return figure


def groups(rewards, advantages, label="advantage"):
    """The rewards of one group and what is made of them, a bar for each completion; returns the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, values, text in zip(axes, (rewards, advantages), ("reward", label), strict=True):
        axis.barh(range(1, len(values) + 1), values, color=["C0" if value > 0 else "C1" for value in advantages])
        axis.set(xlabel=text)
    axes[0].axvline(np.mean(rewards), color="black", linestyle="--", linewidth=1)
    axes[0].set(ylabel="completion", yticks=range(1, len(rewards) + 1), title="dashed: the group's mean")
    axes[1].axvline(0, color="black", linestyle="--", linewidth=1)
    return figure


def frontier(runs, before, x, metrics):
    """A panel for each metric over `x`: runs joined seed by seed, coloured and marked by beta, and a star for the model before; returns the figure.

    runs: a data frame with the columns beta, seed, x and the metrics. before: a mapping with x and the metrics. metrics: column -> label.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.1 * len(metrics), 3.6))
    betas = sorted(runs["beta"].unique())
    shades = plt.colormaps["cividis"](np.linspace(0, 0.9, len(betas)))
    for axis, (metric, label) in zip(axes, metrics.items(), strict=True):
        for _, seed in runs.sort_values("beta").groupby("seed"):
            axis.plot(seed[x], seed[metric], color="gray", linewidth=0.8, linestyle="-", zorder=1)
        for beta, shade, marker in zip(betas, shades, "osd^v", strict=True):
            points = runs[runs["beta"] == beta]
            axis.scatter(points[x], points[metric], color=shade, marker=marker, zorder=2, label=f"β = {beta:g}")
        axis.scatter(before[x], before[metric], color="black", marker="*", s=90, zorder=3, label="before RL")
        axis.set(xlabel="drift: KL from the reference\n(nats per token)", title=label)
    axes[0].legend(fontsize=8)
    return figure


def bars(panels, log=(), sharex=False):
    """Panels of horizontal bars, each with its number; returns the figure. panels: title -> {name: value}; log: titles with a log scale; sharex: one scale for all."""
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 1 + 0.5 * max(map(len, panels.values()))), squeeze=False, sharex=sharex)
    lowest = min(value for values in panels.values() for value in values.values())
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        drawn = axis.barh(list(values), list(values.values()), color=[f"C{number}" for number in range(len(values))], height=0.6)
        axis.bar_label(drawn, fmt="{:.3g}", padding=3)
        axis.set(title=title, xscale="log" if title in log else "linear")
        axis.margins(x=0.15 if lowest >= 0 else 0.35)  # room for a negative bar's number
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    return figure


def stacked(parts, xlabel):
    """A horizontal bar for each name, made of its parts; returns the figure. parts: name -> {part: value}."""
    figure, axis = plt.subplots(figsize=(10, 1.2 + 0.6 * len(parts)))
    left = np.zeros(len(parts))
    for number, part in enumerate(next(iter(parts.values()))):
        values = np.array([values[part] for values in parts.values()])
        axis.barh(list(parts), values, left=left, color=f"C{number}", hatch=("", "//", "..", "xx")[number % 4], edgecolor="white", height=0.6, label=part)
        left += values
    axis.set(xlabel=xlabel)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=9)
    return figure


def lengths(by_model, target=200):
    """Lengths of completions, in characters: a row of dots for each model, one dot a completion; returns the figure.

    by_model: name -> array of lengths.
    """
    figure, axis = plt.subplots(figsize=(9, 0.9 * len(by_model) + 1))
    rng = np.random.default_rng(0)
    for row, values in enumerate(by_model.values()):
        axis.plot(values, row + rng.uniform(-0.25, 0.25, len(values)), ".", alpha=0.5, color=f"C{row}")
        axis.plot([np.mean(values)] * 2, [row - 0.38, row + 0.38], color="black", linestyle="-")
    axis.axvline(target, color="gray", linestyle="--", linewidth=1)
    axis.set(xlabel=f"length in characters (dashed: the target, {target}; black: the mean)", yticks=range(len(by_model)), yticklabels=by_model)
    axis.set_xlim(left=0)
    axis.invert_yaxis()
    return figure


def acts(summary):
    """A panel for each metric, a bar for each model, with its interval; returns the figure.

    summary: metric label -> {model: (mean, low, high)}.
    """
    figure, axes = plt.subplots(1, len(summary), figsize=(4 * len(summary), 3.4))
    for axis, (metric, by_model) in zip(np.atleast_1d(axes), summary.items(), strict=True):
        for row, (mean, low, high) in enumerate(by_model.values()):
            hatch = ("", "//", "..", "xx", "\\\\", "++")[row % 6]
            axis.barh(row, mean, xerr=[[max(0, mean - low)], [max(0, high - mean)]], color=f"C{row}", hatch=hatch, edgecolor="white", capsize=3)
            axis.annotate(f" {mean:.3g}", (max(mean, high), row), va="center")
        axis.set(title=metric, yticks=range(len(by_model)), yticklabels=by_model if axis is np.atleast_1d(axes)[0] else [])
        axis.margins(x=0.18)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    return figure


def marked(text, facts):
    """A completion as HTML: kept facts bold and underlined, broken sentences struck through in red, lost facts listed below."""
    kept = kept_facts(text, facts)
    values = facts if isinstance(facts, dict) else {word: word for word in facts}
    pieces = []
    for sentence, whole in whole_sentences(text):
        piece = html.escape(sentence, quote=False)
        for slot in sorted((slot for slot in kept if kept[slot]), key=lambda slot: -len(values[slot])):
            for value in (html.escape(values[slot], quote=False), html.escape(values[slot][:1].upper() + values[slot][1:], quote=False)):
                piece = piece.replace(value, f"<b><u>{value}</u></b>")
        pieces.append(piece if whole or not isinstance(facts, dict) else f'<s style="color:#D55E00">{piece}</s>')
    lost = ", ".join(f"{slot} ({html.escape(values[slot])})" if isinstance(facts, dict) else html.escape(slot) for slot in kept if not kept[slot])
    return HTML(f"<p>{' '.join(pieces) or '(nothing)'}</p><p>Lost: {lost or 'nothing'}</p>")
