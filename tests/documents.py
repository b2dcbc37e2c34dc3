"""The documents of the repository, and their parts."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
# Programs write the documents in this folder, which have no code.
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = [ROOT, *(ROOT / name for name in ("benchmarks", "notebooks")), RESULTS]
FOLDERS += [ROOT / "docs", *sorted((ROOT / "docs").glob("*/"))]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in FOLDERS
    for path in sorted(folder.glob("*.md"))
}
WRITTEN = [name for name in DOCUMENTS if (ROOT / name).parent != RESULTS]
README, MIGRATION = (DOCUMENTS[name] for name in ("README.md", "MIGRATION.md"))


def blocks(text):
    """The language and the code of each fenced block of a document."""
    found, language, lines = [], None, []
    for line in text.splitlines():
        fence = re.fullmatch(r" *```(.*)", line)
        if fence and language is None:
            language, lines = fence[1], []
        elif fence:
            found.append((language, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, "a block that does not end"
    return found


def python_of(text, backend="tensorflow"):
    """The Python blocks. The first line names the backend, if it is not TensorFlow."""
    found = [code for language, code in blocks(text) if language == "python"]
    named = [re.match(r"# With KERAS_BACKEND=(\w+)\n", code) for code in found]
    backends = [match[1] if match else "tensorflow" for match in named]
    return [code for code, of in zip(found, backends, strict=True) if of == backend]


def prose_of(text):
    """A document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(text):
    """The anchors that GitHub makes from the headings of a document."""
    found = []
    for title in re.findall(r"^#+ (.*)$", prose_of(text), re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.append(kept + (f"-{found.count(kept)}" if kept in found else ""))
    return found
