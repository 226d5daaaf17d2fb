"""A long run of random faults at a steady load: is each execution answered or explained, and does nothing leak?

`judge` is pure; `clients` are the people, `house` the kernels they work in, `faults` what happens to these, `samples`
what the server costs meanwhile.
"""
