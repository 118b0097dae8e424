"""The structure of the code: no circle of imports, and no function or file that is too long to be read at once."""

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.harness import ROOT

FUNCTION, FILE = 66, 450  #: lines
#: Files that may be longer: one driver each, whose retries, signing and framing belong together.
LONG = {"shared/s3/store.py", "shared/redis/ledger.py", "shared/amqp/connection.py"}


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def modules() -> dict[str, Path]:
    """Modules of the product by their import names."""
    files = [file for top in ("shared", "services") for file in (ROOT / top).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules that a file imports, at the top, in a function, or for its types alone."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in (node.module, *whole) if name in known)


def test_no_imports_go_in_a_circle() -> None:
    """Those for type checkers are counted: a reader follows them as well."""
    known = modules()
    graph = {name: set(imported(file, known)) - {name} for name, file in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' → '.join(error.args[1])}") from None


def test_functions_and_files_are_short() -> None:
    """What is longer holds two ideas."""
    for file in modules().values():
        name, text = str(file.relative_to(ROOT)), file.read_text()
        assert name in LONG or text.count("\n") <= FILE, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= FUNCTION, f"{name}: {node.name} has {lines} lines"


def test_unit_tests_start_no_process_and_load_no_torch() -> None:
    """What does so is slow, and stands in tests/functional."""
    slow = {"subprocess", "torch", "torchvision"}
    for file in sorted((ROOT / "tests/unit").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                assert not slow & {name.partition(".")[0] for name in found}, f"{file.name} imports {found[0]}"
