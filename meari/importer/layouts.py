"""Layouts of state dicts: which name is the embedding, which are the layers', which the output layer's.

Input: the names in a state dict, and a mapping file or the known layouts. Output: `Parts`, names by the part that they
play. Must not know: tensors.

A mapping is a TOML file with the keys of `Layout`; those of the known layouts are in `layouts.toml`.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from meari.export.errors import Unimportable
from meari.models.config import read_toml
from meari.models.errors import ConfigError
from meari.models.fields import did_you_mean, show

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
RAW = "_raw"  # the weights that weight drop drops: they are the ones that a trained model uses
REASONS = (  # why a name cannot be represented: a pattern of the name, and what it is a sign of
    (r"_reverse(_raw)?$", "a layer that reads backwards (bidirectional=True), which sees what it should predict"),
    (r"(^|[._])(in_proj_|self_attn|attn|attention|out_proj)", "attention"),
    (r"(^|\.)(layers\.\d+\.)?linear\.(module\.)?weight(_raw)?$", "a QRNN layer, or a linear map between layers"),
    (r"(^|[._])(conv|norm|bn|ln|layer_?norm|batch_?norm)\w*\.", "a convolution or a normalisation"),
)
MAX_NAMES = 8  # in a message


@dataclass(frozen=True)
class Layout:
    """Names in a state dict.

    name             of the layout
    embedding        [V, E]
    layers           patterns of the layers' names with {weight} and {layer}; without {layer} a pattern is one layer
    output           [V, H], or [V, P] behind a projection; "": the embedding is the output's too (tied)
    output_bias      [V]; "": none
    projection       [P, H], between the last layer and the output; "": none
    projection_bias  [P]; "": none
    ignore           names that play no part; * stands for anything
    """

    name: str
    embedding: str
    layers: tuple[str, ...]
    output: str = ""
    output_bias: str = ""
    projection: str = ""
    projection_bias: str = ""
    ignore: tuple[str, ...] = ()

    @property
    def singles(self) -> dict[str, str]:
        """Names of the tensors that there is one of, by their parts."""
        parts = ("embedding", "output", "output_bias", "projection", "projection_bias")
        return {part: getattr(self, part) for part in parts if getattr(self, part)}


@dataclass(frozen=True)
class Parts:
    """Names that were found: single ones by their part, those of each layer by their weight."""

    layout: Layout
    singles: Mapping[str, str]
    layers: tuple[Mapping[str, str], ...]


def known_layouts() -> list[Layout]:
    """Return the layouts that are recognised by themselves."""
    tables = tomllib.loads(resources.files(__package__).joinpath("layouts.toml").read_text("utf-8"))
    return [parse_layout(name, table, "layouts.toml") for name, table in tables.items()]


def read_layout(path: Path) -> Layout:
    """Read a mapping file. Raises Unimportable."""
    try:
        return parse_layout(path.name, read_toml(path), str(path))
    except ConfigError as error:
        raise Unimportable(str(error)) from error


def parse_layout(name: str, table: Mapping[str, Any], source: str) -> Layout:
    """Read the table of a layout. Raises Unimportable with every problem."""
    known = [field.name for field in fields(Layout) if field.name != "name"]
    problems = [
        f"{key}: got an unknown key, expected one of {', '.join(known)}{did_you_mean(key, known)}"
        for key in table
        if key not in known
    ]
    values: dict[str, Any] = {}
    for key in known:
        value, is_list = table.get(key, "" if key not in ("embedding", "layers") else None), key in ("layers", "ignore")
        texts = list(value) if is_list and isinstance(value, list) else [value] if value != "" else []
        if not all(isinstance(text, str) and text for text in texts) or (key == "layers" and not texts):
            got = "nothing" if value is None else show(value)
            problems.append(f"{key}: got {got}, expected a name{' or a list of names' if is_list else ''}")
        values[key] = tuple(texts) if is_list else next(iter(texts), "")
    problems = problems or _problems_of_patterns(values["layers"])
    if problems:
        raise Unimportable("\n  ".join([f"{source}: {len(problems)} problem(s)", *problems]))
    return Layout(name, **values)


def _problems_of_patterns(patterns: tuple[str, ...]) -> list[str]:
    example = "one like rnn.{weight}_l{layer}"
    problems = []
    for pattern in patterns:
        unknown = [each for each in re.findall(r"\{.*?\}", pattern) if each not in ("{weight}", "{layer}")]
        if unknown or pattern.count("{weight}") != 1 or pattern.count("{layer}") > 1:
            problems.append(f"layers: got {show(pattern)}, expected a pattern with {{weight}} and {{layer}}, {example}")
    if len({"{layer}" in pattern for pattern in patterns}) > 1:
        problems.append("layers: got patterns with and without {layer}, expected one of the two")
    return problems


def without_common_prefix(names: Iterable[str]) -> str:
    """Return the prefix that all names have, up to its dot, as a wrapped model has: `module.`; "" if there is none."""
    first = {name.partition(".")[0] for name in names}
    prefix = first.pop() + "."
    return prefix if not first and all(name.startswith(prefix) for name in names) else ""


def find_parts(names: Iterable[str], layout: Layout | None, *, tied: bool) -> Parts:
    """Return the part of every name. layout: None: one of the known ones.

    tied   one of embedding and output may be missing: it is the other

    Raises Unimportable for a name without a part, a part without a name, and names that no layout has.
    """
    names = list(names)
    chosen = layout or _recognised(names)
    layers = _layers_of(chosen, names)
    found = {part: name for part, name in chosen.singles.items() if name in names}
    ignored = {name for name in names if any(fnmatchcase(name, pattern) for pattern in chosen.ignore)}
    played = {
        *found.values(),
        *(name for layer in layers for name in layer.values()),
        *_dropped(chosen, names),
        *ignored,
    }
    _refuse_unknown([name for name in names if name not in played], chosen, layers)
    optional = ("output_bias", "projection_bias") if layout is None else ()  # a mapping says what there is
    missing = [part for part in chosen.singles if part not in found and part not in optional]
    if tied and len(missing) == 1 and missing[0] in ("embedding", "output"):
        found[missing[0]] = found["output" if missing == ["embedding"] else "embedding"]
        missing = []
    _refuse_missing(missing, chosen, names)
    return Parts(chosen, found, layers)


def _recognised(names: list[str]) -> Layout:
    known = known_layouts()
    for layout in known:
        if _layers_of(layout, names, strict=False) and {layout.embedding, layout.output} & {*names}:
            return layout
    for name in names:
        _refuse_sign(name)
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    expected = f"those of {', '.join(layout.name for layout in known)}; say with --mapping what plays which part"
    raise Unimportable(f"got the names {shown}, expected {expected}")


def _pattern(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{weight\}", rf"(?P<weight>{'|'.join(WEIGHTS)})")
    return re.compile(text.replace(r"\{layer\}", r"(?P<layer>0|[1-9][0-9]{0,3})") + rf"(?P<raw>{RAW})?")


def _matches(layout: Layout, names: Iterable[str]) -> Iterable[tuple[int, str, bool, str]]:
    """Yield for each name of a layer: number, weight, whether it is raw, name."""
    for index, pattern in enumerate(map(_pattern, layout.layers)):
        for name in names:
            if found := pattern.fullmatch(name):
                number = int(found["layer"]) if "layer" in pattern.groupindex else index
                yield number, found["weight"], found["raw"] is not None, name


def _dropped(layout: Layout, names: list[str]) -> set[str]:
    """Return the names that weight drop keeps beside the raw ones: copies with some weights at zero."""
    found = list(_matches(layout, names))
    raw = {(number, weight) for number, weight, is_raw, _ in found if is_raw}
    return {name for number, weight, is_raw, name in found if not is_raw and (number, weight) in raw}


def _layers_of(layout: Layout, names: list[str], *, strict: bool = True) -> tuple[dict[str, str], ...]:
    layers: dict[int, dict[str, str]] = {}
    dropped = _dropped(layout, names)
    for number, weight, _, name in _matches(layout, names):
        layer = layers.setdefault(number, {})
        if name in dropped:
            continue
        if strict and weight in layer:
            raise Unimportable(f"{name}: got a second {weight} of layer {number}, beside {layer[weight]}")
        layer[weight] = name
    if strict:
        _check_layers(layout, layers, names)
    return tuple(layers[number] for number in sorted(layers))


def _check_layers(layout: Layout, layers: Mapping[int, Mapping[str, str]], names: list[str]) -> None:
    for name in names:
        _refuse_sign(name, only_strong=True)
    patterns = ", ".join(layout.layers)
    if not layers:
        near = did_you_mean(layout.layers[0].format(weight="weight_ih", layer=0), names)
        raise Unimportable(f"got no name as {patterns}, expected those of at least one layer{near}")
    first = min(layers)
    gap = next((number for number in range(first, first + len(layers)) if number not in layers), None)
    from_zero = re.search(r"(_l|\.)\{layer\}", patterns) is not None  # as torch counts
    if first > (not from_zero) or gap is not None:
        said = f"got the layers {', '.join(map(str, sorted(layers)))}"
        raise Unimportable(f"{patterns}: {said}, expected all from 0{'' if from_zero else ' or 1'} on")
    for number, layer in sorted(layers.items()):
        for weight in ("weight_ih", "weight_hh"):
            if weight not in layer:
                pattern = layout.layers[0 if "{layer}" in layout.layers[0] else number]
                name = pattern.format(weight=weight, layer=number)
                used = {each for one in layers.values() for each in one.values()}
                raise _missing(name, [each for each in names if each not in used])
        if ("bias_ih" in layer) != ("bias_hh" in layer):
            has = "bias_ih" if "bias_ih" in layer else "bias_hh"
            other = "bias_hh" if has == "bias_ih" else "bias_ih"
            raise _missing(layer[has].replace(has, other), [each for each in names if each != layer[has]])


def _refuse_sign(name: str, *, only_strong: bool = False) -> None:
    for pattern, what in REASONS[:2] if only_strong else REASONS:
        if re.search(pattern, name, re.IGNORECASE):
            raise Unimportable(f"{name}: belongs to {what}; a bundle cannot represent that")


def _refuse_unknown(unknown: list[str], layout: Layout, layers: tuple[Mapping[str, str], ...]) -> None:
    for name in unknown:
        _refuse_sign(name)
    if unknown:
        expected = [*layout.singles.values(), *(name for layer in layers for name in layer.values())]
        first, more = unknown[0], f", and {len(unknown) - 1} more such names" if len(unknown) > 1 else ""
        said = f"got a name that {layout.name} does not have{did_you_mean(first, expected)}{more}"
        raise Unimportable(f"{first}: {said}; what plays no part is named in `ignore` of a --mapping file")


def _refuse_missing(missing: list[str], layout: Layout, names: list[str]) -> None:
    if not missing:
        return
    used = {*layout.singles.values()}
    error = _missing(layout.singles[missing[0]], [name for name in names if name not in used])
    hint = "; if embedding and output share one tensor and the file has it once, say --tied"
    raise Unimportable(f"{error}{hint if missing[0] in ('embedding', 'output') else ''}")


def _missing(name: str, others: list[str]) -> Unimportable:
    return Unimportable(f"{name}: missing{did_you_mean(name, others)}")
