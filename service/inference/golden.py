"""How far may the answer to a golden example be from that at export? Here, and in a browser (service/browser)."""

from service.contract.bundle import Manifest

# Largest difference of a probability allowed at a golden example. fp32 kernels differ in the order of their sums only.
# int8 kernels differ in kind: AVX2 without VNNI saturates pairs of products to 16 bits, so the same graph gives
# visibly other numbers on other CPUs and a tight bound would refuse healthy bundles. A wrong graph, a wrong order of
# classes or a wrong preprocessing is off by far more than either. The golden answers of fp16 come from a CPU, which
# computes in fp32 with weights of fp16; a GPU rounds every tensor to 11 bits as well. For EfficientNet-Lite0 either
# moves a probability by up to .01 and a score by up to .003 of its spread.
PROBABILITY_TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.02}
# In a browser int8 kernels are those of WebAssembly. On 250 test photographs of a Lite0 a probability was off by
# .0013 in the median, .031 at 99%, .048 at most, and 2 decisions differed, both next to their threshold; on 350
# images of cifar10-lt/2 nothing was off by .0001 (python -m tests.service.browser.compare). One CPU does as much:
# with and without onnxruntime's optimisations one of its examples differs by .031.
PROBABILITY_TOLERANCE_IN_BROWSER = PROBABILITY_TOLERANCE | {"int8": 0.06}
SCORE_TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.05}  # as a share of the score's scale


def score_tolerance(manifest: Manifest, name: str, value: float) -> float:
    """The largest difference of the score `name` allowed at a golden example for which it is `value`: a share of its
    spread at calibration, or of itself if larger."""
    levels = [v for row in manifest.calibration.quantiles.get(name, {}).values() for v in row]
    spread = max(levels) - min(levels) if levels else 0.0
    return SCORE_TOLERANCE[manifest.precision] * max(abs(value), spread, 1.0 if name == "msp" else 0.0, 1e-6)
