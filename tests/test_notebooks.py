"""The notebooks as files: how they were run, how big their cells are, what their outputs must not show."""

import ast
import inspect
import re
import statistics

import nbformat
import pytest

from helpers import colab, solutions
from helpers.course import ROOT
from helpers.notebooks import KERNEL, clean

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETUP = None  # the setup cell of the first notebook; all others have the same
LEAK = re.compile(r"(/tmp/|/root/|/home/\w+|site-packages|ipykernel_\d+|0x[0-9a-f]{8,}|\d\d:\d\d:\d\d)")


def read(path):
    return nbformat.read(path, as_version=4)


def texts(cell):
    for output in cell.outputs:
        yield output.get("text", "") + "".join(str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    book = read(request.param)
    book.path, book.code = request.param, [cell for cell in book.cells if cell.cell_type == "code"]
    return book


def test_it_was_run_from_top_to_bottom(notebook):
    assert [cell.execution_count for cell in notebook.code] == list(range(1, len(notebook.code) + 1))
    assert not [cell.id for cell in notebook.code for output in cell.outputs if output.output_type == "error"]


def test_its_metadata_is_clean(notebook):
    nbformat.validate(read(notebook.path))
    assert notebook.metadata == KERNEL and (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.path.stat().st_size < 300_000
    assert nbformat.writes(clean(read(notebook.path))) == nbformat.writes(read(notebook.path))


def test_its_outputs_show_no_paths_times_or_warnings(notebook):
    for cell in notebook.code:
        for text in texts(cell):
            assert not LEAK.search(text), (cell.id, LEAK.search(text))
            assert not re.search(r"\b\w*Warning\b|Traceback", text), cell.id


def test_every_figure_has_a_caption(notebook):
    for cell in notebook.code:
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
        assert not figures or ignored or any("Figure: " in text for text in texts(cell)), cell.id


def test_cells_keep_their_measure(notebook):
    lines = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in notebook.code]
    assert statistics.median(lines[1:]) <= 8 and max(lines) <= 30  # the setup cell is the same everywhere and teaches nothing
    runs = "".join("c" if cell.cell_type == "code" else "m" for cell in notebook.cells)
    assert "cccc" not in runs
    for cell in notebook.code:
        ast.parse(cell.source)


def test_hardly_a_cell_is_ignored(notebook):
    tags = [tag for cell in notebook.code for tag in cell.metadata.get("tags", [])]
    assert tags.count("nbval-ignore-output") <= len(notebook.code) / 10
    assert not {"nbval-skip", "nbval-raises-exception", "raises-exception"} & set(tags)


def test_it_opens_and_closes_as_all_do(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert re.match(r"# .+\n\n\*\*.+\?\*\*", first) and "You will\n" in first and "You have\n" in last
    assert len(re.findall(r"^# ", "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"), re.MULTILINE)) == 1
    assert notebook.code[0].source == read(PATHS[0]).cells[1].source, "the setup cell differs"


def test_its_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            if not target.startswith("http"):
                assert (notebook.path.parent / target).exists(), target


def test_its_colab_buttons_open_it_from_where_it_fetches_the_course(notebook):
    """`make colab` writes both at once; a copy that does not know its address has no buttons."""
    url, version = colab.SOURCE.search(notebook.code[0].source).groups()
    expected = [colab.badge(url.removeprefix("https://github.com/"), version, notebook.path.name)] if url else []
    assert [match[0] for match in colab.BADGE.finditer("\n".join(cell.source for cell in notebook.cells))] == expected
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| [") and f"(notebooks/{notebook.path.name})" in line)
    assert [match[0] for match in colab.BADGE.finditer(row)] == expected


def test_the_readme_lists_every_notebook():
    readme = (ROOT / "README.md").read_text()
    for path in PATHS:
        assert f"(notebooks/{path.name})" in readme
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_solutions_are_those_that_are_tested(notebook):
    """What stands in a fold below an exercise is a function of helpers/solutions.py, word for word."""
    for cell in notebook.cells:
        for shown in re.findall(r"<summary>A solution</summary>\s+```python\n(.*?)```", cell.source, re.DOTALL):
            name = re.match(r"def (\w+)", shown)[1]
            assert shown == inspect.getsource(getattr(solutions, name))
        assert "<details>" not in cell.source or "```python" in cell.source
