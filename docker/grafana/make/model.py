"""Dashboard Model: what is in service, on what, beside which shadow, in how much memory."""

from dashboard import VARIABLES, dashboard
from panels import GROUP, MODEL, Json, lines, now, or_zero, query, share, stat, steps, table

RATE = "$__rate_interval"
OF = "{{model}} {{version}}"
WHAT = "model, version, sha256, method, provider, operating_point, scope"
COMPARED = 'outcome=~"same|decision-differs|label-differs"'


def made() -> Json:
    return dashboard("Model", "What is in service, and on what?", VARIABLES, [*_service(), *_shadow(), *_memory()])


def _service() -> list[Json]:
    hidden = {"Time": True, "Value": True}
    agree = (
        "count(tailguard_provider_asked_info unless on (instance, provider) tailguard_model_info "
        "and on (instance) tailguard_model_info)"
    )
    return [
        table("In service", "The models that answer now, by replica and hash.", "none",
              now(f"max by (instance, {WHAT}) (tailguard_model_info{{{MODEL}}})"), height=6,
              transformations=[{"id": "organize", "options": {"excludeByName": hidden, "renameByName": {}}}]),
        stat("Provider asked for", "What the settings name.", "none",
             query("max by (provider) (tailguard_provider_asked_info)", "{{provider}}"), width=6, graph="none",
             text="name"),
        stat("Provider in use", "What the model runs on.", "none",
             query(f"max by (provider) (tailguard_model_info{{{MODEL}}})", "{{provider}}"), width=6, graph="none",
             text="name"),
        stat("Replicas on another provider", "Replicas that do not run on what was asked for.", "short",
             query(or_zero(agree)), width=6, color="thresholds",
             defaults={"thresholds": steps(("green", None), ("red", 1))}),
        stat("Up since", "Time since each replica was started.", "s",
             query('time() - process_start_time_seconds{job="tailguard"}', "{{instance}}"), width=6, graph="none"),
        lines("Decisions by model", "Images that each model and version decided, a second: a swap shows as one going "
              "down and one coming up.", "cps",
              query(f"sum by (model, version) (rate(tailguard_decisions_total{{{MODEL}}}[{RATE}]))", OF)),
        lines("Swaps", "Bundles put in service while running, or refused, in an hour.", "short",
              query("sum by (outcome) (increase(tailguard_swaps_total[1h]))", "{{outcome}}")),
        lines("Thresholds", "Score above which an image predicted in the group is rejected.", "short",
              query(f"max by (model, version, group) (tailguard_threshold{{{GROUP}}})", OF + " {{group}}")),
        lines("Promised rejection", "Share of in-distribution images that the operating point in force rejects.",
              "percentunit", query(f"model_version_group:tailguard_rejection:promised{{{GROUP}}}", OF + " {{group}}")),
    ]  # fmt: skip


def _shadow() -> list[Json]:
    differs, compared = (
        f"sum(increase(tailguard_shadow_images_total{{{which}}}[1h]))"
        for which in ('outcome=~"decision-differs|label-differs"', COMPARED)
    )
    return [
        lines("Shadow disagrees", "Of the accepted images that the shadow model saw in an hour, the share that it "
              "refuses or names otherwise; 0 without a shadow.", "percentunit",
              query(share(differs, compared), "disagrees")),
        lines("Shadow", "Images of the shadow model a second, by how it would have answered.", "cps",
              query(f"sum by (outcome) (rate(tailguard_shadow_images_total[{RATE}]))", "{{outcome}}")),
    ]  # fmt: skip


def _memory() -> list[Json]:
    spent = f'sum(rate(tailguard_stage_seconds_sum{{stage="inference"}}[{RATE}]))'
    return [
        lines("Memory", "Resident memory of each replica.", "bytes",
              query('process_resident_memory_bytes{job="tailguard"}', "{{instance}}")),
        lines("Inference per image", "Time in the graph divided by images.", "s",
              query(share(spent, f"sum(rate(tailguard_batch_images_sum[{RATE}]))", "1e-9"), "inference")),
    ]  # fmt: skip
