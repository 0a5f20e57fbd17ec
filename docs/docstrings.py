"""How the site reads docstrings: doctests as code, aligned tables as they are, fields as a list."""

import re
from typing import Any

import griffe

ROW = re.compile(r"\S+(?: \S+)* {2,}\S.*| {4,}\S.*")


def is_table(lines: list[str]) -> bool:
    """Whether a paragraph is a table of names and texts that are separated by two spaces or more."""
    return len(lines) > 1 and not lines[0].startswith(" ") and all(ROW.fullmatch(line) for line in lines)


def as_markdown(text: str, fields: set[str]) -> str:
    """A docstring with its doctests in fences, its tables indented, and lines `field: text` as a section."""
    text = re.sub(r"^( *(?:\w+: )?)>(?!>>)", r"\1\\>", text, flags=re.M)  # "> 0" is no quotation
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        starts = [re.match(r"(\w+): ", line) for line in lines]
        if lines[0].startswith(">>>"):
            lines = ["```pycon", *lines, "```"]
        elif is_table(lines):
            lines = [f"    {line}" for line in lines]
        elif starts[0] and starts[0][1] in fields:
            is_field = [match is not None and match[1] in fields for match in starts]
            lines = [
                "Attributes:",
                *(f"  {line}" if new else f"    {line.strip()}" for line, new in zip(lines, is_field, strict=True)),
            ]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed, and reads pytrees and Flax modules as dataclasses."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Mark a class whose fields are the arguments of its constructor as a dataclass."""
        is_pytree = any(decorator.callable_path.endswith(".pytree") for decorator in cls.decorators)
        is_module = any(str(base) == "nn.Module" for base in cls.bases)
        if is_pytree or is_module:
            cls.decorators = [griffe.Decorator(griffe.ExprName("dataclasses.dataclass"), lineno=None, endlineno=None)]

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Replace `static(default=VALUE)` by VALUE."""
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "static":
            defaults = [
                a.value for a in attr.value.arguments if isinstance(a, griffe.ExprKeyword) and a.name == "default"
            ]
            attr.value = defaults[0] if defaults else None

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            fields = set(obj.members) if obj.is_class else set()
            obj.docstring.value = as_markdown(obj.docstring.value, fields)
