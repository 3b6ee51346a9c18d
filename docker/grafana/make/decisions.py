"""Dashboard Decisions: is the stream what the model was calibrated on, and is what is promised kept?"""

from itertools import pairwise

from dashboard import VARIABLES, dashboard
from panels import (
    GROUP,
    MODEL,
    Json,
    bars,
    columns,
    dashed,
    heat,
    in_force,
    lines,
    now,
    or_zero,
    override,
    query,
    share,
    stat,
    steps,
)

ALL = MODEL + ',group="all"'
OF = "{{model}} {{version}}"
RATIO = "model_version_group:tailguard_rejection:ratio"
EXPECTED = "model_version_group:tailguard_rejection:expected"
RATE = "$__rate_interval"
ONE_MODEL = "Where several models are chosen, of the one with the most images."
BANDS = (0.05, 0.25, 0.5, 0.75, 0.95)


def made() -> Json:
    panels = [*_glance(), *_rejection(), *_reasons(), *_told(), *_scores(), *_drift(), *_classes()]
    return dashboard("Decisions", "Do live decisions keep the promises of calibration?", VARIABLES, panels)


def _glance() -> list[Json]:
    hour = f'{{{MODEL},window="1h"}}'
    z = f'model_version_group:tailguard_rejection:z{{{ALL},window="1h"}}'
    return [
        stat("Rejected", "Share of the images of the last hour that were rejected.", "percentunit",
             query(f'{RATIO}{{{ALL},window="1h"}}', OF)),
        stat("Promised", "Share of in-distribution images that the operating point rejects.", "percentunit",
             query(f"{EXPECTED}{{{ALL}}}", OF)),
        stat("z", "How many standard errors lie between the two, the error of calibration included. Beyond ±4 it is "
             "no chance.", "short", query(z, OF), color="thresholds",
             defaults={"decimals": 1, "thresholds": steps(("red", None), ("green", -4), ("red", 4))}),
        stat("KS", "Kolmogorov-Smirnov distance between live and calibration scores over an hour.", "percentunit",
             query(f"model_version:tailguard_ks:distance{hour}", OF)),
        stat("KS over its bound", "Over 1 with at least 500 images: the stream has changed.", "short",
             query(f"model_version:tailguard_ks:distance{hour} / model_version:tailguard_ks:bound{hour}", OF),
             color="thresholds", defaults={"decimals": 2, "thresholds": steps(("green", None), ("red", 1))}),
        stat("Images", "Images behind these figures: the last hour's.", "short",
             query(f"model_version:tailguard_ks:images{hour}", OF)),
    ]  # fmt: skip


def _rejection() -> list[Json]:
    return [
        lines("Rejected overall", "Share rejected by window, and what calibration promised (dashed).", "percentunit",
              query(f"{RATIO}{{{ALL}}}", OF + " {{window}}"), query(f"{EXPECTED}{{{ALL}}}", "promised " + OF),
              overrides=[dashed("/^promised/")]),
        lines("Rejected by group", "Share rejected over five minutes by group of the predicted class, and its promise "
              "(dashed).", "percentunit", query(f'{RATIO}{{{GROUP},window="5m"}}', "{{group}} {{version}}"),
              query(f"{EXPECTED}{{{GROUP}}}", "promised {{group}} {{version}}"), overrides=[dashed("/^promised/")]),
        lines("Standard errors off the promise", "z of a two-proportion test over an hour by group. Beyond ±4, with "
              "100 images and 5 points, TailGuardRejectionOff fires.", "short",
              query(f'model_version_group:tailguard_rejection:z{{{MODEL},group=~"$group|all",window="1h"}}',
                    "{{group}} {{version}}"),
              custom={"thresholdsStyle": {"mode": "line"}},
              defaults={"thresholds": steps(("red", None), ("transparent", -4), ("red", 4))}),
        lines("Rejected of what feedback confirmed", "Of images labelled in the last hour: outliers rejected (the more "
              "the better) and images of known classes rejected (the fewer the better); 0 without labels.",
              "percentunit", query(_confirmed('outcome="outlier"'), "outliers"),
              query(_confirmed('outcome!="outlier"'), "known classes")),
    ]  # fmt: skip


def _confirmed(which: str) -> str:
    part, whole = (
        f"sum {in_force(f'increase(tailguard_feedback_total{{{MODEL},{which}{more}}}[1h])')}"
        for more in (',decision="reject"', "")
    )
    return share(part, whole)


def _reasons() -> list[Json]:
    images = f"sum(increase(tailguard_decisions_total{{{MODEL}}}[1h]))"
    rejected = f"increase(tailguard_rejections_total{{{GROUP}}}[1h])"
    unknown = f'increase(tailguard_rejections_total{{{GROUP},reason="unknown"}}[1h])'
    return [
        lines("Rejected by reason", "Share of the images of the last hour that were rejected as unknown (like nothing "
              "in training), unsure (between known classes, or within the limit of the default operating point) or "
              "unfit (dark, blank, blurred, small), and of "
              "in-distribution images at calibration (dashed; known of the bundle's own operating point alone). "
              "Empty for a bundle that gives no reasons.",
              "percentunit", query(f"sum by (reason) ({rejected}) / scalar(clamp_min({images}, 1))", "{{reason}}"),
              query(f"max by (reason) (tailguard_expected_rejections{{{ALL}}})", "expected {{reason}}"),
              overrides=[dashed("/^expected/")]),
        lines("Unknown among the rejected, by group", "Share of an hour's rejections that are unknown, by group of the "
              "predicted class: rising, new things come; falling, pictures or classes are the matter. "
              "Empty for a bundle that gives no reasons.", "percentunit",
              query(share(f"sum by (group) ({unknown})", f"sum by (group) ({rejected})"), "{{group}}")),
    ]  # fmt: skip


def _told() -> list[Json]:
    told = f"increase(tailguard_refused_told_total{{{MODEL}}}[1h])"
    by_depth = f'sum by (depth) (label_replace({told}, "depth", "nothing", "depth", "0"))'
    return [
        lines("What can still be said, by depth", "Share of an hour's rejected images, unfit ones left out, that were "
              "told a node of the taxonomy: 1 is next to the root, deeper says more, nothing says that none could be "
              "promised. Empty for a bundle that has no taxonomy.", "percentunit",
              query(f"{by_depth} / scalar(clamp_min(sum({told}), 1))", "{{depth}}"), width=24),
    ]  # fmt: skip


def _scores() -> list[Json]:
    buckets = f"tailguard_deciding_score_bucket{{{GROUP}}}[{RATE}]"
    increase = f"(increase({buckets}) {_busiest(RATE)})"
    return [
        heat("Deciding score", "How many images had which score; larger is more outlying. The panel beside it has the "
             f"thresholds on the same axis, which a heat map of Grafana cannot draw. {ONE_MODEL}", "short",
             query(f"sum by (le) {increase}", "{{le}}")),
        lines("Deciding score and threshold", "Bands between quantiles of the live score (0 without images) and the "
              f"thresholds in force (dashed): an image above the one of its group is rejected. {ONE_MODEL}", "short",
              *(query(_quantile(q, increase), _named(q)) for q in BANDS),
              query(f"max by (group) (tailguard_threshold{{{GROUP}}} {_busiest(RATE)})", "threshold {{group}}"),
              overrides=[*_bands(), dashed("/^threshold/")]),
        bars("p-values", "Images by p-value over the time shown: even bars while the stream is what the model was "
             "calibrated on, a heap at the smallest when it is not.", "short",
             now(f"sum by (le) (increase(tailguard_p_value_bucket{{{MODEL}}}[$__range]))", "{{le}}", format="heatmap"),
             height=10),
        columns("Live and calibration", "Share of images with at most this score: the last hour's, and calibration's. "
                f"KS is the largest gap. {ONE_MODEL}", "percentunit",
                now("max by (le) (model_version_le:tailguard_deciding_score:cdf"
                    f'{{{MODEL},window="1h",le!="+Inf"}} {_busiest("1h")})', "live", format="table"),
                now(f'max by (le) (tailguard_calibration_cdf{{{MODEL},le!="+Inf"}} {_busiest("1h")})', "calibration",
                    format="table"),
                x="le", transformations=_joined("le", "live", "calibration", numeric=True)),
    ]  # fmt: skip


def _named(q: float) -> str:
    return f"p{round(q * 100):02}"


def _bands() -> list[Json]:
    """One colour from each quantile down to the next, fuller towards the median."""
    orange = {"mode": "fixed", "fixedColor": "orange"}
    found = [override(_named(BANDS[0]), custom__lineWidth=0, custom__fillOpacity=0)]
    for low, high in pairwise(BANDS):
        fill = {"custom__fillBelowTo": _named(low), "custom__fillOpacity": round(60 - 60 * abs(high + low - 1))}
        found.append(override(_named(high), custom__lineWidth=0, color=orange, **fill))
    return found


def _busiest(time: str) -> str:
    """Of series by model and version: those of the one in force with the most images. Each has bounds of its own for
    its scores, and a sum over different bounds is no histogram."""
    images = f"sum by (model, version) (increase(tailguard_deciding_score_count{{{MODEL}}}[{time}]))"
    return f"and on (model, version) topk(1, {images} and on (model, version) tailguard_model_info)"


def _quantile(q: float, increase: str) -> str:
    return or_zero(f"histogram_quantile({q}, sum by (le) {increase}) > -Inf")


def _joined(by: str, *names: str, numeric: bool = False) -> list[Json]:
    """Tables of one value each, side by side."""
    renamed = {f"Value #{chr(ord('A') + i)}": name for i, name in enumerate(names)}
    excluded = {f"Time{end}": True for end in ("", " 1", " 2")}
    found: list[Json] = [{"id": "joinByField", "options": {"byField": by, "mode": "outer"}}]
    if numeric:
        conversion = {"targetField": by, "destinationType": "number"}
        found += [
            {"id": "convertFieldType", "options": {"conversions": [conversion], "fields": {}}},
            {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": by}]}},
            {"id": "convertFieldType", "options": {"conversions": [conversion | {"destinationType": "string"}]}},
        ]
    return [*found, {"id": "organize", "options": {"renameByName": renamed, "excludeByName": excluded}}]


def _drift() -> list[Json]:
    return [
        lines("KS against its bound", "Distance between live and calibration scores by window, and the two-sample "
              "bound at α = 0.0001 (dashed), which falls as images come in.", "percentunit",
              query(f"model_version:tailguard_ks:distance{{{MODEL}}}", OF + " {{window}}"),
              query(f"model_version:tailguard_ks:bound{{{MODEL}}}", "bound " + OF + " {{window}}"),
              overrides=[dashed("/^bound/")]),
        lines("Class mix", "Half the sum of differences between the shares of predicted classes over an hour and those "
              "of the training data: 0 is the same mix, 1 has nothing in common.", "percentunit",
              query(f"model_version:tailguard_class_mix:distance{{{MODEL}}}", OF)),
    ]  # fmt: skip


def _classes() -> list[Json]:
    increase = f'increase(tailguard_decisions_total{{{GROUP},decision="reject"}}[$__range])'
    rejected = f"sum by (class) {in_force(increase)}"
    buckets = f"sum by (model, version, score, le) (rate(tailguard_score_bucket{{{MODEL}}}[{RATE}]))"
    median = f"histogram_quantile(0.5, {buckets}) > -Inf"
    return [
        bars("Top rejected classes", "Predicted classes with the most rejected images over the time shown.", "short",
             now(f"topk(5, {rejected})", "{{class}}")),
        lines("Every score", "Median of each score that the model gives, the deciding one too; 0 without images.",
              "short", query(or_zero(median), "{{score}} " + OF)),
    ]  # fmt: skip
