"""When does an owned initial state help, and by how much?

It trains the same small LSTM on seven tasks with real data, with every kind of initial
state and with the alternatives that a user has, and adapts a trained LSTM to new
speakers. There are ten seeds, each with its own split. All kinds get the same budget,
and a learning rate from the same search on validation data. Finished trainings are kept
in a folder: a run that was killed continues from them.
"""

import json
import time
from pathlib import Path

from benchmarks.command import add_output, make_parser
from benchmarks.evidence.adaptation import ADAPTATION
from benchmarks.evidence.jobs import train_all
from benchmarks.evidence.report import save_report
from benchmarks.evidence.tasks import TASKS

FULL = {
    "seeds": 10,
    "units": [16, 64],
    "sizes": ["many", "few"],
    "rates": [0.003, 0.01, 0.03, 0.1],
    "searches": 2,
    "share": 1.0,  # of the steps of each task
    "examples": [1, 2, 4, 8, 16, 32],
    # To change all weights by one example, the best rate is far smaller.
    "adaptation_rates": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3],
    # Compiled, a step is faster, and the first takes some seconds.
    "use_fused": "auto",
}
QUICK = FULL | {
    "seeds": 2,
    "units": [16],
    "sizes": ["few"],
    "rates": [0.03],
    "searches": 1,
    "share": 0.1,
    "examples": [4, 32],
    "adaptation_rates": [0.01],
    "use_fused": False,
}


def parse_args(argv):
    """Returns the options. Exits with a message if one is wrong."""
    parser = make_parser("evidence", __doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a small run, as a test")
    add_output(
        parser, "evidence.png", also="; the Markdown and JSON files go next to it"
    )
    add(
        "--work",
        type=Path,
        help="folder of the finished trainings, which are not repeated (default: "
        "evidence or evidence-quick next to the output)",
    )
    add("--tasks", nargs="+", metavar="TASK", help="only these (default: all)")
    args = parser.parse_args(argv)
    args.settings = QUICK if args.quick else FULL
    if args.work is None:
        name = "evidence-quick" if args.quick else "evidence"
        args.work = args.output.parent / name
    names = [*(task.name for task in TASKS), ADAPTATION]
    args.tasks = args.tasks or names
    if unknown := set(args.tasks) - set(names):
        parser.error(f"--tasks must be of {', '.join(names)}, got {', '.join(unknown)}")
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != args.settings:
        parser.error(f"--work {args.work} holds trainings with other settings")
    kept.write_text(json.dumps(args.settings))
    return args


def main(argv=None):
    """Runs the comparison.

    Returns:
        List of records: dicts with the job and its losses on test data.
    """
    args = parse_args(argv)
    begin = time.perf_counter()
    records = train_all(args.tasks, args.settings, args.work)
    print(save_report(args.output, records, args.settings))
    print(f"It took {time.perf_counter() - begin:.0f} s. Picture: {args.output}")
    return records


if __name__ == "__main__":
    main()
