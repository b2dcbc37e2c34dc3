"""Random layers and calls, compared with the layers of Keras on its backend.

A case draws a layer of this package, its initial states, and a few calls. The command
that repeats a failed case is printed.
"""

import collections
import logging
import random
import sys
import time
import traceback

import keras

from benchmarks.command import make_parser
from benchmarks.fuzz.case import BrokenRuleError, Case


def shown(call):
    """A call with shapes instead of arrays."""
    return keras.tree.map_structure(
        lambda a: f"{a.dtype}{tuple(a.shape)}" if hasattr(a, "shape") else a, call
    )


def fuzz(seeds, minutes=float("inf")):
    """Checks the case of each seed, prints failures, and counts the outcomes."""
    start, outcomes = time.monotonic(), collections.Counter()
    for seed in seeds:
        if time.monotonic() - start > 60 * minutes:
            break
        case = Case(seed)
        try:
            case.check()
        except Exception as error:
            kind, seen = "an error of the fuzzer", traceback.format_exc()
            if isinstance(error, BrokenRuleError):
                kind, seen = error.args
            outcomes[f"FAILED: {kind}"] += 1
            print(f"\n{kind}: {seen}\n{case.name} {case.arguments}")
            states = vars(case).get("layer") and case.layer.initial_state
            print(f"initial states: {states}")
            print(f"wrong: {sorted(case.wrong)}, called: {shown(case.call)}")
            print(f"python -m benchmarks.fuzz --seed {seed} --count 1", flush=True)
        outcomes.update(case.outcomes, cases=1)
        if outcomes["cases"] % 1000 == 0:
            print(f"{time.monotonic() - start:.0f} s, {dict(outcomes)}", flush=True)
    return outcomes


def main(argv=None):
    """Runs the cases, and exits with 1 if a case has failed."""
    parser = make_parser("fuzz", __doc__)
    add = parser.add_argument
    add("--count", type=int, default=20_000, help="cases (default: %(default)s)")
    endless = float("inf")
    add("--minutes", type=float, default=endless, help="time limit (default: none)")
    any_seed = random.randrange(10**9)
    add("--seed", type=int, default=any_seed, help="first seed (default: random)")
    options = parser.parse_args(argv)
    # Python logs errors of tensors that Keras drops when it collects them; hide them.
    logging.getLogger("tensorflow").handlers = [logging.NullHandler()]
    print(f"Cases of the seeds from {options.seed} on")
    outcomes = fuzz(range(options.seed, options.seed + options.count), options.minutes)
    for what, count in sorted(outcomes.items()):
        print(f"{count:6} {what}")
    sys.exit(any(what.startswith("FAILED") for what in outcomes))


if __name__ == "__main__":
    main()
