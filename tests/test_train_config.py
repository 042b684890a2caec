"""The settings of a training run: the file that documents them is true, and nothing wrong slips through."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from litemed.runtime.errors import UsageError
from litemed.train.config import Config, differences, parse_setting, read_toml, updated
from litemed.train.losses import FOCAL_ALPHA, FOCAL_GAMMA

DEFAULTS = Path(__file__).parent.parent / "train" / "default.toml"
RECIPE = DEFAULTS.parent / "recipes" / "lora.toml"


def test_the_documented_defaults_are_the_defaults():
    assert tomllib.loads(DEFAULTS.read_text("utf-8")) == dataclasses.asdict(Config())


def test_the_defaults_are_those_of_the_paper():
    config = Config()
    assert (config.run.batch_size, config.run.size, config.run.epochs) == (16, 256, 20)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (5e-5, 0.01)
    assert (config.schedule.kind, config.augmentation.kind) == ("plateau", "flips")
    assert (FOCAL_GAMMA, FOCAL_ALPHA) == (2, 0.25)
    assert (config.sampling.weights, config.sampling.others) == ({"CT": 40, "MR": 10}, 50)
    assert (config.prompts.jitter_pixels, config.lora.rank, config.run.tune) == (5, 4, "lora+decoder")
    assert (config.loss.cross_entropy, config.optimizer.decoder_lr, config.run.average) == (0, 0, 0)


def test_settings_go_through_plain_tables_unchanged_and_hardware_makes_no_other_run():
    config = updated(Config(), {"lora": {"rank": 8}, "sampling": {"weights": {"US": 1}}}, "a.toml")
    assert config.sampling.weights == {"US": 1.0}
    assert updated(Config(), dataclasses.asdict(config), "state") == config
    other = updated(config, {"hardware": {"workers": 3}}, "a.toml")
    assert differences(Config(), other) == ["sampling.weights", "lora.rank"]


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[optimiser]\nlr = 1e-4", ["table 'optimiser'", "optimizer"]),
        ("[optimizer]\nlearning_rate = 1e-4", ["'learning_rate'", "lr"]),
        ("lr = 1", ["'lr'"]),
        ("run = 1", ["run", "table"]),
        ("[optimizer]\nlr = 'fast'", ["optimizer.lr", "'fast'", "number"]),
        ("[optimizer]\nlr = 0", ["optimizer.lr", "at least"]),
        ("[run]\nepochs = 2.5", ["run.epochs", "2.5", "whole"]),
        ("[run]\nsize = 100", ["run.size", "100", "64"]),
        ("[sampling.weights]\nXray = 3", ["'Xray'", "XRay"]),
        ("[sampling.weights]\nCT = -1", ["sampling.weights.CT", "-1"]),
        ("[sampling]\nothers = 0\nweights = {CT = 0}", ["every weight is 0"]),
        ("[prompts]\ntight = 1.5", ["prompts.tight", "1.5", "between 0 and 1"]),
        ("[prompts]\ntight = 0.6\nvolume = 0.6", ["tight, jittered, loose and volume are above 1"]),
        ("[augmentation]\nkind = 'all'", ["augmentation.kind", "'all'", "none, flips, strong"]),
        ("[sampling]\nweights = 3", ["sampling.weights", "table of numbers"]),
        ("[lora]\nrank = 0", ["lora.rank", "between 1 and 256"]),
        ("[hardware]\ncompile = true", ["hardware.compile", "True", "text"]),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_file_and_value(tmp_path, toml, words):
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    with pytest.raises(UsageError) as caught:
        updated(Config(), read_toml(path), str(path))
    message = str(caught.value)
    assert "\n" not in message
    for word in ["mine.toml", *words]:
        assert word in message


@pytest.mark.parametrize("content", [b"[run", b"\xff\xfe", b"[run]\nseed = 1\nseed = 2", None])
def test_a_file_that_is_no_toml_or_missing_is_refused(tmp_path, content):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.toml: (not valid TOML|cannot be read)"):
        read_toml(path)


def test_single_settings_are_toml_or_text():
    assert parse_setting("optimizer.lr=1e-4") == {"optimizer": {"lr": 1e-4}}
    assert parse_setting("run.tune = lora") == {"run": {"tune": "lora"}}
    assert parse_setting("sampling.weights={CT=1}") == {"sampling": {"weights": {"CT": 1}}}


@pytest.mark.parametrize("text", ["lr", "=1", "run.seed=", "run seed=1", 'run.tune=a"b'])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(UsageError, match=r"TABLE\.KEY=VALUE"):
        parse_setting(text)


def test_the_recipe_of_lora_names_no_setting_that_it_leaves_as_it_is():
    tables = read_toml(RECIPE)
    config = updated(Config(), tables, str(RECIPE))
    named = {f"{table}.{key}" for table, values in tables.items() for key in values}
    assert named == set(differences(Config(), config))
    assert config.run.samples_per_epoch % config.run.batch_size == 0
