"""The site of these pages: its first one is the README, and what lies outside docs/ is named."""

import pathlib
import re

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
IN_README = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_files(files: Files, *, config, **_) -> Files:
    """Adds the README as the first page: a link of it leads from docs/. mkdocs calls this once."""
    text = IN_README.sub(r"](../\1)", (ROOT / "README.md").read_text())
    text = text.replace("](../docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, config, files: Files, **_) -> str:
    """Returns a page with its links on the site: pictures are taken along, other files named."""

    def stay(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if not picture:
            return f"{text} (`{path}`)" if text != path else f"`{path}`"
        place = f"pictures/{path}"
        if place not in files.src_uris:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        return f"![{text}]({place})"

    return OUTSIDE.sub(stay, markdown)
