"""A config whose teacher is cached."""

import pytest


@pytest.fixture
def cached_config(tiny_config):
    tiny_config.teacher.source = "cache"
    tiny_config.data.augment = "none"
    return tiny_config
