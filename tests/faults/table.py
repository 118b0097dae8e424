"""Writes the rows of the last `make faults` into the guide: `python -m tests.faults.table`."""

import json
import sys

from tests.faults.conftest import RESULTS
from tests.harness import ROOT

GUIDE = ROOT / "docs" / "guide" / "faults.md"
BEGIN, END = "<!-- rows: make faults -->\n", "<!-- end of rows -->\n"


def main() -> None:
    if not RESULTS.exists() or not (rows := [json.loads(line) for line in RESULTS.read_text().splitlines()]):
        sys.exit(f"error: {RESULTS} holds no rows; `make faults` makes them")
    before, _, rest = GUIDE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["| row | fired | promises held | recovery s |", "|---|---|---|---|"]
    lines += [
        f"| {row['row']} | {'; '.join(row['fired'])} | {row['promises']} | "
        f"{'' if row['recovery'] is None else row['recovery']} |"
        for row in rows
    ]
    GUIDE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + after)
    print(f"{len(rows)} rows written to {GUIDE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
