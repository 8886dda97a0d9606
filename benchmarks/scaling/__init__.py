"""What the manager costs as work and workers grow.

``python -m benchmarks.scaling`` runs a real manager, in a process of its own for each cell of the table, with real sockets, handshakes and
messages. The workers are simulated, hundreds of them in one process: each has the state machine of a real worker and speaks the real protocol, but
its calls take no time and its objects have no content. So nearly all that is measured is the manager's own.

In a cell all tasks are submitted as `DaskVine.get` submits them: in slices, while the first ones run. ``--interface engine`` hands the
slices to the engine directly, which is what the manager costs by itself; ``--interface get`` has a dask graph computed. ``--interface scheduler`` has no sockets and no
threads: only the state machine that decides, and how long it takes over that.
"""
