"""Documents that say what the code says: the list of commands and the index of decisions."""

import re
from pathlib import Path

import pytest

from docs import command_page, walk_page
from tests.harness import ROOT

DECISIONS = ROOT / "docs" / "adr"


def test_the_page_of_commands_is_what_the_program_is() -> None:
    """The reference is generated, and what stands between the markers is replaced."""
    page = command_page.PAGE.read_text()

    assert command_page.rendered(page) == page, f"docs/guide/commands.md is stale: run `{command_page.COMMAND}`"
    assert command_page.rendered(page.replace("### fedq verify", "### fedq other")) == page


def test_a_page_without_a_place_is_refused() -> None:
    page = command_page.PAGE.read_text()
    with pytest.raises(ValueError, match="no place for the commands"):
        command_page.rendered(page.replace("<!-- commands -->", ""))


def test_the_protocol_of_a_round_is_what_the_code_is() -> None:
    """The diagram of the state, and the inputs and effects, are printed from their modules."""
    page = walk_page.PAGE.read_text()

    assert walk_page.rendered(page) == page, f"CONTRIBUTING.md is stale: run `{walk_page.COMMAND}`"
    assert "| `Accepted` |" in page
    with pytest.raises(ValueError, match="no place for the protocol"):
        walk_page.rendered(page.replace("<!-- protocol -->", ""))


def test_the_walk_along_a_round_names_few_files_and_each_once() -> None:
    """A newcomer opens no file twice, and none that is gone."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    walk = page[page.index("## Walk the code") : page.index("### The protocol of a round")]
    files = re.findall(r"\]\(([^)]+)\)", walk)

    assert 15 <= len(files) <= 24, files
    assert len(set(files)) == len(files), "a file is named twice"
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_decision_is_in_the_index_with_its_date_and_status() -> None:
    found = []
    for file in sorted(DECISIONS.glob("[0-9]*.md")):
        title, _, status = file.read_text().splitlines()[:3]
        match = re.fullmatch(r"\*\*Status\.\*\* (?P<status>Accepted|Replaced by .*) on (?P<date>[\d-]{10})\.", status)
        assert match is not None, f"{file.name} has no status with a date below its title"
        row = (f"[{file.name[:4]}]({file.name})", title.removeprefix("# "), match["date"], match["status"].lower())
        found.append(f"| {' | '.join(row)} |")

    index = (DECISIONS / "README.md").read_text()
    assert [line for line in index.splitlines() if line.startswith("| [")] == found


@pytest.mark.parametrize(
    "page",
    sorted(path for path in ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")),
    ids=lambda path: path.name,
)
def test_a_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page.name} links to {target}: {file.name} has no such heading"


def _anchor(heading: str) -> str:
    """The name by which a heading is linked to, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
