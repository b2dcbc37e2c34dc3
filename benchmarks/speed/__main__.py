"""Speed, traces and memory of the layers, compared with Keras and PyTorch.

Every figure is a ratio of times that were measured side by side. Within a case (a shape
and a mode), each round runs each contender once, in a new random order: a machine that
slows down affects all of them. A ratio is the median over the rounds of the ratio
within a round; its spread is the 10th to the 90th percentile. If the spread includes 1,
there is no significant difference, and the ratio is marked as a tie: "1.01=".
"""

import json
import sys
import time
from dataclasses import replace

import tensorflow as tf

from benchmarks.command import add_output, make_parser, positive, rounded
from benchmarks.machine import cores, machine
from benchmarks.speed.contenders import CONTENDERS, parse_shape
from benchmarks.speed.fresh_process import COMPILER, MEASUREMENTS
from benchmarks.speed.measurements import run_all
from benchmarks.speed.picture import save_pictures
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import geometric_means, heading, tables, targets
from benchmarks.speed.runs import on_gpu, torch


def parse_args(argv):
    """Returns the options. Exits with a message if one is wrong."""
    parser = make_parser("speed", __doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="two shapes, fewer rounds, no extras")
    add(
        "--shapes",
        type=parse_shape,
        nargs="+",
        metavar="BxTxFxU",
        help="batch x timesteps x features x units (default: nine shapes)",
    )
    add(
        "--rounds",
        type=positive,
        help=f"rounds of each case at most (default: {Plan.rounds})",
    )
    add(
        "--seed",
        type=int,
        default=Plan.seed,
        help="seed of data, weights and order (default: %(default)s)",
    )
    add(
        "--device",
        choices=("best", "cpu", "gpu"),
        default=Plan.device,
        help="device to measure on (default: a GPU if there is one)",
    )
    add_output(
        parser,
        "bench.png",
        also="; two more pictures, the tables and the JSON file go next to it",
    )
    for what in MEASUREMENTS:
        add(
            f"--{what}",
            choices=[*CONTENDERS, COMPILER],
            metavar="CONTENDER",
            help="only print this measurement of a contender, at the first shape; the "
            "benchmark calls itself with this option, for a fresh process",
        )
    args = parser.parse_args(argv)
    if args.device == "gpu" and not tf.config.list_physical_devices("GPU"):
        parser.error("--device gpu: TensorFlow finds no GPU")
    return args


def plan_of(args, plan):
    """Returns the plan, changed by the options."""
    if args.quick:
        plan = plan.quick()
    return replace(
        plan,
        shapes=args.shapes or plan.shapes,
        rounds=args.rounds or plan.rounds,
        seed=args.seed,
        device=args.device,
    )


def main(argv=None, plan=None):
    """Runs the benchmark and returns what it writes into the JSON file.

    Args:
        argv: The arguments; by default, the arguments of the command line.
        plan: The plan that the arguments change; by default, a full run.
    """
    args = parse_args(argv)
    plan = plan_of(args, plan or Plan())
    start = time.perf_counter()
    tf.get_logger().setLevel("ERROR")  # No warnings of the many functions we trace.
    if plan.device == "cpu":
        # Not `tf.device`: Keras chooses cuDNN wherever it sees a GPU.
        tf.config.set_visible_devices([], "GPU")
    if torch is not None:
        torch.set_num_threads(cores())
    for what, measure in MEASUREMENTS.items():
        if name := getattr(args, what.replace("-", "_")):
            print(json.dumps(measure(name, plan.shapes[0])))
            return None

    results = {
        "command": " ".join(
            ["python -m benchmarks.speed", *(sys.argv[1:] if argv is None else argv)]
        ),
        "machine": machine(),
        "device": "GPU" if on_gpu() else "CPU",
        "seed": plan.seed,
        "rounds": plan.rounds,
        "quick": args.quick,
    }
    top = heading(results)
    print(top)
    results |= run_all(plan)
    results["geometric_means"] = geometric_means(results["cases"])
    results["targets"] = targets(results, plan)
    results["minutes"] = (time.perf_counter() - start) / 60
    text = tables(results, plan)
    print("\n" + text)
    saved = save_pictures(args.output, results)
    data, document = (args.output.with_suffix(end) for end in (".json", ".md"))
    data.write_text(json.dumps(rounded(results), separators=(",", ":")) + "\n")
    pictures = "\n\n".join(f"![{title}]({name})" for name, title in saved.items())
    document.write_text(f"# Speed\n\n{pictures}\n\n```\n{top}\n\n{text}\n```\n")
    print(
        f"\nIt took {60 * results['minutes']:.0f} s. Wrote {args.output}, {document} "
        f"and {data}."
    )
    return results


if __name__ == "__main__":
    main()
