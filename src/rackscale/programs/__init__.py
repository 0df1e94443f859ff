"""What runs inside a gang: programs that know the worker contract (`contract.py`) and nothing else of rackscale."""
