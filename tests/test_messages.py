"""Every message of an error, a warning or wrong usage is on the page of troubleshooting, and none that is gone.

The messages are read from the sources, in Python and C++, with "..." for what is filled in. On the page they stand in
the first column of the tables "message", as code: from their beginning, and with "..." for what is filled in or left
out. Messages that nobody sees by themselves are in `INSIDE`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product

from imports import REPOSITORY

FILLED = "..."
INSIDE = {
    "module ... has no attribute ...",  # Python's own, for a name that is not there
    "not every value is ...",  # leads to the message of a row
    "its SHA-256 is wrong",  # to that of a damaged output folder
    "... is not in the cache",  # to that of a model that was not downloaded
    "the hub does not answer",
    "error: ...",  # comes before any other
    "warning: ...",
    "modules.json: module ...",
    "interrupted; ...",  # not an error
    "standard output",  # follows the operating system's message
}
_SAYING = re.compile(r"\w*(Error|Warning)|warn|note|error|usage_error|__init__|of|setdefault")
"""Functions that take a message; the last two take the reason why a row is rejected."""
_SHORT = ast.Constant | ast.JoinedStr | ast.BinOp | ast.IfExp
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> list[tuple[str, str]]:
    """Return every message with its place."""
    found = []
    for folder in ("runtime", "export", "kernels"):
        for path in sorted((REPOSITORY / folder).rglob("*.*")):
            read = {".py": messages_of_python, ".cpp": messages_of_cpp}.get(path.suffix)
            if read is not None:
                place = path.relative_to(REPOSITORY).as_posix()
                found += [(f"{place}:{line}", text) for line, text in read(path.read_text(encoding="utf-8"))]
    return [(place, text) for place, text in found if re.search(r"[A-Za-z]{2,}[,;:]? ", text) and text not in INSIDE]


def messages_of_python(source: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTION)]
    by_name = {function.name: function for function in functions}
    makers = {each.name for each in functions if each.returns and ast.unparse(each.returns).endswith("Error")}
    constants = assigned(tree.body)

    def returned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
        names = constants | assigned(ast.walk(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from ((node.lineno, text) for text in texts_of(node.value, names))

    outside = [statement for statement in tree.body if not isinstance(statement, ast.ClassDef | _FUNCTION)]
    for scope in (ast.Module(outside, []), *functions):
        names = constants | assigned(ast.walk(scope))
        for node in ast.walk(scope):
            called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or not (called in makers or _SAYING.fullmatch(called)):
                continue
            for argument in node.args[:1] if called in makers else node.args:
                for text in texts_of(argument, names):
                    yield node.lineno, f"argument ...: {text}" if called == "ArgumentTypeError" else text
                if isinstance(argument, ast.Call) and ast.unparse(argument.func) in by_name:
                    yield from returned(by_name[ast.unparse(argument.func)])
    made = [  # by the errors and warnings themselves
        method
        for kind in tree.body
        if isinstance(kind, ast.ClassDef) and kind.name.endswith(("Error", "Warning"))
        for method in kind.body
        if isinstance(method, _FUNCTION)
    ]
    for function in (*made, *(each for each in functions if each.name == "reason_of")):
        yield from returned(function)


def assigned(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """Return what is assigned to each name, if that may be a text."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, _SHORT):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def texts_of(node: ast.expr, names: Mapping[str, list[ast.expr]]) -> list[str]:
    """Return the texts that an expression may give, with "..." for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return [text.replace("`", "")]
        case ast.JoinedStr(values=values):
            return ["".join(each) for each in product(*(texts_of(value, names) for value in values))]
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return texts_of(value, names)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return ["".join(each) for each in product(texts_of(left, names), texts_of(right, names))]
        case ast.IfExp(body=body, orelse=orelse):
            return [*texts_of(body, names), *texts_of(orelse, names)]
        case ast.Name(id=name) if name in names:
            return [text for value in names[name] for text in texts_of(value, {})]
    return [FILLED]


def messages_of_cpp(source: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"throw (?:Refused|std::runtime_error)\((.*?)\);$", source, re.DOTALL | re.MULTILINE):
        texts = re.findall(r'"((?:[^"\\]|\\.)*)"|(\+\s[^"]+)', found[1])
        first = "" if found[1].startswith(('"', 'std::string("')) else FILLED
        yield source.count("\n", 0, found.start()) + 1, first + "".join(text or FILLED for text, _ in texts)


@cache
def on_the_page() -> list[str]:
    page = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    cells = [line.split(" | ")[0] for table in tables for line in table.splitlines()]
    return [span.strip().replace("`", "") for cell in cells for _, span in re.findall(r"(`+)(.+?)\1", cell)]


def is_beginning(shown: str, message: str) -> bool:
    """Tell whether a message begins as the page shows it."""
    pattern = ".*".join(map(re.escape, shown.removesuffix(FILLED).split(FILLED)))
    return re.match(pattern, message, re.IGNORECASE | re.DOTALL) is not None


def test_every_message_is_on_the_page() -> None:
    missing = [
        f"{place}: {text}" for place, text in sources() if not any(is_beginning(shown, text) for shown in on_the_page())
    ]
    assert len(sources()) > 400
    assert not missing, "docs/troubleshooting.md lacks\n" + "\n".join(missing)


def test_every_message_on_the_page_exists_and_is_there_once() -> None:
    gone = [shown for shown in on_the_page() if not any(is_beginning(shown, text) for _, text in sources())]
    assert not gone
    assert len(on_the_page()) == len(set(on_the_page()))
    assert all(len(re.findall("[A-Za-z]", shown)) > 5 for shown in on_the_page()), "too little to find"
