"""Gangs on Ray nodes: Ray says where instances can run and which nodes live; all else is as on `local`.

executor.py   RayExecutor: `control.Executor` on a Ray cluster
launcher.py   `launcher.Launcher`: asks the agents, and watches them
agent.py      one detached actor per Ray node: starts and ends the instances of its node
cluster.py    what a Ray cluster is here: nodes known by their labels; joins one that exists
emulated.py   a cluster of our own on this machine: a head, and a Ray node per instance, started lazily
marks.py      which processes of this machine belong to which emulated node: killing one, ending all
"""
