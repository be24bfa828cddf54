"""A scorer: activation energy, weighted towards the output. It needs no backward pass."""

from __future__ import annotations

import numpy as np

from layercard import LayerScores, LayerStatistics
from layercard.probing.statistics import Need


class DeepEnergy:
    """Importance (i + 1) / depth · mean activation energy of layer i; the raw statistic is the energy."""

    name = "deep_energy"
    needs: frozenset[Need] = frozenset({"energy"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers, (layers,)."""
        assert statistics.energy is not None  # it stands in `needs`, so the probe measured it
        held = ~np.isnan(statistics.energy)  # (layers, targets); NaN: no such target there
        energy = np.nansum(statistics.energy, axis=1) / np.maximum(
            held.sum(axis=1), 1
        )  # (layers,), 0 where there is none
        depth_weight = np.arange(1, statistics.num_layers + 1) / statistics.num_layers
        return LayerScores(name=self.name, importance=depth_weight * energy, raw=energy)
