"""A coordinator under seeded chance: every run is known by its seed, and can be had again."""
