"""The names of the checks."""

from __future__ import annotations

#: checks that a single case answers, and what they ask
CASE_CHECKS = {
    "returns": "the function returns attention's result, of the right shape, dtype and device",
    "finite": "no NaN or infinity where the truth is finite",
    "bound": "no error beyond the a priori bound",
    "inputs-unchanged": "the inputs, and the memory around them, are left alone",
    "repeat": "the same bits when run again",
    "memory": "the same bits whatever was in memory before",
    "kept": "a result stays what it was when the function is called again",
    "invariance": "the answer to a related problem (other units, another order, a part of it) follows from this one",
    "inference": "without gradients, no error beyond the a priori bound",
    "batch-invariance": "the same bits when a batch element is alone",
}
#: checks that only many cases together answer
STATISTICAL = ("ratio", "predictor", "bias", "systematic")
#: checks of which one failing turns the gate red, under the default budgets
GATES = (
    *(c for c in CASE_CHECKS if c != "batch-invariance"),
    *STATISTICAL, "algebra", "accumulators",
)  # fmt: skip
