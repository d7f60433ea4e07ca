"""Renders the Sphinx roles of docstrings, such as :func:`match_cost`, as code: mkdocstrings reads Markdown."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")


class Roles(Extension):
    """A Griffe extension, which mkdocs.yml names."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Replace the roles in the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
