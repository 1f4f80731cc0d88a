"""Procedural segmentation data: three domains, seeded, bit-identical on every machine."""

from redfree.data.procedural.dataset import ProceduralDataset

__all__ = ["ProceduralDataset"]
