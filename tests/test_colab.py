"""Google Colab: the setup cell of a notebook that stands alone there, what it installs, and the links that lead there.

There is no Colab here. A module named `google.colab` and an empty folder stand in for it, small wheels for the packages, a local repository for GitHub.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest

from helpers import colab
from helpers.course import ROOT

NOTEBOOK = "04_train_with_grpo.ipynb"
ENV = {key: value for key, value in os.environ.items() if not key.startswith(("COURSE_", "PIP_", "PYTHON", "GIT_", "HF_"))}
ENV |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}  # nothing is ever installed from outside, nor into the environment that runs the tests
# The large packages are stood in for: `start()` only has to find them. `torch.cuda` says what the runtime has.
COLAB = """
import sys, types
from unittest.mock import MagicMock
sys.modules |= {"google.colab": types.ModuleType("google.colab"), "datasets": MagicMock(), "torch": MagicMock(), "transformers": MagicMock()}
sys.modules["torch"].cuda.is_available.return_value = "gpu" in sys.argv
sys.modules["torch"].cuda.get_device_properties.return_value.total_memory = 15.8e9
"""
REPORT = """
import os
print(profile.name, os.getcwd(), course.ROOT)
"""


def python(code, folder, *words, **env):
    """Run Python code in a process of its own in `folder`. Returns its exit status, what it printed, and its errors."""
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=ENV | env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def git(*words):
    identity = ("-c", "user.name=A reader", "-c", "user.email=reader@example.org", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *words], check=True, capture_output=True, env=ENV)


def setup_cell(url="", version="", path=ROOT / "notebooks" / NOTEBOOK):
    """The setup cell of a notebook, as `make colab` leaves it for a repository and a branch or tag."""
    source, found = colab.SOURCE.subn(f'url, version = "{url}", "{version}"', nbformat.read(path, as_version=4).cells[1].source)
    assert found == 1
    return source


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of the course without its data, on the branch main: its second commit is tagged v1; helpers/later.py comes after it."""
    folder = tmp_path_factory.mktemp("github") / "course"
    for name in ("helpers", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("README.md", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    git("init", folder)
    git("-C", folder, "commit", "-m", "Nothing yet", "--allow-empty")
    git("-C", folder, "add", ".")
    git("-C", folder, "commit", "-m", "The course")
    git("-C", folder, "tag", "v1")
    (folder / "helpers" / "later.py").touch()
    git("-C", folder, "add", ".")
    git("-C", folder, "commit", "-m", "Later")
    return folder


# The setup cell


def test_outside_of_colab_it_says_nothing_and_stays_where_it_is(repository):
    code = COLAB.replace('"google.colab"', '"something.else"') + setup_cell() + REPORT
    status, out, errors = python(code, repository / "notebooks", "gpu")
    assert (status, errors) == (0, "") and out == f"embedded {repository / 'notebooks'} {repository}\n"  # not gpu: only Colab chooses


@pytest.mark.parametrize("profile", ["gpu", "embedded"])
def test_in_colab_it_fetches_the_course_at_its_tag_and_takes_the_profile_that_fits(repository, tmp_path, profile):
    clone = tmp_path / "grpo-course"
    status, out, errors = python(COLAB + setup_cell(f"file://{repository}", "v1") + REPORT, tmp_path, profile)
    assert (status, errors) == (0, "")
    assert out.splitlines()[0] == f"COURSE_PROFILE={profile}: this runtime has {'a' if profile == 'gpu' else 'no'} GPU."
    assert out.splitlines()[1:] == [f"{profile} {clone / 'notebooks'} {clone}"]
    assert not (clone / "helpers" / "later.py").exists()
    assert subprocess.run(["git", "-C", clone, "rev-list", "--count", "HEAD"], capture_output=True, text=True).stdout == "1\n"


def test_in_colab_a_profile_that_the_reader_set_stays(repository, tmp_path):
    status, out, _ = python(COLAB + setup_cell(f"file://{repository}", "v1") + REPORT, tmp_path, "gpu", COURSE_PROFILE="embedded")
    assert status == 0 and out.startswith(f"embedded {tmp_path}")


def test_in_colab_it_may_run_again_and_after_a_restart(repository, tmp_path):
    cell = setup_cell(f"file://{repository}", "v1")
    status, out, errors = python(COLAB + cell + "\n" + cell + REPORT, tmp_path)  # twice in one session
    assert (status, errors) == (0, "") and out.splitlines()[-1] == f"embedded {tmp_path / 'grpo-course' / 'notebooks'} {tmp_path / 'grpo-course'}"
    before = (tmp_path / "grpo-course" / ".git" / "index").stat()
    status, out, errors = python(COLAB + cell.replace("file://", "nowhere://") + REPORT, tmp_path)  # a new process, in the old folder: no second clone
    assert (status, errors) == (0, "") and (tmp_path / "grpo-course" / ".git" / "index").stat() == before


def test_in_colab_a_clone_that_fails_says_why_and_what_to_do(repository, tmp_path):
    status, out, errors = python(COLAB + setup_cell(f"file://{repository}", "v99"), tmp_path)
    assert status and f"git could not fetch v99 of file://{repository}" in errors and "Remote branch v99 not found" in errors and "run this cell again" in errors
    (tmp_path / "grpo-course").mkdir()
    (tmp_path / "grpo-course" / "half").touch()
    status, out, errors = python(COLAB + setup_cell(f"file://{repository}", "v1"), tmp_path)
    assert status and "already exists and is not an empty directory" in errors and "!rm -r grpo-course" in errors


def test_in_colab_a_copy_without_origin_says_how_to_name_one(tmp_path):
    status, out, errors = python(COLAB + setup_cell(), tmp_path)
    assert (
        status
        and "AssertionError: This copy does not know where to fetch the course from" in errors
        and "git remote add origin https://github.com/" in errors
        and "make colab" in errors
    )


# What is installed


def test_every_package_that_the_course_imports_is_installed_or_kept():
    known = {"PIL": "pillow", "sklearn": "scikit-learn"}
    sources = [path.read_text() for path in (ROOT / "helpers").glob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        sources += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    imported = set()
    for node in ast.walk(ast.parse("\n".join(sources))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.split(".")[0] for name in names}
    imported -= {*sys.stdlib_module_names, "helpers", "IPython"}  # Colab is IPython
    assert {known.get(name, name).replace("_", "-") for name in imported} <= {*colab.PINNED, *colab.KEPT}


def wheel(folder, name, version, *needs, code=""):
    """Build the wheel of a package that holds one module and needs others."""
    module, label = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{label}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module}.py", f"__version__ = {version!r}\n{code}")
        file.writestr(f"{label}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"Requires-Dist: {need}\n" for need in needs))
        file.writestr(f"{label}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{label}.dist-info/RECORD", f"{module}.py,,\n{label}.dist-info/METADATA,,\n{label}.dist-info/WHEEL,,\n{label}.dist-info/RECORD,,\n")


def test_a_runtime_gets_what_it_lacks_and_keeps_its_torch(tmp_path):
    """With the real pip, in a fresh environment that has some packages of its own, as Colab has."""
    shop, env = tmp_path / "shop", tmp_path / "env"
    shop.mkdir()
    subprocess.run([sys.executable, "-m", "venv", env], check=True, env=ENV)
    executable, offline = env / "bin" / "python", ENV | {"PIP_FIND_LINKS": str(shop)}
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text().replace("_", "-"), re.MULTILINE))
    needs = {"datasets": ["pyarrow>=24"], "transformers": ["numpy>=1.17", "tokenizers<0.24"], "trl": ["torch>=2", "transformers>=4.56", "datasets"], "detoxify": ["torch>=2"]}
    for name in (*colab.PINNED, *colab.KEPT):
        wheel(shop, name, pins[name], *needs.get(name, []))
    colabs_own = {"torch": "2.9.0+cu128", "numpy": "2.0.2", "pyarrow": "18.1.0", "transformers": "4.57.3"}
    for name, version in {**colabs_own, "pyarrow": "24.0.0"}.items():
        wheel(shop, name, version)
    wheel(shop, "pyarrow", "18.1.0")
    wheel(shop, "torch", "2.9.0+cu128", code="class cuda:\n    is_available = staticmethod(lambda: True)\n")
    subprocess.run([executable, "-m", "pip", "install", "-q", *(f"{name}=={version}" for name, version in colabs_own.items())], check=True, env=offline)

    def prepare(before="", after=""):
        code = f"{before}\nfrom helpers import colab; colab.prepare(); {after}"
        done = subprocess.run([executable, "-c", code], cwd=ROOT, env=offline, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def packages():
        listed = subprocess.run([executable, "-m", "pip", "freeze"], env=offline, capture_output=True, text=True).stdout
        return {name.replace("_", "-"): version for name, version in re.findall(r"^([\w-]+)==(\S+)$", listed, re.MULTILINE)}

    def torch():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in env.glob("lib/python*/site-packages/torch*.*") if path.is_file()}

    # What cannot be had together with Colab's own is not forced.
    own, untouched = packages(), torch()
    wheel(shop, "detoxify", pins["detoxify"], "torch>=99")
    status, out, errors = prepare()
    assert status and "pip could not install" in errors and "torch==2.9.0+cu128" in errors and "leaves alone" in errors
    assert packages() == own
    wheel(shop, "detoxify", pins["detoxify"], "torch>=2")

    # Imported before it was replaced: the session has to be restarted, and running the cell again does not help. Not imported: it goes on.
    status, out, errors = prepare("import pyarrow, torch\nfrom helpers import colab\ntry: colab.prepare()\nexcept RuntimeError as error: print(error)")
    assert status and "already imported pyarrow in" in out and "already imported pyarrow in" in errors and "Restart session" in errors
    status, out, errors = prepare("import transformers", "import transformers; print(transformers.__version__)")
    assert (status, errors) == (0, "") and out.splitlines()[1:] == [pins["transformers"]] and "COURSE_PROFILE=gpu" in out and "Installing" not in out

    expected = {name: pins[name] for name in (*colab.PINNED, *colab.KEPT)} | {"torch": "2.9.0+cu128", "numpy": "2.0.2", "pyarrow": "24.0.0"}
    assert packages() == expected
    assert torch() == untouched and len(untouched) == 1


# The links


def run_make_colab(folder, *words):
    done = subprocess.run([sys.executable, "-m", "helpers.colab", *words], cwd=folder, env=ENV, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def clone(repository, tmp_path):
    """A clone of the course with its tag, and without an origin."""
    git("clone", repository, tmp_path / "clone")
    git("-C", tmp_path / "clone", "remote", "remove", "origin")
    return tmp_path / "clone"


@pytest.mark.parametrize(
    "origin",
    [
        "https://github.com/someone/some.course-2",
        "https://github.com/someone/some.course-2.git",
        "https://github.com/someone/some.course-2/",
        "https://someone:secret@github.com/someone/some.course-2.git",
        "git@github.com:someone/some.course-2.git",
        "git@github.com:someone/some.course-2",
        "ssh://git@github.com/someone/some.course-2.git",
        "ssh://git@ssh.github.com:443/someone/some.course-2.git",
    ],
)
def test_every_form_of_origin_is_read(origin):
    assert colab.GITHUB.fullmatch(origin).groups() == ("someone", "some.course-2")


@pytest.mark.parametrize("origin", ["https://gitlab.com/a/b.git", "git@notgithub.com:a/b.git", "https://example.org/github.com/a/b", "../course", "https://github.com/a"])
def test_what_is_not_on_github_is_refused(clone, origin):
    git("-C", clone, "remote", "add", "origin", origin)
    status, out = run_make_colab(clone)
    assert status and f"git's origin is {origin!r}" in out and "git remote add origin https://github.com/" in out


def test_without_an_origin_it_says_how_to_name_one(clone):
    status, out = run_make_colab(clone)
    assert status and "no git remote named origin" in out and "git remote add origin https://github.com/" in out and "Traceback" not in out


def test_the_links_are_written_once_and_follow_the_origin(clone):
    def books():
        return {path.name: nbformat.read(path, as_version=4) for path in sorted((clone / "notebooks").glob("*.ipynb"))}

    def text():
        return {path: path.read_bytes() for path in [*(clone / "notebooks").glob("*.ipynb"), clone / "README.md"]}

    plain, original = books(), text()
    for book in plain.values():  # this copy may have links of its own already
        book.cells[0].source = colab.BADGE.sub("", book.cells[0].source).replace("\n\n\n\n", "\n\n")
    git("-C", clone, "remote", "add", "origin", "git@github.com:someone/course.git")
    assert run_make_colab(clone)[0] == 0
    written = text()
    for name, book in books().items():
        link = f"(https://colab.research.google.com/github/someone/course/blob/main/notebooks/{name})"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]{link}"
        paragraphs = book.cells[0].source.split("\n\n")
        assert paragraphs[1].startswith("**") and paragraphs.pop(2) == badge
        assert (clone / "README.md").read_text().count(f"(notebooks/{name}) {badge} |") == 1
        assert book.cells[1].source == setup_cell("https://github.com/someone/course", "main")
        book.cells[0].source, book.cells[1].source = "\n\n".join(paragraphs), plain[name].cells[1].source
        assert book == plain[name]  # all else is as it was
    status, out = run_make_colab(clone)
    assert status == 0 and "Nothing had to change" in out and text() == written

    git("-C", clone, "remote", "set-url", "origin", "https://github.com/another/fork")
    assert run_make_colab(clone, "v2")[0] == 0
    assert not any(b"someone/course" in content for content in text().values())
    assert all(
        content == text()[path].replace(b"another/fork", b"someone/course").replace(b"/blob/v2/", b"/blob/main/").replace(b'\\"v2\\"', b'\\"main\\"')
        for path, content in written.items()
    )
    assert original.keys() == written.keys() and all(content.endswith(b"\n") and not content.endswith(b"\n\n") for content in text().values())


def test_a_name_that_would_not_work_is_refused(clone):
    git("-C", clone, "remote", "add", "origin", "https://github.com/someone/course")
    before = (clone / "README.md").read_text()
    assert "'a/b' does not fit into a link" in run_make_colab(clone, "a/b")[1]
    assert "the tag v1 is there already" in run_make_colab(clone, "v1")[1]  # its notebooks would not know where to fetch the course from
    git("-C", clone, "checkout", "--detach")
    assert "no branch is checked out" in run_make_colab(clone)[1]
    assert (clone / "README.md").read_text() == before
