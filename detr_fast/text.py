"""Texts from files of others, made safe to print."""


def escape(text: str) -> str:
    """Replace what is not printable, such as terminal sequences and lone surrogates, by backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
