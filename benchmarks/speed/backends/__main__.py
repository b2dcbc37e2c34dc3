"""Speed of the layers on one backend, compared with Keras's and the native layers.

It runs on the backend of Keras: set `KERAS_BACKEND`. Earlier results of other backends
stay in the file, in the table and in the picture.
"""

import json
import sys
import time

import keras

from benchmarks.command import add_output, make_parser, positive, rounded
from benchmarks.machine import machine
from benchmarks.speed.backends.cases import BACKEND, CASES, SHAPES, measure_all
from benchmarks.speed.backends.picture import save_picture
from benchmarks.speed.backends.report import report
from benchmarks.speed.contenders import parse_shape


def parse_args(argv):
    """Returns the options. Exits with a message if one is wrong."""
    parser = make_parser("speed.backends", __doc__)
    add = parser.add_argument
    add(
        "--shapes",
        type=parse_shape,
        nargs="+",
        metavar="BxTxFxU",
        default=SHAPES,
        help="batch x timesteps x features x units (default: four shapes)",
    )
    cells = tuple(dict.fromkeys(case.cell for case in CASES))
    add("--cells", nargs="+", choices=cells, default=cells, help="(default: all)")
    add("--rounds", type=positive, default=9, help="rounds of a case (default: 9)")
    add_output(parser, "backends.png", also="; tables and JSON file go next to it")
    return parser.parse_args(argv)


def main(argv=None, **seconds):
    """Runs the benchmark and returns what it writes into the JSON file."""
    args = parse_args(argv)
    cases = [case for case in CASES if case.cell in args.cells]
    start = time.perf_counter()
    measured = []
    for case in measure_all(cases, args.shapes, args.rounds, **seconds):
        measured.append(case)
        of = f"{len(measured)} of {len(cases) * len(args.shapes)}"
        print(of, case["shape"], case["case"], file=sys.stderr)
    data = args.output.with_suffix(".json")
    results = json.loads(data.read_text()) if data.exists() else {}
    results[keras.backend.backend()] = {
        "machine": machine(),
        "device": BACKEND.device(),
        "native": BACKEND.NATIVE,
        "rounds": args.rounds,
        "minutes": (time.perf_counter() - start) / 60,
        "cases": measured,
    }
    results = rounded(results)
    data.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    text = report(results)
    args.output.with_suffix(".md").write_text(text)
    save_picture(args.output, results)
    print(text)
    return results


if __name__ == "__main__":
    main()
