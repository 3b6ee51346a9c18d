"""Dashboard Tail: every class with its volume, its rejection and its accuracy, the worst first."""

from dashboard import VARIABLES, dashboard
from panels import (
    GROUP,
    MODEL,
    NO_LABELS,
    Json,
    bars,
    columns,
    dashed,
    in_force,
    lines,
    now,
    override,
    query,
    share,
    stat,
    steps,
    table,
)

TAIL = MODEL + ',group=~"tail|few"'
HOUR = 'window="1h"'
REJECT = 'decision="reject"'
BY = "sum by (class, group)"
DECIDED = f"{BY} {in_force(f'increase(tailguard_decisions_total{{{GROUP}}}[$__range])')}"
REJECTED = f"{BY} {in_force(f'increase(tailguard_decisions_total{{{GROUP},{REJECT}}}[$__range])')}"
EXPECTED = f"max by (class, group) (tailguard_expected_class_share{{{GROUP}}})"
MIX = f"avg by (class, group) (tailguard_class_mix{{{GROUP}}})"
EVERY = f"clamp_min(sum {in_force(f'increase(tailguard_decisions_total{{{MODEL}}}[$__range])')}, 1)"
UNSAID = {"type": "value", "options": {str(NO_LABELS): {"text": "no labels", "color": "text", "index": 0}}}
CLASS = "{{class}}"


def labelled(by: str, which: str = 'outcome!="outlier"') -> str:
    return f"{by} (increase(tailguard_feedback_total{{{GROUP},{which}}}[$__range]))"


def accuracy(by: str) -> str:
    """Share of labelled images whose predicted class was right; NO_LABELS where there are none."""
    right, some = labelled(by, 'outcome="correct"'), labelled(by)
    return f"{share(right, some, '1e-9')} + {NO_LABELS} * ({some} == bool 0)"


def made() -> Json:
    panels = [*_glance(), _every_class(), *_worst(), *_over_time()]
    return dashboard("Tail", "Which classes suffer, and is it the tail?", VARIABLES, panels)


def _glance() -> list[Json]:
    return [
        stat("Tail rejected", "Share of images predicted in a tail class that were rejected in the last hour.",
             "percentunit", query(f"model_version_group:tailguard_rejection:ratio{{{TAIL},{HOUR}}}", "{{version}}")),
        stat("At least", "Wilson's lower bound of it at z = 4. Over three times the promise, with 50 images, "
             "TailGuardTailRefused fires.", "percentunit",
             query(f"model_version_group:tailguard_rejection:wilson_lower{{{TAIL},{HOUR}}}", "{{version}}")),
        stat("Promised to all", "Share of all in-distribution images that the operating point rejects.", "percentunit",
             query(f'model_version_group:tailguard_rejection:promised{{{MODEL},group="all"}}', "{{version}}")),
        stat("Tail images", "Images predicted in a tail class in the last hour.", "short",
             query(f"model_version_group:tailguard_decisions:increase{{{TAIL},{HOUR}}}", "{{version}}")),
        stat("Accuracy by group", "Of the images labelled in the time shown, by their true group.", "percentunit",
             now(accuracy("sum by (group)"), "{{group}}"), width=8, graph="none", defaults={"mappings": [UNSAID]}),
    ]  # fmt: skip


def _every_class() -> Json:
    names = ("Share in training", "Share live", "Images", "Rejected", "Accuracy", "Labelled")
    renamed = {f"Value #{chr(ord('A') + i)}": name for i, name in enumerate(names)}
    gauge = {"type": "gauge", "mode": "basic"}
    return table(
        "Every class", "Over the time shown, by predicted class; accuracy by true class from feedback. The class with "
        "the largest share rejected comes first.", "percentunit",
        now(EXPECTED), now(f"{DECIDED} / on () group_left () {EVERY}"), now(DECIDED),
        now(share(REJECTED, DECIDED)), now(accuracy(BY)), now(labelled(BY)),
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}},
        ],
        sort_by=[{"displayName": "Rejected", "desc": True}],
        overrides=[
            override("Images", unit="short", decimals=0),
            override("Labelled", unit="short", decimals=0),
            override("Rejected", custom__cellOptions=gauge, min=0, max=1),
            override("Accuracy", mappings=[UNSAID]),
        ],
        defaults={"decimals": 1}, color="thresholds",
    )  # fmt: skip


def _worst() -> list[Json]:
    return [
        bars("Rejected, worst first", "Share rejected by predicted class over the time shown.", "percentunit",
             now(f"sort_desc({share(REJECTED, DECIDED)})", CLASS), defaults={"max": 1}),
        bars("Accuracy, worst first", "From feedback, by true class over the time shown.", "percentunit",
             now(f"sort({accuracy(BY)})", CLASS), color="thresholds",
             defaults={"max": 1, "mappings": [UNSAID],
                       "thresholds": steps(("red", None), ("orange", 0.5), ("green", 0.7))}),
    ]  # fmt: skip


def _over_time() -> list[Json]:
    decided, rejected = (
        f"sum by (class) {in_force(f'rate(tailguard_decisions_total{{{which}}}[$__rate_interval])')}"
        for which in (GROUP, f"{GROUP},{REJECT}")
    )
    return [
        columns("Mix of classes", "Share of the predicted classes over the time shown beside their share in training.",
                "percentunit", now(f"sum by (class) ({DECIDED}) / on () group_left () {EVERY}", format="table"),
                now(f"sum by (class) ({EXPECTED})", format="table"), x="class",
                transformations=[
                    {"id": "joinByField", "options": {"byField": "class", "mode": "outer"}},
                    {"id": "organize", "options": {
                        "excludeByName": {"Time": True, "Time 1": True, "Time 2": True},
                        "renameByName": {"Value #A": "live", "Value #B": "in training"}}},
                ]),
        lines("Images by class", "Classified images a second by predicted class.", "cps", query(decided, CLASS)),
        lines("Rejected by class", "Share rejected by predicted class; 0 without images.", "percentunit",
              query(share(rejected, decided, "1e-9"), CLASS)),
        lines("Labelled images by outcome", "What feedback said in an hour, by true group.", "short",
              query(f"sum by (group, outcome) (increase(tailguard_feedback_total{{{GROUP}}}[1h]))",
                    "{{group}} {{outcome}}"),
              query(f'sum by (outcome) (increase(tailguard_feedback_total{{{MODEL},outcome="outlier"}}[1h]))',
                    "{{outcome}}"), overrides=[dashed("/wrong/")]),
        lines("Audit sample", "Shares of the whole stream from labelled images of the random sample; dashed: ends of "
              "their 95% intervals, 0 and 1 while nothing is known.", "percentunit",
              query(f'max by (share, bound) (tailguard_audit_share{{{MODEL},group="all"}})', "{{share}} {{bound}}"),
              overrides=[dashed("/low|high/")]),
        lines("Mix of the stream", "Share of each group in recent accepted images, estimated by EM; dashed: expected, "
              "which the other is too until there are 200.",
              "percentunit",
              query(f"sum by (group) ({MIX} or {EXPECTED})", "{{group}}"),
              query(f"sum by (group) ({EXPECTED})", "{{group}} expected"), overrides=[dashed("/expected/")]),
    ]  # fmt: skip
