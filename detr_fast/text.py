"""Texts to print: of files of others, made safe, and of metrics."""


def escape(text: str) -> str:
    """Replace what is not printable, such as terminal sequences and lone surrogates, by backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_metric(value: float) -> str:
    """Format a metric of COCO, in which -1 stands for one without any ground truth, as a number or a dash."""
    return f"{value:.3f}" if value >= 0 else "–"
