"""The trainings of the evidence, in processes that can be killed and continued."""

import json
import multiprocessing

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from benchmarks.evidence.adaptation import ADAPTATION, METHODS, NOTHING, Adaptation
from benchmarks.evidence.models import LAST_VALUE, kinds_of, weight_count
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.trainer import Trainer, by_timestep, mean
from benchmarks.machine import cores


def jobs(tasks, settings):
    """Returns the jobs, dicts of arguments: one for each compiled training."""
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
    """Returns the records of a job: one for each seed, with its losses."""
    by_name = {task.name: task for task in TASKS}
    if job["task"] == ADAPTATION:
        return adapt(by_name["vowels"], job, settings)
    task = by_name[job["task"]]
    if job["kind"] == LAST_VALUE:
        return repeat(task, job, settings)
    return compare(task, job, settings)


def compare(task, job, settings):
    """Returns the records of one kind: one for each seed, at the best learning rate."""
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
            record(
                job,
                seed,
                rate,
                weight_count(trainer.model),
                *summed_up(trainer.losses(test), test),
            )
            | {"train_loss": mean(trainer.losses(train), train)}
        )
    return records


def repeat(task, job, settings):
    """Returns the records of the last known value, used as the prediction."""
    records = []
    for seed in range(settings["seeds"]):
        _, _, test = task.split(seed, job["size"])
        losses = np.square(test.last - test.targets).sum(axis=-1)
        records.append(record(job, seed, None, 0, *summed_up(losses, test)))
    return records


def summed_up(losses, test):
    """Returns the mean loss, and the mean at each timestep."""
    return mean(losses, test), by_timestep(losses, test).tolist()


def record(job, seed, rate, weights, loss, by_timestep=()):
    """Returns the record of one training of a number of weights."""
    return job | {
        "seed": seed,
        "rate": rate,
        "weights": weights,
        "loss": loss,
        "by_timestep": list(by_timestep),
    }


def adapt(task, job, settings):
    """Returns the records of all methods to adapt a model, by number of examples."""
    adaptation = Adaptation(
        task, job["units"], settings["rates"], settings["use_fused"]
    )
    steps = round(task.steps * settings["share"])
    cases = [
        (method, examples, rate)
        for method in METHODS
        for examples in settings["examples"]
        for rate in (settings["adaptation_rates"] if method != NOTHING else [0.0])
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
            weights = adaptation.weights(method)
            records.append(record(of_method, seed, rate, weights, loss))
    return records


def path_of(job, folder):
    """Returns the file for the records of a job."""
    return folder / ("-".join(map(str, job.values())).replace(" ", "_") + ".json")


def one_thread():
    """Prepares a process of the pool. A second thread does not help small models."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def work(arguments):
    """Runs a job, and writes its records."""
    job, settings, folder = arguments
    path = path_of(job, folder)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(run(job, settings)))
    unfinished.rename(path)  # atomic: there is never a part of a file


def in_processes(function, arguments):
    """Yields the result of the function for each argument, in any order."""
    if not arguments:
        return
    # A process frees the memory of its compiled trainings only when it ends.
    pool = multiprocessing.get_context("spawn").Pool(
        min(cores(), len(arguments)), one_thread, maxtasksperchild=12
    )
    with pool:
        yield from pool.imap_unordered(function, arguments)


def train_all(tasks, settings, folder):
    """Runs the jobs that have no records yet, and returns the records of all jobs."""
    every = jobs(tasks, settings)
    left = [job for job in every if not path_of(job, folder).exists()]
    arguments = [(job, settings, folder) for job in left]
    with tqdm(total=len(every), initial=len(every) - len(left), unit="job") as bar:
        for _ in in_processes(work, arguments):
            bar.update()
    kept = [json.loads(path_of(job, folder).read_text()) for job in every]
    return [record for records in kept for record in records]
