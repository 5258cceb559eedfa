"""Keeps links on the site: of what lies outside docs/, pictures are taken along, files named."""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, config, files, **_) -> str:
    """Returns a page's text whose links stay on the site. mkdocs calls it for each page."""

    def stay(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if not picture:
            return f"{text} (`{path}`)" if text != path else f"`{path}`"
        place = f"pictures/{path}"
        if place not in files.src_uris:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        return f"![{text}]({place})"

    return OUTSIDE.sub(stay, markdown)
