"""Does a run survive what happens to it? Random trials, each a JSON line.

    python -m benchmarks.reliability PART OUT [--trials=FIRST:END]

    kills           train.py is killed, stopped, or refused the disk, at random moments, and started again
    flips           a bit or the end of a file is lost
    configurations  random fields of the experiments get random values
    endurance       10,000 steps of each kind of experiment

What a trial does follows from its number. Trials whose lines are in OUT/PART.jsonl already are not repeated, so that
the same command goes on. At the end the part's table is printed; the status is 1 where a trial has found a fault.
docs/reliability.md has what was found.
"""
