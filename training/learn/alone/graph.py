"""A bundle's graph, and behind it a gate that hands an image over to new classes.

With q [K] the gate's probabilities of the new classes and q0 that of everything else, p [C] those of the graph:

    probabilities   p * q0, then q: they sum to 1, and among the known classes nothing changes
    scores          of an image whose most probable class is a known one: the very same as before
                    of any other: as if the logits of the new classes stood beside those of the known ones

So an image that is not handed over is accepted or refused exactly as it was, and thresholds of known groups stay true.
The logits of the known classes follow from what the graph gives: z = T * log p + c, with logsumexp(z) = -energy; that
of a new class is logsumexp(z) + log(q / q0). A log-odds score, X - logsumexp(z), moves by log q0.
"""

from collections.abc import Sequence

import onnx
import torch
from onnx import compose, helper, version_converter
from torch import Tensor, nn

from service.contract.bundle import Manifest
from service.contract.embedding import EMBEDDING
from service.contract.reasons import MEASURES, QUALITY, Reasons
from training.learn.alone.gate import Gate
from training.network.onnx_graph import OPSET, exported, opset_of
from training.scores.either import larger
from training.scores.scores import SCORES, Seen

OF_LOGITS = ("energy", "msp", "max-logit", "gen")
LOG_ODDS = ("energy", "reject-mass", "reject-half", "background", "react", "vim")
SMALLEST = 1e-37  # of a probability in float32
PARENT = "parent/"  # before the inner names of the graph in front


def derivable(manifest: Manifest) -> list[str]:
    """The scores of a bundle that are known for an image of a new class, in the bundle's order.

    Of a bundle with two branches the scores are of other logits than the probabilities: there fewer follow.
    """
    own = [*OF_LOGITS, *LOG_ODDS] if manifest.passes == 1 else ["msp", *LOG_ODDS]
    if manifest.reasons and manifest.reasons.unknown_score in own:
        own.append(manifest.deciding_score)  # the larger of that and of the doubt about the class
    return [name for name, score in manifest.scores.items() if name in own and score.temperature == 1]


class Grown(nn.Module):
    """What stands behind the graph: (probabilities [N, C], embedding [N, D], scores [N] each) → the outputs anew."""

    def __init__(
        self, gate: Gate, known: int, new: int, names: Sequence[str], passes: int, temperature: float,
        reasons: Reasons | None = None, deciding: str = "",
    ) -> None:  # fmt: skip
        """The rows of `gate` are `known` classes, `new` ones, and perhaps outliers; `names` are the scores given. With
        `reasons` the `deciding` one among them is the larger of two parts."""
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(gate.weight))
        self.register_buffer("bias", torch.from_numpy(gate.bias))
        self._known, self._new, self._names = known, new, list(names)
        self._passes, self._temperature = passes, temperature
        self._reasons, self._deciding = reasons, deciding if reasons else ""

    def forward(self, probabilities: Tensor, embedding: Tensor, scores: list[Tensor]) -> tuple[Tensor, ...]:
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        found, moved = self.answer(probabilities, (embedding @ weight.T + bias).log_softmax(dim=1), scores)
        return (found, *moved, embedding * 1.0)  # an output is no input, so the embedding is written once more

    def answer(self, probabilities: Tensor, q: Tensor, scores: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(probabilities, scores) anew, from those of the graph and the log-probabilities `q` [N, K] of a gate."""
        first, last = self._known, self._known + self._new
        new = q[:, first:last]
        rest = torch.cat([q[:, :first], q[:, last:]], dim=1).logsumexp(dim=1, keepdim=True)
        logs = probabilities.clamp_min(SMALLEST).log()
        found = torch.cat([logs + rest, new], dim=1).softmax(dim=1)
        over = found[:, first:].amax(dim=1) > found[:, :first].amax(dim=1)
        given = dict(zip(self._names, scores, strict=True))
        moved = {n: self._moved(n, given, logs, new, rest) for n in self._names if n != self._deciding}
        if self._reasons:
            unknown, best = moved[self._reasons.unknown_score], found.amax(dim=1)
            moved[self._deciding] = larger(unknown, best, self._reasons.unknown, self._reasons.unsure)
        return found, [torch.where(over, moved[n], given[n]) for n in self._names]

    def _moved(self, name: str, given: dict[str, Tensor], logs: Tensor, new: Tensor, rest: Tensor) -> Tensor:
        """The score of an image that is handed over."""
        if name in OF_LOGITS and self._passes == 1:
            raised, sums = self._temperature * logs, -given["energy"][:, None]
            known = raised - raised.logsumexp(dim=1, keepdim=True) + sums
            logits = torch.cat([known, sums + new - rest], dim=1)
            nothing = logits[:, :0]
            return SCORES[name].value(Seen(nothing, logits, nothing))
        if name == "msp":
            best = torch.cat([(1 - given["msp"])[:, None].clamp_min(SMALLEST).log() + rest, new], dim=1).amax(dim=1)
            return 1 - best.exp()
        return given[name] + rest[:, 0]


def head(gate: Gate, manifest: Manifest, new: int) -> Grown:
    """What stands behind the graph of a bundle that learns `new` classes; it gives the scores that are `derivable`."""
    temperature = manifest.calibration.temperature
    return Grown(
        gate, len(manifest.classes), new, derivable(manifest), manifest.passes, temperature, manifest.reasons,
        manifest.deciding_score,
    )  # fmt: skip


def grown(graph: bytes, module: Grown, manifest: Manifest) -> bytes:
    """The graph with a `head` behind it."""
    assert manifest.embedding is not None
    names, known = derivable(manifest), len(manifest.classes)
    sample = (torch.full((2, known), 1 / known), torch.zeros(2, manifest.embedding.dimensions),
              [torch.zeros(2) for _ in names])  # fmt: skip
    outputs = ["probabilities", *names, EMBEDDING]
    takes = [f"{PARENT}{name}" for name in ("probabilities", EMBEDDING, *names)]
    back = onnx.load_from_string(exported(module, sample, takes=takes, gives=outputs))
    front = onnx.load_from_string(graph)
    del front.graph.value_info[:]  # where an earlier merge has put the input too, which keeps its name
    front = compose.add_prefix(front, PARENT, rename_inputs=False)
    if manifest.reasons:  # the pixels are the same
        outputs.append(QUALITY)
        front.graph.node.append(helper.make_node("Identity", [f"{PARENT}{QUALITY}"], [QUALITY]))
        front.graph.output.append(helper.make_tensor_value_info(QUALITY, onnx.TensorProto.FLOAT, ["N", len(MEASURES)]))
    opset = max(opset_of(front), opset_of(back), OPSET)
    front, back = (m if opset_of(m) == opset else version_converter.convert_version(m, opset) for m in (front, back))
    front.ir_version = back.ir_version = max(front.ir_version, back.ir_version)
    del back.functions[:]
    del back.opset_import[1:]
    merged = compose.merge_models(front, back, [(name, name) for name in takes], outputs=outputs)
    given = {output.name: output for output in merged.graph.output}  # those of the front come first
    del merged.graph.output[:]
    merged.graph.output.extend(given[name] for name in outputs)
    onnx.checker.check_model(merged)
    content: bytes = merged.SerializeToString()
    return content
