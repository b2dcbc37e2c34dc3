import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import keras
import pytest

hypothesis.settings.register_profile(
    "default",
    deadline=None,
    # The same examples at every run: a red build is then always a change's doing.
    derandomize=True,
    max_examples=40,
    suppress_health_check=list(hypothesis.HealthCheck),
)
# `HYPOTHESIS_PROFILE=search pytest` looks for new counterexamples.
hypothesis.settings.register_profile(
    "search",
    parent=hypothesis.settings.get_profile("default"),
    derandomize=False,
    max_examples=500,
)
# For mutation testing, where a failure says enough by itself.
hypothesis.settings.register_profile(
    "mutants",
    parent=hypothesis.settings.get_profile("default"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    max_examples=15,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(20260101)
