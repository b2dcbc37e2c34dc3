"""The layers beside those of Keras and of torch: speed, traces, memory, growth.

Every figure is a ratio of times that were taken side by side: within a case (a shape
and a mode) each round runs each contender once, in an order that is shuffled anew, so
that a machine that slows down hurts all alike. A ratio is the median over the rounds
of the ratio within a round, its spread the 10th to the 90th percentile. Where the
spread crosses 1 nothing was shown, and the ratio is marked as a tie: "1.01=".
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

# Before the import, or TensorFlow has already reported every GPU it did not find.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from alone import ALONE, COMPILER
from arguments import picture_path, positive
from contenders import CONTENDERS, Shape, on_gpu, torch
from experiments import run_all
from machine import cores, machine
from picture import save_picture, save_summary
from plan import Plan
from report import geometric_means, heading, tables, targets
from rounding import rounded


def parse_args(argv):
    """Returns the options, or exits with what is wrong."""

    def shape(text):
        sizes = text.split("x")
        if len(sizes) != 4:
            raise argparse.ArgumentTypeError(f"expected BxTxFxU, got {text!r}")
        return Shape(*map(positive, sizes))

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="two shapes, fewer rounds, no extras")
    add(
        "--shapes",
        type=shape,
        nargs="+",
        metavar="BxTxFxU",
        help="batch x time x features x units to measure (default: the nine of GRID)",
    )
    add(
        "--rounds",
        type=positive,
        help=f"of each case at most (default: {Plan.rounds})",
    )
    add(
        "--seed",
        type=int,
        default=Plan.seed,
        help="of data, weights and order (default: %(default)s)",
    )
    add(
        "--device",
        choices=("best", "cpu", "gpu"),
        default=Plan.device,
        help="where to measure (default: a GPU if there is one)",
    )
    add(
        "--output",
        type=Path,
        default=Path("out/bench.png"),
        help="PNG file, or folder for bench.png; the tables and the JSON file go "
        "beside it (default: %(default)s)",
    )
    for what in ALONE:
        add(
            f"--{what}",
            choices=[*CONTENDERS, COMPILER],
            metavar="CONTENDER",
            help="only print what is measured so, at the first shape: how the "
            "benchmark itself measures it, each time in a fresh process",
        )
    args = parser.parse_args(argv)
    args.output = picture_path(parser, args.output, "bench.png")
    if args.device == "gpu" and not tf.config.list_physical_devices("GPU"):
        parser.error("--device gpu: TensorFlow finds no GPU")
    return args


def plan_of(args, plan):
    """Returns a plan with what the options say of it."""
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
        argv: The arguments, by default those of the command line.
        plan: What the arguments leave open, by default a full run.
    """
    args = parse_args(argv)
    plan = plan_of(args, plan or Plan())
    start = time.perf_counter()
    tf.get_logger().setLevel("ERROR")  # It warns of the many functions that we trace.
    if plan.device == "cpu":
        # Not `tf.device`: Keras takes cuDNN's path wherever it sees a GPU.
        tf.config.set_visible_devices([], "GPU")
    if torch is not None:
        torch.set_num_threads(cores())
    for what, measure_alone in ALONE.items():
        if name := getattr(args, what.replace("-", "_")):
            print(json.dumps(measure_alone(name, plan.shapes[0])))
            return None

    results = {
        "command": " ".join(
            ["benchmarks/bench.py", *(sys.argv[1:] if argv is None else argv)]
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
    save_picture(args.output, results)
    save_summary(args.output.with_stem(f"{args.output.stem}_small"), results)
    data, document = (args.output.with_suffix(end) for end in (".json", ".md"))
    data.write_text(json.dumps(rounded(results), separators=(",", ":")) + "\n")
    document.write_text(
        f"![The speedups]({args.output.name})\n\n```\n{top}\n\n{text}\n```\n"
    )
    print(
        f"\nIt took {60 * results['minutes']:.0f} s. Wrote {args.output}, {document} "
        f"and {data}."
    )
    return results


if __name__ == "__main__":
    main()
