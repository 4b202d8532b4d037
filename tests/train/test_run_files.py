"""Files of a run folder: damaged ones are refused with their place, half a line at the end of metrics is none."""

import json
import os
import re

import pytest

from mimkit.core.config import to_dict
from mimkit.core.errors import UserError
from mimkit.recipes import find_recipe
from mimkit.train.run_folder import RunFolder

GOOD = {"format": 2, "recipe": "mae_mini_28", "config": to_dict(find_recipe("mae_mini_28")), "resolved": {"steps": 3}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": 3}, "recipe: expected a text, got 3"),
        ({"format": "2"}, 'format: expected a whole number of at least 1, got "2"'),
        ({"resolved": {"steps": 0}}, "resolved.steps: expected a whole number of at least 1 or null, got 0"),
        ({"resolved": {"engine": {"threads": "4"}}}, "resolved.engine.threads: expected a whole number of at least 1"),
        ({"resolved": {"engine": {"precision": "float16"}}}, 'expected "float32" or "bfloat16", got "float16"'),
        ({"resolved": {"size": [28, 10**9]}}, "resolved.size.1: expected a whole number between 1 and"),
        ({"resolved": {"reading": {"bands": [0]}}}, "resolved.reading: images.bands are counted from 1"),
        ({"config": {"class": "Pretrain", "seed": 2**63}}, "config.seed: expected a number below 2^63"),
        ({"config": []}, "config: expected an object, got []"),
    ],
)
def test_a_damaged_config_is_refused_with_its_place(tmp_path, change, says):
    run = RunFolder(tmp_path)
    run.config_path.write_text(json.dumps(GOOD | change))
    for read in (run.read_config, run.read_plain_config):
        with pytest.raises(UserError, match=re.escape(says)) as caught:
            read()
        assert str(caught.value).startswith(f"{run.config_path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"step": 1}\n{"st\n{"step": 2}\n', "line 2 is no JSON"),
        ('{"step": "1"}\n', 'line 1.step: expected a whole number of at least 0, got "1"'),
        ('{"step": 1}\n[2]\n', "line 2: expected an object, got [2]"),
        ('{"step": 1, "loss": {}}\n', "line 1.loss: expected a number, got {}"),
        ('{"step": 1, "knn": 2.5}\n', "line 1.knn: expected a number between 0 and 1, got 2.5"),
        ('{"step": 1, "feature_spread": "x"}\n', 'line 1.feature_spread: expected a number, got "x"'),
        ('{"loss": 1}\n', "line 1.step is missing"),
    ],
)
def test_a_damaged_line_of_metrics_is_refused(tmp_path, text, says):
    run = RunFolder(tmp_path)
    run.metrics_path.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        run.metrics()


def test_half_a_line_of_a_killed_run_is_none(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics_path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.5}]


def test_a_pipe_in_a_run_folder_is_refused_at_once(tmp_path):
    run = RunFolder(tmp_path)
    for name, read in (("config.json", run.read_config), ("metrics.jsonl", run.metrics), ("result.json", run.result)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="cannot be read"):
            read()
