"""When does an owned initial state help, and by how much?

Trains the same small LSTM on seven tasks with real data, from every kind of initial
state and by what a user would do instead, and adapts a trained one to new speakers. Ten
seeds, each with its own split; all kinds get the same budget, and a learning rate that
is chosen for each by the same search on validation data. What has been trained is kept
in a folder, so that a run that was killed goes on where it was.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

# Before the import, or TensorFlow has already reported every GPU it did not find.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from arguments import picture_path
from evidence_adaptation import METHODS, NOTHING, Adaptation
from evidence_models import LAST_VALUE, Trainer, by_timestep, kinds_of, mean
from evidence_report import ADAPTATION, save_report
from evidence_tasks import TASKS
from machine import cores

FULL = {
    "seeds": 10,
    "units": [16, 64],
    "sizes": ["many", "few"],
    "rates": [0.003, 0.01, 0.03, 0.1],
    "searches": 2,
    "share": 1.0,  # of the steps of each task
    "examples": [1, 2, 4, 8, 16, 32],
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
    "use_fused": False,
}


def parse_args(argv):
    """Returns the options, or exits with what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a small run, to see that it works")
    add(
        "--output",
        type=Path,
        default=Path("out/evidence.png"),
        help="PNG file, or folder for evidence.png; the tables go beside it, as "
        "Markdown and JSON (default: %(default)s)",
    )
    add(
        "--work",
        type=Path,
        help="folder of what has been trained, to go on with (default: evidence or "
        "evidence-quick beside the output)",
    )
    add("--tasks", nargs="+", metavar="TASK", help="only these (default: all)")
    args = parser.parse_args(argv)
    args.settings = QUICK if args.quick else FULL
    args.output = picture_path(parser, args.output, "evidence.png")
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


def jobs(tasks, settings):
    """Returns the jobs, dicts of arguments: one for each training that is compiled."""
    found = [
        {"task": task.name, "kind": kind, "units": units, "size": size}
        for task in TASKS
        if task.name in tasks
        for kind in kinds_of(task)
        for size in settings["sizes"]
        for units in settings["units"]
    ]
    if ADAPTATION in tasks:
        found += [{"task": ADAPTATION, "units": units} for units in settings["units"]]
    return found


def run(job, settings):
    """Returns the records of a job: one for each seed, with what was measured."""
    by_name = {task.name: task for task in TASKS}
    if job["task"] == ADAPTATION:
        return adapt(by_name["vowels"], job, settings)
    task = by_name[job["task"]]
    if job["kind"] == LAST_VALUE:
        return repeat(task, job, settings)
    return compare(task, job, settings)


def compare(task, job, settings):
    """Returns the records of one kind: its rate is searched, then each seed trained."""
    trainer = Trainer(
        task,
        job["kind"],
        job["units"],
        task.split(0, job["size"])[0],
        settings["use_fused"],
    )
    steps = round(task.steps * settings["share"])

    def searched(rate):
        seeds = range(1000, 1000 + settings["searches"])
        parts = [(seed, *task.split(seed, job["size"])[:2]) for seed in seeds]
        return np.mean([trainer.fit(t, v, seed, rate, steps) for seed, t, v in parts])

    rate = min(settings["rates"], key=searched)
    records = []
    for seed in range(settings["seeds"]):
        train, validation, test = task.split(seed, job["size"])
        trainer.fit(train, validation, seed, rate, steps)
        records.append(
            record(job, seed, rate, *summed_up(trainer.losses(test), test))
            | {"train_loss": mean(trainer.losses(train), train)}
        )
    return records


def repeat(task, job, settings):
    """Returns the records of the last known value as the prediction."""
    records = []
    for seed in range(settings["seeds"]):
        _, _, test = task.split(seed, job["size"])
        losses = np.square(test.last - test.targets).sum(axis=-1)
        records.append(record(job, seed, None, *summed_up(losses, test)))
    return records


def summed_up(losses, test):
    """Returns the mean loss, and that at each timestep."""
    return mean(losses, test), by_timestep(losses, test).tolist()


def record(job, seed, rate, loss, by_timestep=()):
    """Returns what is kept of one training."""
    return job | {
        "seed": seed,
        "rate": rate,
        "loss": loss,
        "by_timestep": list(by_timestep),
    }


def adapt(task, job, settings):
    """Returns the records of all ways to adapt a model, by the number of examples."""
    adaptation = Adaptation(
        task, job["units"], settings["rates"], settings["use_fused"]
    )
    steps = round(task.steps * settings["share"])
    cases = [
        (method, examples, rate)
        for method in METHODS
        for examples in settings["examples"]
        for rate in (settings["rates"] if method != NOTHING else [0.0])
    ]
    searched = {case: [] for case in cases}
    for seed in range(1000, 1000 + settings["searches"]):
        adaptation.meet(seed, steps)
        for case in cases:
            searched[case].append(adaptation.loss(*case, seed))
    best = {}
    for case in sorted(cases, key=lambda case: np.mean(searched[case])):
        best.setdefault(case[:2], case)
    records = []
    for seed in range(settings["seeds"]):
        adaptation.meet(seed, steps)
        for method, examples, rate in best.values():
            loss = adaptation.loss(method, examples, rate, seed)
            of_method = job | {"kind": method, "size": examples}
            records.append(record(of_method, seed, rate, loss))
    return records


def path_of(job, folder):
    """Returns the file that the records of a job are kept in."""
    return folder / ("-".join(map(str, job.values())).replace(" ", "_") + ".json")


def one_thread():
    """Prepares a process of the pool: small models gain nothing by a second thread."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def work(arguments):
    """Runs a job, and keeps its records."""
    job, settings, folder = arguments
    path = path_of(job, folder)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(run(job, settings)))
    unfinished.rename(path)  # so that a file is there as a whole, or not at all


def train_all(tasks, settings, folder):
    """Does what has not been done, and returns the records of all jobs."""
    every = jobs(tasks, settings)
    left = [job for job in every if not path_of(job, folder).exists()]
    arguments = [(job, settings, folder) for job in left]
    # A process gives back what its compiled trainings take only when it ends.
    pool = multiprocessing.get_context("spawn").Pool(
        cores(), one_thread, maxtasksperchild=12
    )
    with (
        pool,
        tqdm(total=len(every), initial=len(every) - len(left), unit="job") as bar,
    ):
        for _ in pool.imap_unordered(work, arguments):
            bar.update()
    kept = [json.loads(path_of(job, folder).read_text()) for job in every]
    return [record for records in kept for record in records]


def main(argv=None):
    """Runs the comparison.

    Returns:
        List of records, dicts with what was trained and its losses on test data.
    """
    args = parse_args(argv)
    begin = time.perf_counter()
    records = train_all(args.tasks, args.settings, args.work)
    print(save_report(args.output, records, args.settings))
    print(f"It took {time.perf_counter() - begin:.0f} s. Picture: {args.output}")
    return records


if __name__ == "__main__":
    main()
