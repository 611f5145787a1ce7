"""Print a compiled table for people: `python -m workflow.paper.show results/demo/table1.csv`."""

from pathlib import Path

from workflow import command_line


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("table", type=Path)
    arguments = parser.parse_args()
    for_people = arguments.table.with_suffix(".md")
    print(f"\n{for_people.read_text()}")
    print(f"The table: {arguments.table.resolve()} and {for_people.name}")
    print("Every run in MLflow: make ui, then http://127.0.0.1:5000, Model training at the left")


if __name__ == "__main__":
    command_line.run(main)
