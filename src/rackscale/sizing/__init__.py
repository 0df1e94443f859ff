"""The best parallel layout of a model on a system: time, memory, money, with a band and every input's provenance."""
