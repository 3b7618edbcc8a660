"""MkDocs hook: links from a page to files outside of docs/, which work in a checkout, become plain text on the site."""

import posixpath
import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def within_docs(link: re.Match[str]) -> str:
        return link[1] if posixpath.normpath(posixpath.join(folder, link[2])).startswith("..") else link[0]

    return re.sub(r"\[([^\]]+)\]\(([^)#:\s]+)\)", within_docs, markdown)
