"""The course in Google Colab: what a machine there lacks, and the links that open the notebooks there.

In Colab, `course.start()` calls `prepare()`. At home, `make colab` writes into the notebooks and the README where this copy of the course lives:

python -m helpers.colab          on GitHub, in the branch that is checked out
python -m helpers.colab v1.2     under a tag that is made afterwards, or in another branch
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata

from helpers.course import ROOT

# Of what the course imports: what has to have the pinned version, and what may have Colab's own. Colab's torch fits its driver, its torchvision fits its
# torch, and half of what is installed there was compiled against its numpy: replacing one of them breaks the others.
PINNED = ("accelerate", "datasets", "detoxify", "peft", "pytorch-optimizer", "rouge-score", "safetensors", "tokenizers", "transformers", "trl")
KEPT = ("ipywidgets", "matplotlib", "nbclient", "nbformat", "numpy", "pandas", "pillow", "scikit-learn", "scipy", "torch")

_stale = set()  # modules that this process had imported before pip replaced them


def prepare():
    """Make a Colab runtime ready for the course: install what it lacks, and choose the profile by its hardware unless COURSE_PROFILE is set.

    Raises RuntimeError if pip fails, or if the session has to be restarted; each says what to do.
    """
    install()
    if "COURSE_PROFILE" not in os.environ:
        import torch

        os.environ["COURSE_PROFILE"] = "gpu" if torch.cuda.is_available() else "embedded"
        print(f"COURSE_PROFILE={os.environ['COURSE_PROFILE']}: this runtime has {'a' if torch.cuda.is_available() else 'no'} GPU.")


def install():
    """Install the packages of PINNED in the versions of requirements.txt, and leave those of KEPT as they are where they are there at all.

    Starts pip only if something is missing. Raises RuntimeError if pip fails, and if it replaced what this process has imported.
    """
    had, loaded = _installed(), set(sys.modules)
    pins = dict(line.replace("_", "-").split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    versions = {name: pins[name] for name in PINNED} | {name: had.get(name, pins[name]) for name in KEPT}
    lacking = [name for name in versions if had.get(name) != versions[name]]
    if lacking:
        print(f"Installing {', '.join(lacking)}: once in a runtime, a minute or so.")
        _pip(lacking, versions)
        importlib.invalidate_caches()
        changed = {name for name, version in _installed().items() if had.get(name, version) != version}
        for package in metadata.distributions():
            if _name(package) in changed:
                _stale.update(loaded & {file.parts[0].split(".")[0] for file in package.files or ()})
    if _stale:
        raise RuntimeError(
            f"All is installed, but this session had already imported {', '.join(sorted(_stale))} in the version before. "
            "Choose “Runtime > Restart session” in the menu, then run the notebook again from this cell; what is installed stays."
        )


def _pip(names, versions):
    """Install `names`; whatever pip does for them, packages of `versions` (name -> version) get that version or keep it."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = os.path.join(folder, "constraints.txt")
        with open(constraints, "w") as file:
            file.writelines(f"{name}=={version}\n" for name, version in versions.items())
        command = [sys.executable, "-m", "pip", "install", "--progress-bar=off", f"--constraint={constraints}", *names]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        log = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(
            f"pip could not install {', '.join(names)}. Its last words:\n{log}\n"
            f"Was it the network, run this cell again. Is it a conflict with what Colab brings ({', '.join(f'{name} {versions[name]}' for name in KEPT)}), "
            "which the course leaves alone: take an older runtime (“Use fallback runtime version” in the command palette), or run the course on a machine of your own (README.md)."
        )


def _name(package):
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()


def _installed():
    """Name -> version of every installed distribution; of two of one name, the one that is imported."""
    return {_name(package): package.version for package in reversed(list(metadata.distributions()))}


IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE = re.compile(rf"\[!\[Open in Colab\]\({re.escape(IMAGE)}\)\]\([^)]*\)")
SOURCE = re.compile(r'url, version = "(.*)", "(.*)"')  # in the setup cell: where a notebook in Colab fetches the course from
ROW = re.compile(rf"^(\| \[[^\]]*\]\(notebooks/([^)]*\.ipynb)\))(?: {BADGE.pattern})?", re.MULTILINE)  # in the README's table
GITHUB = re.compile(r"(?:(?:https?|ssh|git)://(?:[^/@]*@)?(?:www\.|ssh\.)?github\.com(?::\d+)?/|(?:[^/@]*@)?github\.com:/?)([\w.-]+)/([\w.-]+?)(?:\.git)?/?", re.IGNORECASE)


def _git(*words):
    """What a git command prints in this copy of the course; nothing if it fails."""
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout.strip()


def repository():
    """`owner/name` of this copy of the course on GitHub, read from git's remote `origin`.

    Raises ValueError if there is no origin, if it is not on GitHub, or if the course is a folder of some larger repository.
    """
    add = "run `git remote add origin https://github.com/…` (with your repository's address; `git remote set-url …` if there is one already), then `make colab` again"
    origin = _git("remote", "get-url", "origin")
    if not origin:
        raise ValueError(f"this copy of the course has no git remote named origin; Colab opens notebooks from GitHub: {add}.")
    match = GITHUB.fullmatch(origin)
    if not match:
        raise ValueError(f"git's origin is {origin!r}, but Colab opens notebooks from github.com only: {add}.")
    if prefix := _git("rev-parse", "--show-prefix"):
        raise ValueError(f"the course is the folder {prefix!r} of a larger repository; the links need it to be a repository of its own: clone or copy it by itself.")
    return "/".join(match.groups())


def reference(given=None):
    """The branch or tag that the links name: `given`, or the branch that is checked out.

    Not the newest tag: what it holds was written before its name was known, so its notebooks would not know where to fetch the course from.
    Raises ValueError if no branch is checked out, or for a name that a link cannot hold.
    """
    name = given or _git("branch", "--show-current")
    if not name:
        raise ValueError("no branch is checked out; name a branch, or a tag that you make afterwards: make colab REF=v1.2.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} does not fit into a link to Colab; name a branch or a tag of letters, digits, dots, dashes and underscores: make colab REF=v1.2.")
    return name


def badge(where, name, notebook):
    """The button “Open in Colab” in Markdown. where: `owner/name` on GitHub; name: branch or tag; notebook: the file's name."""
    return f"[![Open in Colab]({IMAGE})](https://colab.research.google.com/github/{where}/blob/{name}/notebooks/{notebook})"


def linked(where, name):
    """Path -> new text, for each file whose badge or source is not that of `where` (`owner/name`) and `name` (branch or tag)."""
    import nbformat  # not at the top: Colab imports this module before pip ran

    texts = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        opening, setup = book.cells[:2]
        paragraphs = [text for text in opening.source.split("\n\n") if not BADGE.fullmatch(text)]
        opening.source = "\n\n".join([*paragraphs[:2], badge(where, name, path.name), *paragraphs[2:]])  # below title and question
        setup.source, found = SOURCE.subn(f'url, version = "https://github.com/{where}", "{name}"', setup.source)
        if found != 1:
            raise ValueError(f'{path.name}: its second cell is not the setup cell, or lacks the line `url, version = "", ""`; copy that cell from another notebook.')
        texts[path] = nbformat.writes(book) + "\n"
    readme = ROOT / "README.md"
    texts[readme] = ROW.sub(lambda row: f"{row[1]} {badge(where, name, row[2])}", readme.read_text(encoding="utf-8"))
    return {path: text for path, text in texts.items() if path.read_text(encoding="utf-8") != text}


def main(names):
    try:
        if len(names) > 1:
            raise ValueError(f"there are {len(names)} names: {' '.join(names)}; give one branch or tag, or none.")
        where, name = repository(), reference(*names)
        texts = linked(where, name)
        tagged = _git("tag", "--list", name)
        if texts and tagged:
            raise ValueError(f"the tag {name} is there already, without these links, and tags stay as they are; name one that you make afterwards: make colab REF=….")
    except ValueError as error:
        sys.exit(f"Nothing is changed: {error}")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT).as_posix())
    print(f"Links and setup cells name {where} at {name}. " + (f"They work once this is committed and pushed as {name}, branch or tag." if texts else "Nothing had to change."))


if __name__ == "__main__":
    main(sys.argv[1:])
