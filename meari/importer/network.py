"""Tensors of others as meari's own model, with the same log-probabilities.

Input: tensors by their names, the parts that they play, a vocabulary. Output: a `RecurrentLanguageModel` and its
config. Must not know: files.

What differs from the foreign model computes the same:

    biases that are missing are zeros
    an LSTM's projection (proj_size), h = W_hr m, goes into the products that take h: W_hh W_hr, W_ih W_hr, V W_hr
    a projection before an untied output goes into the output's matrix
    an added unknown token is a row of zeros, and its logit lies below all others by `MARGIN`
    an added boundary token leaves the state at zero, where such models begin. Its embedding alone has a one in a number
    that is added to all embeddings, the *flag*. The flag shuts the input gate of an LSTM, holds the state of a GRU,
    cancels the bias of an RNN; and one unit that is added to each layer but the last hands it on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meari.bundle_format.names import Family
from meari.export.errors import Unimportable
from meari.importer.layouts import Parts
from meari.importer.vocabulary import ForeignVocabulary
from meari.models.config import RecurrentConfig
from meari.models.families import RecurrentLanguageModel, build_model

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FAMILIES = {1: Family.RNN, 3: Family.GRU, 4: Family.LSTM}  # by their gates
MARGIN = 64.0  # nats: the tokens that were added take less than 1e-27 of the probability
SHUT = 64.0  # what the flag adds to a gate's input so that it is 0 or 1, beyond its bias


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, its gates one below another: W_ih [G * H, input], W_hh [G * H, H], both biases [G * H]."""

    input: Tensor
    state: Tensor
    input_bias: Tensor
    state_bias: Tensor

    @property
    def hidden_size(self) -> int:
        return self.state.shape[1]

    @property
    def num_gates(self) -> int:
        return self.state.shape[0] // self.state.shape[1]


@dataclass(frozen=True)
class Network:
    """Weights of a whole model, float64.

    embedding    [V, E]
    projection   [E, H], of a tied model alone, or None
    output       [V, H], or None: the embedding is the output's too
    output_bias  [V]
    """

    embedding: Tensor
    layers: tuple[Layer, ...]
    projection: Tensor | None
    output: Tensor | None
    output_bias: Tensor

    @property
    def family(self) -> Family:
        return FAMILIES[self.layers[0].num_gates]


def read_network(tensors: Mapping[str, Tensor], parts: Parts, num_tokens: int, vocabulary: str) -> Network:
    """Read the tensors that play a part. Raises Unimportable for a shape or a number that does not fit.

    num_tokens, vocabulary   of the vocabulary: its size, and its name in a message
    """
    singles = {part: _numbers(tensors, name) for part, name in parts.singles.items()}
    embedding = singles["embedding"]
    _check_shape(parts.singles["embedding"], embedding, (num_tokens, None), f"a row for each token of {vocabulary}")
    layers, narrowing = _read_layers(tensors, parts, embedding.shape[1])
    below = layers[-1].hidden_size if narrowing is None else narrowing.shape[0]
    projection, output_size = _read_projection(singles, parts, below)
    output = singles.get("output")
    tied = output is None or (output.shape == embedding.shape and torch.equal(output, embedding))
    output = embedding if output is None else output
    name = parts.singles.get("output", parts.singles["embedding"])
    said = f"a row for each token of {vocabulary}, by the {output_size} outputs below"
    _check_shape(name, output, (num_tokens, output_size), said)
    bias = singles.get("output_bias", torch.zeros(num_tokens, dtype=torch.float64))
    _check_shape(parts.singles.get("output_bias", ""), bias, (num_tokens,), f"a number for each token of {vocabulary}")
    if "projection_bias" in singles:
        bias = bias + output @ singles["projection_bias"]
    maps = [each for each in (projection, narrowing) if each is not None]
    whole = maps[0] @ maps[1] if len(maps) == 2 else maps[0] if maps else None
    hidden = layers[-1].hidden_size
    if tied and (whole is None or hidden != embedding.shape[1]):  # the model has a projection where the sizes differ
        return Network(embedding, layers, whole, None, bias)
    return Network(embedding, layers, None, output if whole is None else output @ whole, bias)


def _numbers(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = tensors[name]
    if tensor.is_meta:
        raise Unimportable(f"{name}: got a tensor on the meta device, which has no numbers, expected numbers")
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        kind = "quantised" if tensor.is_quantized else str(tensor.dtype).removeprefix("torch.")
        kind = kind if tensor.layout == torch.strided else "sparse"
        raise Unimportable(f"{name}: got {kind} numbers, expected dense ones of float32, float64, float16 or bfloat16")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a few bytes may claim any size
        raise Unimportable(
            f"{name}: got the shape {list(tensor.shape)} of numbers that repeat, expected each to be stored"
        )
    numbers = tensor.detach().to("cpu", torch.float64)
    wrong = int((~torch.isfinite(numbers.float())).sum())
    if wrong:
        raise Unimportable(f"{name}: got {wrong:,} numbers that are not finite in float32, expected none")
    return numbers


def _check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], reason: str) -> None:
    fits = tensor.dim() == len(expected) and all(
        want is None or got == want for got, want in zip(tensor.shape, expected, strict=True)
    )
    if not fits or 0 in tensor.shape:
        shown = ", ".join("any" if want is None else str(want) for want in expected)
        raise Unimportable(f"{name}: got the shape {list(tensor.shape)}, expected [{shown}]: {reason}")


def _read_layers(
    tensors: Mapping[str, Tensor], parts: Parts, input_size: int
) -> tuple[tuple[Layer, ...], Tensor | None]:
    """Return the layers, and the projection of the last one, [P, H], if it has one."""
    layers: list[Layer] = []
    narrowing: Tensor | None = None
    for names in parts.layers:
        outputs = input_size if not layers else (layers[-1].hidden_size if narrowing is None else narrowing.shape[0])
        layer, own = _read_layer(tensors, names, outputs)
        if narrowing is not None:
            layer = replace(layer, input=layer.input @ narrowing)
        if layers and layer.num_gates != layers[0].num_gates:
            got, expected = (each.num_gates for each in (layer, layers[0]))
            raise Unimportable(f"{names['weight_hh']}: got {got} gates, expected {expected} as in the first layer")
        layers.append(layer)
        narrowing = own
    return tuple(layers), narrowing


def _read_layer(tensors: Mapping[str, Tensor], names: Mapping[str, str], inputs: int) -> tuple[Layer, Tensor | None]:
    found = {weight: _numbers(tensors, name) for weight, name in names.items()}
    state, narrowing = found["weight_hh"], found.get("weight_hr")
    _check_shape(names["weight_hh"], state, (None, None), "gates of units by units")
    hidden = state.shape[1]
    if narrowing is not None:
        _check_shape(names["weight_hr"], narrowing, (hidden, None), "as many rows as weight_hh has columns")
        hidden = narrowing.shape[1]
    gates, rest = divmod(state.shape[0], hidden)
    if rest or gates not in FAMILIES:
        expected = f"{hidden} (RNN), {3 * hidden} (GRU) or {4 * hidden} rows (LSTM) of {hidden} units"
        raise Unimportable(f"{names['weight_hh']}: got the shape {list(state.shape)}, expected {expected}")
    rows = gates * hidden
    of = f"{gates} gate{'s' if gates > 1 else ''} of {hidden} units"
    _check_shape(names["weight_ih"], found["weight_ih"], (rows, inputs), f"{of} by the {inputs} numbers below")
    biases = []
    for weight in ("bias_ih", "bias_hh"):
        bias = found.get(weight, torch.zeros(rows, dtype=torch.float64))
        _check_shape(names.get(weight, ""), bias, (rows,), of)
        biases.append(bias)
    whole_state = state if narrowing is None else state @ narrowing
    return Layer(found["weight_ih"], whole_state, *biases), narrowing


def _read_projection(singles: Mapping[str, Tensor], parts: Parts, inputs: int) -> tuple[Tensor | None, int]:
    """Return the projection, if there is one, and the size of the output layer's input."""
    projection = singles.get("projection")
    if projection is None:
        return None, inputs
    _check_shape(parts.singles["projection"], projection, (None, inputs), f"some rows by the {inputs} outputs below")
    size = projection.shape[0]
    if "projection_bias" in singles:
        _check_shape(parts.singles["projection_bias"], singles["projection_bias"], (size,), "a number for each row")
    return projection, size


def with_vocabulary(network: Network, vocabulary: ForeignVocabulary) -> Network:
    """Return the network with the tokens in the bundle's order, and with those that are added."""
    lowest = _lowest_logit(network) - MARGIN
    order = vocabulary.order
    ordered = replace(
        network,
        embedding=_rows(network.embedding, order),
        output=None if network.output is None else _rows(network.output, order),
        output_bias=_rows(network.output_bias, order, lowest),
    )
    return ordered if vocabulary.boundary is not None else _with_boundary(ordered)


def _lowest_logit(network: Network) -> float:
    """Return a number that no token's logit can be below: the outputs of a layer lie between -1 and 1."""
    output = network.embedding if network.output is None else network.output
    if network.projection is not None:
        output = output @ network.projection
    return float((network.output_bias - output.abs().sum(dim=1)).min())


def _rows(tensor: Tensor, order: list[int | None], added: float = 0.0) -> Tensor:
    absent = tensor.new_full(tensor.shape[1:], added)
    return torch.stack([absent if index is None else tensor[index] for index in order])


def _with_boundary(network: Network) -> Network:
    """Return the network in which the first token leaves the state at zero; its output is no longer tied."""
    output = network.embedding if network.output is None else network.output
    if network.projection is not None:
        output = output @ network.projection
    embedding = torch.cat([network.embedding, torch.zeros_like(network.embedding[:, :1])], dim=1)
    embedding[0, -1] = 1.0
    last = len(network.layers) - 1
    layers = tuple(
        _with_flag(layer, network.family, passes_on=index < last) for index, layer in enumerate(network.layers)
    )
    return Network(embedding, layers, None, output, network.output_bias)


def _with_flag(layer: Layer, family: Family, *, passes_on: bool) -> Layer:
    """Return the layer with one input more, the flag, which keeps a state of zero at zero.

    passes_on  one unit more hands the flag on to the layer above
    """
    gates, size, inputs = layer.num_gates, layer.hidden_size, layer.input.shape[1]
    hidden = size + passes_on
    # Gates apart: [G, H, inputs], [G, H, H], [G, H].
    weights = torch.zeros(gates, hidden, inputs + 1, dtype=torch.float64)
    state = torch.zeros(gates, hidden, hidden, dtype=torch.float64)
    input_bias, state_bias = torch.zeros(2, gates, hidden, dtype=torch.float64)
    weights[:, :size, :-1] = layer.input.view(gates, size, inputs)
    state[:, :size, :size] = layer.state.view(gates, size, size)
    input_bias[:, :size] = layer.input_bias.view(gates, size)
    state_bias[:, :size] = layer.state_bias.view(gates, size)
    shut = SHUT + float((input_bias + state_bias).abs().max())
    if family is Family.RNN:
        input_bias, state_bias = (input_bias + state_bias).float().double(), torch.zeros_like(state_bias)
        weights[0, :, -1] = -input_bias[0]
    else:
        gate, sign = _HELD[family]
        weights[gate, :size, -1] = sign * shut
    if passes_on:
        weights[_CANDIDATE[family], size, -1] = SHUT
        for gate, sign in _HANDING_ON[family].items():
            input_bias[gate, size] = sign * SHUT
    rows = gates * hidden
    return Layer(weights.reshape(rows, -1), state.reshape(rows, -1), input_bias.flatten(), state_bias.flatten())


_HELD = {Family.GRU: (1, 1), Family.LSTM: (0, -1)}  # gate and sign of its input for which zero stays zero: z = 1, i = 0
_CANDIDATE = {Family.RNN: 0, Family.GRU: 2, Family.LSTM: 2}
_HANDING_ON: dict[Family, dict[int, int]] = {  # gates of the unit that is the flag of this very step, and their signs
    Family.RNN: {},
    Family.GRU: {1: -1},
    Family.LSTM: {0: 1, 1: -1, 3: 1},
}


def to_model(network: Network, seed: int) -> tuple[RecurrentLanguageModel, RecurrentConfig]:
    """Return the network as meari's own model in float32, and its config."""
    sizes = tuple(layer.hidden_size for layer in network.layers)
    same = len({*sizes}) == 1
    config = RecurrentConfig(
        network.family,
        embedding_size=network.embedding.shape[1],
        hidden_size=sizes[0],
        num_layers=len(sizes) if same else 1,
        layer_sizes=() if same else sizes,
        tied=network.output is None,
    )
    model = build_model(config, len(network.embedding), seed)
    assert isinstance(model, RecurrentLanguageModel)
    tensors = {"embedding.weight": network.embedding}
    for index, layer in enumerate(network.layers):
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        values = (layer.input, layer.state, layer.input_bias, layer.state_bias)
        tensors |= {f"layers.{index}.kernel.{name}": value for name, value in zip(names, values, strict=True)}
    if network.output is not None:
        tensors |= {"output.weight": network.output, "output.bias": network.output_bias}
    else:
        tensors["output_bias"] = network.output_bias
    if network.projection is not None:
        tensors["projection.weight"] = network.projection
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval(), config
