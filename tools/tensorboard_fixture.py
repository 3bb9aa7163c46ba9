#!/usr/bin/env python3
"""Holds flanmoe's event files against TensorBoard's own code (pip install tensorboard; not needed to build or test).

    tools/tensorboard_fixture.py write tests/fixtures/tensorboard/events   # with TensorBoard's record writer
    tools/tensorboard_fixture.py check runs/mine     # RUN/tensorboard as TensorBoard reads it, against metrics.jsonl
"""

import json
import math
import struct
import sys


def write(path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    steps = [(1, [("loss", 5.25), ("learning_rate", 0.01)]),
             (300, [("drop_fraction/encoder/layer_01", 0.125), ("tokens_per_second", 123456.0)])]
    with open(path, "wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=1.5e9, file_version="brain.Event:2").SerializeToString())
        for step, scalars in steps:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars])
            records.write(Event(wall_time=1.5e9 + step, step=step, summary=summary).SerializeToString())


def check(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"{run}/tensorboard", size_guidance={"scalars": 0})
    events.Reload()
    metrics = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    tags = events.Tags()["scalars"]
    wrong = 0
    for key in ("loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_second", "tokens_seen"):
        shown = [(event.step, event.value) for event in events.Scalars(key)]
        expected = [(line["step"], struct.unpack("f", struct.pack("f", line[key]))[0]) for line in metrics]
        if len(shown) != len(expected) or any(
                a[0] != b[0] or not math.isclose(a[1], b[1], rel_tol=1e-6) for a, b in zip(shown, expected)):
            print(f"{key}: {len(shown)} steps shown, {len(expected)} written, or values differ")
            wrong += 1
    for layer in metrics[-1]["moe"]:
        if f"drop_fraction/{layer}" not in tags:
            print(f"drop_fraction/{layer} is missing")
            wrong += 1
    walls = [event.wall_time for event in events.Scalars("loss")]
    if walls != sorted(walls):
        print("wall times fall")
        wrong += 1
    print(f"{len(tags)} tags, {len(metrics)} steps, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "check"):
        sys.exit(__doc__)
    sys.exit(write(sys.argv[2]) if sys.argv[1] == "write" else check(sys.argv[2]) > 0)
