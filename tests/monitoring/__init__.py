"""Tests of Prometheus' configuration, rules and alerts and of Grafana's dashboards, with the real programs."""
