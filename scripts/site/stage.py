"""Copy README.md, docs/ and whatever they link to beside `mkdocs.yml`: links stay as they are.

    python scripts/site/stage.py build/site

A link to a folder leads to a page that lists it.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def linked(page: Path) -> list[Path]:
    """What a page links to inside the repository."""
    text = page.read_text(encoding="utf-8")
    found = [page.parent / target for target in LINK.findall(text) if "://" not in target]
    return [path.resolve() for path in found]


def stage(site: Path, root: Path = ROOT) -> int:
    """Fill `pages` of the site's folder anew; returns how many files are in it.

    Raises:
        FileNotFoundError: a page links to what is not there.
    """
    out = site / "pages"
    shutil.rmtree(site, ignore_errors=True)
    todo = [root / "README.md", *sorted((root / "docs").rglob("*.*"))]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        place = out / path.relative_to(root)
        if path.is_dir():
            names = [f"- `{child.name}`" for child in sorted(path.iterdir())]
            place.mkdir(parents=True, exist_ok=True)
            text = "\n".join([f"# {path.relative_to(root)}", "", *names])
            (place / "README.md").write_text(text + "\n", encoding="utf-8")
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        if path.suffix == ".md":
            todo += linked(path)
    shutil.copy(Path(__file__).parent / "mkdocs.yml", site)
    return len(seen)


if __name__ == "__main__":
    print(f"{stage(Path(sys.argv[1]))} files in {sys.argv[1]}")
