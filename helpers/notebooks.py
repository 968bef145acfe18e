"""`make run`: execute every notebook from top to bottom in a fresh kernel and write its outputs back, cleanly.

python -m helpers.notebooks            all notebooks
python -m helpers.notebooks 04 06      those whose names begin so
"""

import base64
import io
import os
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from helpers import course

NOTEBOOKS = course.ROOT / "notebooks"
PICTURE = "picture-of-the-result"  # the tag of the cell whose figure the README shows
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def clean(notebook):
    """Take out what changes from run to run: times, widget states, stderr, versions; number the cells' ids; shrink figures. In place."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if cell.metadata.get(key)})
        if cell.cell_type == "code":
            cell.outputs = [_without_ids(output) for output in cell.outputs if output.get("name") != "stderr" and _has_content(output)]
    return notebook


def _without_ids(output):
    if "metadata" in output:
        output.metadata = nbformat.from_dict({})
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = _smaller(output.data["image/png"])
    return output


def _smaller(png):
    """A figure in 64 colours takes a quarter of the bytes and looks the same. png: base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":  # it has been here before
        return png
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(64).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _has_content(output):
    """Progress bars and the like leave empty displays behind."""
    return output.output_type != "display_data" or set(output.data) != {"text/html", "text/plain"} or "<progress" not in output.data["text/html"]


def execute(path):
    """Run one notebook and write it back; prints a line a cell. Raises CellExecutionError, and writes nothing, if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    total, begin = len(notebook.cells), time.time()

    def progress(cell, cell_index):
        first = cell.source.strip().splitlines()[:1]
        print(f"\r{path.name}: cell {cell_index + 1} of {total}, {time.time() - begin:.0f} s   {first[0][:60] if first else '':60}", end="", flush=True)

    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}, on_cell_execute=progress)
    client.execute()
    nbformat.write(clean(notebook), path)
    for cell in notebook.cells:
        if PICTURE in cell.metadata.get("tags", []):
            png = next(output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
            (course.ROOT / "data" / "result.png").write_bytes(base64.b64decode(png))
    print(f"\r{path.name}: {total} cells, {time.time() - begin:.0f} s{'':70}")


def main(names):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["COURSE_UNATTENDED"] = "1"  # no sliders
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not names or path.name.startswith(tuple(names))]
    if not paths:
        sys.exit(f"no notebook begins with {' or '.join(names)}; there are {', '.join(path.name for path in sorted(NOTEBOOKS.glob('*.ipynb')))}")
    for path in paths:
        try:
            execute(path)
        except CellExecutionError as error:
            sys.exit(f"\n{path.name} stopped; the file is as it was.\n{error}")


if __name__ == "__main__":
    main(sys.argv[1:])
