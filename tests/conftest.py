"""Shared by all tests: the embedded profile, one thread, and a model small enough to train in seconds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores

import pytest

from helpers import course

course.start(seed=0)


@pytest.fixture(scope="session")
def sft():
    """The shipped model that GRPO starts from, and its tokeniser."""
    from helpers.models import load_model

    return load_model(course.profile().models["sft"])
