"""Runs the Python snippets of a page of the documentation, in order, as one program."""

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(path: Path) -> None:
    """Runs the snippets of the page at `path`."""
    page = path.read_text(encoding="utf-8")
    from world import world  # which goes to another folder

    names = world(path.name)
    for snippet in FENCE.finditer(page):
        first_line = page.count("\n", 0, snippet.start(1))
        # So that a traceback names the page and the line.
        code = compile("\n" * first_line + snippet[1], str(path), "exec")
        exec(code, names)  # noqa: S102
        print(f"ran {path.name}:{first_line + 1}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
