"""YAML 1.2 as plain Python values, and back: the one reader and the one writer.

Scalars follow YAML 1.2's core schema (`1e-5` is a number; `no` and dates are words). A key given twice is an error, and so
is a value that JSON lacks. Depth and number of values are bounded, so that a small hostile file costs little.
"""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from backbench.errors import ConfigError
from backbench.printable import printable

_MOST_VALUES = 50_000
_DEEPEST = 100

_CORE = (  # YAML 1.2.2, section 10.3.2; null and the truth values with the capitals that it allows
    ("null", re.compile(r"(?:~|null|Null|NULL)?\Z")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    ("float", re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")),
    ("float", re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")),
)
# Words that readers of YAML 1.1 (PyYAML) would convert are written in quotes.
_OLDER = re.compile(
    r"(?:y|n|yes|no|on|off|<<|=|[-+]?0b[01_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|[-+]?[0-9][0-9_.]*(?:[eE][-+][0-9]+)?|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*)\Z",
    re.IGNORECASE,
)


class _Resolver(VersionedResolver):
    """Uses the core schema whatever version a document claims."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            return Tag(suffix=f"tag:yaml.org,2002:{_kind(value)}")
        return super().resolve(kind, value, implicit)

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 2)


class _Careful(_Resolver):
    """Used by the writer: quotes words that YAML 1.1 would read as something else."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and _kind(value) == "str" and _OLDER.match(value):
            return Tag(suffix="tag:yaml.org,2002:bool")
        return super().resolve(kind, value, implicit)


class _Representer(SafeRepresenter):
    """Writes numbers so that YAML 1.1 also reads them as numbers, and no aliases."""

    def represent_float(self, data: Any) -> ScalarNode:
        text = repr(data)
        if "e" in text and "." not in text:
            return self.represent_scalar("tag:yaml.org,2002:float", text.replace("e", ".0e"))
        return super().represent_float(data)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Representer.add_representer(float, _Representer.represent_float)


def parse_yaml(text: str, *, where: str = "configuration") -> Any:
    """A YAML document as plain Python values: mappings, lists, words, numbers, truth values, null.

    Raises:
        ConfigError: the text is not YAML, a mapping has a key twice, or a value is a date, a set, bytes, a huge number,
            or refers to its own parts without end.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Resolver, reader.Constructor, reader.max_depth = _Resolver, SafeConstructor, _DEEPEST
    try:
        values = reader.load(text)
        _refuse_odd(values)
    except DuplicateKeyError as error:
        key = re.match(r'found duplicate key "(.*?)" with', str(error.problem), re.DOTALL)
        line = error.problem_mark.line + 1
        raise ConfigError(f"{where}: key '{printable(key[1]) if key else '?'}' is given twice (line {line})") from None
    except YAMLError as error:
        if "maximum depth" in str(error):
            raise ConfigError(f"{where}: nests deeper than any configuration") from None
        raise ConfigError(f"{where}: not valid YAML: {printable(_problem(error), 400)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nests deeper than any configuration") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, AssertionError) as error:
        # raised for `!!int ""`, `!!bool x`, `!!timestamp x`, a number of 5,000 digits
        raise ConfigError(f"{where}: not valid YAML: a value does not fit its tag ({printable(error)})") from None
    return values


def write_yaml(values: Any, *, lists_in_line: bool = False) -> str:
    """Return plain values as YAML that `parse_yaml` and readers of YAML 1.1 read back to equal values.

    Args:
        lists_in_line: write mappings and lists that contain only plain values in one line, `{a: 1}`.
    """
    writer: Any = YAML(typ="safe", pure=True)  # its attributes are not typed
    writer.Resolver, writer.Representer = _Careful, _Representer
    writer.default_flow_style = None if lists_in_line else False
    writer.sort_base_mapping_type_on_output = False
    writer.width, writer.allow_unicode = 120, True
    out = io.StringIO()
    writer.dump(values, out)
    return out.getvalue()


def _problem(error: YAMLError) -> str:
    """Return what is wrong, and in which line of the document."""
    if not isinstance(error, MarkedYAMLError) or error.problem is None or error.problem_mark is None:
        return " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
    mark = error.problem_mark
    return f"{' '.join(error.problem.split())} (line {mark.line + 1}, column {mark.column + 1})"


def _kind(word: str) -> str:
    return next((kind for kind, form in _CORE if form.match(word)), "str")


def _refuse_odd(values: Any) -> None:
    """Raise ConfigError for values that JSON lacks and for aliases that expand to more than any configuration has."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if type(value) in (dict, list):
            if isinstance(value, dict):
                _check_keys(value)
            waiting += value.values() if isinstance(value, dict) else value
        elif type(value) is int:
            if value.bit_length() > 64:
                raise ConfigError(f"{printable(value)} is too large")
        elif type(value) not in (str, float, bool, type(None)):
            kind = {
                "date": "a date",
                "datetime": "a date",
                "TimeStamp": "a date",
                "bytes": "binary data",
                "ordereddict": "an ordered mapping",
            }.get(type(value).__name__, f"a {type(value).__name__}")
            raise ConfigError(f"{printable(value, 80)} is {kind}; write words (in quotes), numbers, lists or mappings")
        if seen + len(waiting) > _MOST_VALUES:
            raise ConfigError(f"more than {_MOST_VALUES:,} values, counting those that aliases repeat")


def _check_keys(mapping: dict[Any, Any]) -> None:
    for key in mapping:
        if not isinstance(key, str):
            raise ConfigError(f"a key must be a word, not {printable(repr(key), 80)}")
        if key == "<<":
            raise ConfigError("not valid YAML: '<<' merges mappings in YAML 1.1 alone; write the keys out")
