"""Strict YAML, typed overrides, frozen models, identity."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from backbench.config import (
    CHANGES_NO_NUMBER,
    Config,
    build,
    digest,
    dotted_keys,
    dump,
    indifferent_keys,
    parse_yaml,
    read_mapping,
    without_indifferent,
)
from backbench.errors import BackbenchError, ConfigError
from backbench.yaml_text import write_yaml


class Optim(Config):
    base_lr: float = 0.1
    batch: Annotated[int, Field(gt=0)] = 8
    betas: tuple[float, float] = (0.9, 0.99)


class Recipe(Config):
    name: str = "a"
    root: str | None = None
    kind: Literal["none", "bf16", "16"] = "none"
    limit: int | None = 5
    fast: bool = False
    optim: Optim = Optim()


def test_defaults_and_values():
    recipe = build(Recipe, {"name": "b", "optim": {"batch": 4}})
    assert (recipe.name, recipe.optim.batch, recipe.optim.base_lr) == ("b", 4, 0.1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nmae": "x"}, ["unknown key 'nmae'", "did you mean 'name'?"]),
        ({"optim": {"base_ir": 1.0}}, ["unknown key 'optim.base_ir'", "did you mean 'optim.base_lr'?"]),
        ({"zzzzzzzz": 1}, ["unknown key 'zzzzzzzz'", "known:", "optim.batch"]),
        ({"optim": {"batch": "8"}}, ["'optim.batch'", "must be a whole number", '"8"']),
        ({"optim": {"batch": 8.5}}, ["'optim.batch'"]),
        ({"optim": {"batch": True}}, ["'optim.batch'"]),
        ({"optim": {"batch": 0}}, ["'optim.batch'", "greater than 0", "given: 0"]),
        ({"optim": {"base_lr": float("nan")}}, ["'optim.base_lr'", "finite"]),
        ({"optim": {"betas": [0.9]}}, ["optim.betas"]),
        ({"fast": "yes"}, ["'fast'", "must be true or false"]),
        ({"fast": 1}, ["'fast'", "must be true or false"]),
        ({"name": 3}, ["'name'", "must be text"]),
        ({"kind": "fp8"}, ["'kind'", "bf16"]),
        ({"optim": 3}, ["'optim'"]),
    ],
)
def test_a_value_that_does_not_fit_is_named(values, words):
    with pytest.raises(ConfigError) as error:
        build(Recipe, values, where="file.yaml")
    assert str(error.value).startswith("file.yaml: ")
    for word in words:
        assert word in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        build(Recipe, {"nmae": "x", "fast": "yes"})
    assert "'nmae'" in str(error.value)
    assert "'fast'" in str(error.value)


def test_an_integer_is_a_float_and_a_list_is_a_tuple():
    recipe = build(Recipe, {"optim": {"base_lr": 2, "betas": [0, 1]}})
    assert type(recipe.optim.base_lr) is float
    assert recipe.optim.betas == (0.0, 1.0)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {c: 1, c: 2}", "- {x: 1}\n- {y: 1, y: 1}"])
def test_a_key_twice_is_an_error(text):
    with pytest.raises(ConfigError, match=r"given twice \(line \d+\)"):
        parse_yaml(text)


def test_the_same_key_in_two_mappings_is_fine():
    assert parse_yaml("a: {x: 1}\nb: {x: 2}") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-5", 1e-5), ("1E5", 1e5), ("-2.5e-3", -2.5e-3), (".5e1", 5.0), ("3", 3), ("1.0", 1.0)),
        *(("true", True), ("False", False), ("null", None), ("~", None)),
        *((word, word) for word in ("no", "No", "NO", "yes", "on", "off", "y", "n", "none", "1e", "e5", "1e-5x")),
    ],
)
def test_yaml_scalars(text, value):
    read = parse_yaml(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("text", "value"), [("%YAML 1.1\n---\na: no", "no"), ("a: 0o17", 15), ("a: 1_000", "1_000"),
                                            ("a: 12:30:45", "12:30:45"), ("a: 017", 17)])  # fmt: skip
def test_yaml_is_1_2_whatever_a_document_claims(text, value):
    assert parse_yaml(text) == {"a": value}


@pytest.mark.parametrize("value", ["no", "Yes", "on", "1_000", "12:30:45", "2024-01-31", "<<", 1e-5, 1e17, 0.1, -3, True, None,
                                   "017", "0b1", "x: y", "α", "", [1, "no"], {"a": {"b": ["c"]}}])  # fmt: skip
@pytest.mark.parametrize("lists_in_line", [False, True])
def test_what_is_written_is_read_back_by_readers_of_1_1_too(value, lists_in_line):
    text = write_yaml({"key": value}, lists_in_line=lists_in_line)
    assert parse_yaml(text) == yaml.safe_load(text) == {"key": value}


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tx: 1", "a: !!python/object/apply:os.system [true]"])
def test_what_is_not_plain_yaml_is_an_error(text):
    with pytest.raises(ConfigError, match="here: not valid YAML"):
        parse_yaml(text, where="here")


@pytest.mark.parametrize("text", ["{{batch}}", "? [1, 2]\n: 3"])
def test_a_key_that_is_no_word_is_an_error_not_a_crash(text):
    with pytest.raises(ConfigError):
        parse_yaml(text)


def test_a_date_is_a_word():
    # As in YAML 1.2's core schema; JSON and the models have no dates.
    assert build(Recipe, parse_yaml("name: 2024-01-31")).name == "2024-01-31"
    assert build(Recipe, {}, ["name=2024-01-31"]).name == "2024-01-31"


def test_read_mapping(tmp_path):
    file = tmp_path / "a.yaml"
    with pytest.raises(ConfigError, match=r"a\.yaml: no such file"):
        read_mapping(file)
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        read_mapping(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_mapping(file)
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="expected a mapping of keys, found list"):
        read_mapping(file)
    file.write_text("# nothing\n")
    assert read_mapping(file) == {}
    file.write_text("lr: 1e-5\n")
    assert read_mapping(file) == {"lr": 1e-5}


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("name=123", lambda r: r.name, "123"),
        ("name=true", lambda r: r.name, "true"),
        ("name=a=b", lambda r: r.name, "a=b"),
        ("name=", lambda r: r.name, ""),
        ("kind=bf16", lambda r: r.kind, "bf16"),
        ("kind=16", lambda r: r.kind, "16"),
        ("fast=true", lambda r: r.fast, True),
        ("limit=7", lambda r: r.limit, 7),
        ("limit=null", lambda r: r.limit, None),
        ("root=null", lambda r: r.root, None),
        ("root=/data/x", lambda r: r.root, "/data/x"),
        ("optim.batch=16", lambda r: r.optim.batch, 16),
        ("optim.base_lr=1e-5", lambda r: r.optim.base_lr, 1e-5),
        ("optim.base_lr=2", lambda r: r.optim.base_lr, 2.0),
        ("optim.betas=[0.5, 0.6]", lambda r: r.optim.betas, (0.5, 0.6)),
    ],
)
def test_an_override_is_typed_by_the_model(override, read, value):
    start = {"root": "/old", "kind": "none", "optim": {"base_lr": 0.3}}
    recipe = build(Recipe, start, [override])
    assert read(recipe) == value
    assert type(read(recipe)) is type(value)
    assert start == {"root": "/old", "kind": "none", "optim": {"base_lr": 0.3}}, "the caller's values are not touched"


def test_an_optional_word_that_looks_like_a_number_stays_a_word():
    assert build(Recipe, {}, ["root=2024"]).root == "2024"


@pytest.mark.parametrize(("key", "read"), [("limit", lambda r: r.limit), ("root", lambda r: r.root)])
def test_none_clears_an_optional_field(key, read):
    start = {"root": "/old", "limit": 3}
    assert read(build(Recipe, start)) is not None
    assert read(build(Recipe, start, [f"{key}=none"])) is None


def test_the_last_override_wins_and_leaves_its_neighbours():
    recipe = build(Recipe, {"optim": {"base_lr": 0.3}}, ["optim.batch=2", "optim.batch=3"])
    assert (recipe.optim.batch, recipe.optim.base_lr) == (3, 0.3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.bach=3", ["unknown key 'optim.bach'", "did you mean 'optim.batch'?"]),
        ("bach=3", ["unknown key 'bach'"]),
        ("name.x=3", ["'name' has no keys below it"]),
        ("optim..batch=3", ["unknown key"]),
        ("optim.batch", ["not of the form key=value"]),
        ("=3", ["not of the form key=value"]),
        ("", ["not of the form key=value"]),
        ("optim.batch=x", ["'optim.batch'", "must be a whole number"]),
        ("optim.batch=", ["'optim.batch'"]),
        ("optim.batch=-1", ["'optim.batch'", "greater than 0"]),
        ("optim.betas=[1", ["override 'optim.betas'", "not valid YAML", "(line 1, column 3)"]),
        ("kind=fp8", ["'kind'"]),
    ],
)
def test_an_override_that_does_not_fit_is_named(override, words):
    with pytest.raises(ConfigError) as error:
        build(Recipe, {}, [override])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("inner", [3, "batch", None, [1]])
def test_an_override_below_a_value_that_is_no_mapping_is_an_error_not_a_crash(inner):
    with pytest.raises(ConfigError, match="optim"):
        build(Recipe, {"optim": inner}, ["optim.batch=3"])


def test_frozen():
    recipe = build(Recipe, {})
    with pytest.raises(ValidationError):
        recipe.name = "c"
    with pytest.raises(ValidationError):
        recipe.optim.batch = 2
    assert recipe == Recipe()


def test_dotted_keys():
    expected = ["name", "root", "kind", "limit", "fast", "optim.base_lr", "optim.batch", "optim.betas"]
    assert dotted_keys(Recipe) == expected


def test_digest_is_blind_to_key_order_and_sees_every_value():
    assert digest({"a": 1, "b": {"x": 1, "y": 2}}) == digest({"b": {"y": 2, "x": 1}, "a": 1})
    variants = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"a": [1]}, {"b": 1}, {"a": {"b": 1}}, {"a.b": 1}]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest([1, 2]) != digest([2, 1])


def test_digest_of_a_model_is_that_of_its_values_however_written():
    written = build(Recipe, {"optim": {"batch": 4, "base_lr": 1}, "name": "x"})
    other = build(Recipe, {"name": "x", "fast": False}, ["optim.base_lr=1.0", "optim.batch=4"])
    assert digest(written) == digest(other) == digest(written.model_dump(mode="json"))
    assert digest(written) != digest(build(Recipe, {"name": "x"}))


@pytest.mark.parametrize("name", ["a", "no", "null", "1e-5", "1E5", "12", "1.5", "true", "x: y", "", "α 'q'", "a\nb"])
def test_dump_and_build_are_inverse(name):
    recipe = build(Recipe, {"name": name, "root": name, "limit": None, "optim": {"base_lr": 1e-5, "betas": [0, 1]}})
    assert build(Recipe, parse_yaml(dump(recipe))) == recipe


def test_a_configuration_error_is_for_the_user_to_read():
    assert issubclass(ConfigError, BackbenchError)


def bomb(levels=60):
    """Lists of two aliases each: every further line doubles the expanded size."""
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!timestamp 2001-01-01", "is a date"),
        ("a: !!timestamp 2001-01-01 10:00:00", "is a date"),
        ("a: !!set {x, y}", "is a set"),
        ("a: !!binary aGVsbG8=", "is binary data"),
        ("a: !!omap [x: 1]", "is an ordered mapping"),
        ("a: !!pairs [x: 1]", "is a tuple"),
        ("a: !!int ''", "does not fit its tag"),
        ("a: !!bool perhaps", "does not fit its tag"),
        ("a: !!float x", "does not fit its tag"),
        ("a: " + "9" * 5000, "does not fit its tag"),
        ("a: 0x" + "f" * 5000, "a whole number of 20000 bits is too large"),
        ("a: &x [*x]", "aliases repeat"),
        ("a: &x {y: *x}", "aliases repeat"),
        (bomb(), "counting those that aliases repeat"),
        ("a: " + "[" * 20_000, "nests deeper"),
        ("a: " + "{b: " * 20_000, "nests deeper"),
        ("- " * 20_000, "nests deeper"),
        ("a: &a {b: 1}\nc: {<<: *a}", "not valid YAML"),
        ("a: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("a: \x1b[31m", "not valid YAML"),
        ("? [1, 2]\n: 3", "a key must be a word"),
    ],
    ids=lambda value: value[:24] if len(value) > 24 else value,
)
def test_odd_yaml_is_a_sentence(text, words):
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, where="x.yaml")
    assert str(error.value).startswith("x.yaml: ")
    assert words in str(error.value)
    assert "\x1b" not in str(error.value)


def test_aliases_that_repeat_a_little_are_read():
    assert parse_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbflr: 1")
    assert read_mapping(tmp_path / "a.yaml") == {"lr": 1}


def test_a_pipe_or_an_endless_file_is_no_configuration(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="is a pipe; give a file"):
        read_mapping(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="is a device; give a file"):
        read_mapping("/dev/zero")
    (tmp_path / "long.yaml").write_bytes(b"#" * (1 << 20))
    with pytest.raises(ConfigError, match="more than 262,144 bytes"):
        read_mapping(tmp_path / "long.yaml")


class Inner(Config):
    """A part of a configuration."""

    steps: int = 3
    log_every: Annotated[int, CHANGES_NO_NUMBER] = 20


class Outer(Config):
    """A configuration with a marked field at the top, one below, and an optional one."""

    inner: Inner = Inner()
    jobs: Annotated[int | None, CHANGES_NO_NUMBER] = None


def test_fields_that_change_no_number():
    assert indifferent_keys(Outer) == ["inner.log_every", "jobs"]
    config = build(Outer, {}, ["inner.log_every=5", "inner.steps=4", "jobs=2"])
    assert without_indifferent(config) == Outer(inner=Inner(steps=4))
