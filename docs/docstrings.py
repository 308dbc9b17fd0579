"""Makes the docstrings readable for mkdocstrings, which knows `Examples:` as a section, and none of Sphinx's roles."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|meth|attr|func|mod|data):(?=`)")
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):  # type: ignore[misc,unused-ignore]
    """Rewrites docstrings as they are read."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub("", EXAMPLE.sub(r"\1Examples:", obj.docstring.value))
