"""Published figures, typed again from REFERENCE; the means are those of their sets."""

import pytest

from training.tables import published


def test_published_comparison():
    ten, hundred = published.COMPARISON["cifar10"], published.COMPARISON["cifar100"]
    assert ten["msp"].values == {"auroc": 72.28, "aupr": 70.27, "fpr95": 66.07, "acc": 72.34}
    assert ten["sofl"].values["acc"] == 54.42
    assert ten["pascl-abf"].values == {"auroc": 90.99, "aupr": 89.24, "fpr95": 33.36, "acc": 77.08, "acc95": 88.13}
    assert ten["imood"].values["fpr95"] == 28.73
    assert hundred["oecc"].values == {"auroc": 70.38, "aupr": 66.87, "fpr95": 73.15, "acc": 32.93}
    assert hundred["cocl"].values["auroc"] == 78.25
    assert published.OTHERS["cifar100"]["EAT (300k outliers)"].values["aupr"] == 70.87


def test_published_ablation():
    ten, hundred = published.ABLATION["cifar10"], published.ABLATION["cifar100"]
    assert list(ten["pascl-partial"].values.values()) == [95.01, 96.74, 15.31, 82.34, 74.46, 74.52, 75.04, 80.21]
    assert list(ten["pascl-asymmetric"].values.values()) == [94.91, 96.86, 15.57, 82.08, 75.24, 75.29, 75.77, 79.85]
    assert hundred["supcon"].values["acc_fpr_0.1"] == 43.71
    assert hundred["pascl-abf"].values["acc95"] == 64.50


def test_published_per_set_balance_and_long_tail():
    assert published.PER_SET["cifar10"]["scenes"].figure.values["aupr"] == 91.76
    assert published.PER_SET["cifar10"]["scenes"].name == "LSUN"
    assert published.PER_SET["cifar100"]["cifar10"].figure.values["fpr95"] == 79.55
    balanced, tailed = published.BALANCE["cifar10"]["ntom"]
    assert balanced.values["fpr95"] == 14.95
    assert tailed.values["acc"] == 66.41
    assert published.LONG_TAIL["cifar100"]["la-posthoc"].values["acc"] == 44.07


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_published_means_are_those_of_their_sets(dataset):
    sets = [c.figure.values for c in published.PER_SET[dataset].values()]
    for key, mean in published.PER_SET_MEAN[dataset].values.items():
        assert sum(v[key] for v in sets) / len(sets) == pytest.approx(mean, abs=0.011)
