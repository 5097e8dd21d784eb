"""The tasks of `python -m vcd.control`: a module each, found by its name.

One of your own is a module on the Python path with `run(models, request, out)`, or such a function. It is asked for by
its dotted path, `task=mine.fan`: models is a dict of Diffusion models by name, request a `vcd.request.Request`, out the
folder to write into; it returns the paths of what it has written.
"""
